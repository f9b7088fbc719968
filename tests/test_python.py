"""`sat.train`: a run from Python, of a network and images of the caller's own."""

import os
import signal
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import TINY
from hydra.core.singleton import Singleton
from PIL import Image
from torch import nn

import sat
from sat.data import Npz
from sat.data.arrays import arrays_of
from sat.errors import Refused
from sat.loggers import screen
from sat.python import spec_of
from sat.rundir.result import RunResult

LITTLE = [
    "dataset.holdout=20", "schedule.epochs=3", "schedule.batch_size=20", "attack.eps=20",
    "validation.attack.steps=1", "evaluation.attacks.pgd20.steps=1", "schedule.precision=fp32",
    "evaluation.masking_checks=0", "logger=[]", "dataset.name=mine",
]  # fmt: skip


class Net(nn.Module):
    """Flattens by a view, which wants the channels first."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.line = nn.Linear(144, 10)

    def forward(self, x):
        return self.line(self.act(self.norm(self.conv(x))).view(len(x), -1))


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """Hydra composes all a first time to learn its mode."""
    from hydra._internal.hydra import Hydra

    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def images():
    """80 training and 40 test images of 10 classes, uint8."""
    draw = np.random.default_rng(0)
    y = np.arange(120) % 10
    x = (draw.integers(0, 100, (120, 8, 8)) + 15 * y[:, None, None]).astype(np.uint8)
    return x[:80], y[:80], x[80:], y[80:]


def test_the_same_words_are_the_same_run(ran):
    """One that is finished is read, not trained."""
    before = (ran.run / "result.json").read_bytes()
    draws = torch.random.get_rng_state()
    run = sat.train(f"record.root={ran.root}", *TINY)
    assert screen._stage is None  # nothing goes on in the caller's terminal
    assert run.path == ran.run and (ran.run / "result.json").read_bytes() == before
    assert run.result == RunResult.read(ran.run)
    assert len(repr(run)) < 400 and run.path.name in repr(run)
    assert str(run).startswith(f"{run.path}\ncheckpoint, attack") and len(str(run)) < 1000
    x = torch.rand(2, 1, 8, 8)
    torch.random.set_rng_state(draws)
    assert torch.equal(run.model(x), sat.load(ran.run)(x)) and not run.model.training


def test_the_last_model_where_the_best_was_not_kept(ran):
    """By `record.keep=[last]`, with which the run has the same name."""
    (ran.run / "checkpoints" / "best.pt").unlink()
    run = sat.train(f"record.root={ran.root}", "record.keep=[last]", *TINY)
    assert run.path == ran.run and run.result.best is not None
    last, x = sat.load(ran.run, "last"), torch.rand(2, 1, 8, 8)
    assert torch.equal(run.model(x), last(x))


def test_a_network_and_images_of_ones_own(net, images, tmp_path, capsys):
    """Stopped and resumed, it is the run that was never stopped."""
    words = ["activation=gelu", *LITTLE]
    given = {name: value.clone() for name, value in net.state_dict().items()}
    whole = sat.train(f"record.root={tmp_path / 'whole'}", *words, model=net, data=images)
    assert whole.path.name.startswith("mine-Net-gelu-pgd1-eps20-3ep-s0-")
    assert type(whole.model.backbone.act).__name__ == "GELU" and type(net.act) is nn.ReLU
    assert all(torch.equal(value, given[name]) for name, value in net.state_dict().items())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(whole.model(x), whole.model.backbone(x))  # it has its own normalisation
    assert not torch.equal(whole.model.backbone.line.weight, net.line.weight)
    assert whole.result.activation["swapped"] == 1 and whole.result.test_images == 40
    stopped, seen = [f"record.root={tmp_path / 'stopped'}", *words], []
    with pytest.MonkeyPatch.context() as patch:
        from sat.training import loop

        attempt = loop.attempt

        def killed(state, *batch):
            seen.append(state.step)
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return attempt(state, *batch)

        patch.setattr(loop, "attempt", killed)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM; the same call goes on"):
            sat.train(*stopped, model=net, data=images)
        assert len(seen) == 4
        resumed = sat.train(*stopped, model=net, data=images)
    assert seen == [*range(resumed.result.steps)]
    assert resumed.path.name == whole.path.name
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    loaded = sat.load(whole.path, model=Net())
    assert torch.equal(loaded(x), whole.model(x))


def test_it_is_asked_from_any_thread(net, images, tmp_path):
    """Signals are the main one's."""
    words, done = [f"record.root={tmp_path}", *LITTLE, "schedule.epochs=1"], []
    thread = Thread(target=lambda: done.append(sat.train(*words, model=net, data=images)))
    thread.start()
    thread.join()
    assert done and done[0].result.status == "finished"


def test_the_process_is_left_as_it_was(net, images, tmp_path, monkeypatch):
    """Threads, the precision of its products, what torch does where it can't compile, and what is
    done where a child ends."""
    import torch._dynamo

    from sat.training import train

    def settle(choices):
        settled(choices | {"tf32": False})
        torch._dynamo.config.suppress_errors = True  # as a compiled run has it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as one whose images are read by workers

    settled = train.settle
    monkeypatch.setattr(train, "settle", settle)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    words, before = [f"record.root={tmp_path}", *LITTLE, "schedule.epochs=1"], changeable()
    torch.set_float32_matmul_precision("high")
    signal.signal(signal.SIGCHLD, handler := lambda *_: None)
    try:
        sat.train(*words, model=net, data=images)
        assert changeable() == before | {"matmul": "high", "child": handler}
    finally:
        torch.set_float32_matmul_precision(before["matmul"])
        signal.signal(signal.SIGCHLD, before["child"])


def changeable():
    return {
        "threads": torch.get_num_threads(), "matmul": torch.get_float32_matmul_precision(),
        "cudnn": torch.backends.cudnn.allow_tf32, "lenient": torch._dynamo.config.suppress_errors,
        "child": signal.getsignal(signal.SIGCHLD),
    }  # fmt: skip


def test_what_tells_two_runs_apart(net, images):
    names = {spec_of([*LITTLE], net, images).name, spec_of([*LITTLE], net, images).name}
    assert len(names) == 1
    x_train, *rest = images
    names.add(spec_of([*LITTLE], net, (x_train // 2, *rest)).name)
    names.add(spec_of([*LITTLE, "activation=keep"], net, images).name)
    net.conv.requires_grad_(False)  # another training, and the same network where it is measured
    names.add(spec_of([*LITTLE], net, images).name)
    net.line.requires_grad_(False)
    names.add(spec_of([*LITTLE], net, images).name)
    with torch.no_grad():
        net.line.bias += 1
    names.add(spec_of([*LITTLE], net, images).name)
    assert len(names) == 6


def test_images_are_an_npz_file_by_another_way(images, tmp_path):
    keys = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "mine.npz", **dict(zip(keys, images, strict=True)))
    filed = spec_of([*LITTLE, "dataset=npz", f"dataset.path={tmp_path / 'mine.npz'}"])
    assert filed.name == spec_of([*LITTLE], data=images).name


def channels_first(x):
    return torch.from_numpy(x)[:, None].float() / 255


FORMS = {
    "a mapping": lambda a, b, c, d: {"x_train": a, "y_train": b, "x_test": c, "y_test": d},
    "tensors": lambda a, b, c, d: (channels_first(a), torch.tensor(b), channels_first(c), d),
    "a mirrored view": lambda a, b, c, d: (mirrored(a), b, mirrored(c), d),
    "datasets": lambda a, b, c, d: [[*zip(map(channels_last, x), y, strict=True)] for x, y in
                                    ((a, b), (c, d))],
}  # fmt: skip


class Torn:
    """A Dataset whose files are gone."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        raise KeyError("no such file")


def channels_last(x):
    return x[:, :, None]


def mirrored(x):
    """The same images, as numpy sees them in a copy that lies the other way round."""
    return x[:, ::-1].copy()[:, ::-1, :, None]


@pytest.mark.parametrize("form", FORMS)
def test_images_come_in_many_forms(images, form):
    expected, found = Npz().holding(images), Npz().holding(FORMS[form](*images))
    assert found.fingerprint() == expected.fingerprint()
    colour = np.stack([images[0]] * 3, 1)  # [N, 3, S, S]
    assert arrays_of((colour, images[1], colour, images[1]))["x_test"].shape == (80, 8, 8, 3)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    found = arrays_of(([(palette, 0)] * 3, [(Image.new("L", (8, 8), 7), 1)] * 3))
    assert found["x_train"][0, 0, 0].tolist() == [200, 100, 50] and found["x_test"][0, 0, 0] == 7


@pytest.mark.parametrize(
    "data, says",
    [
        (3, "data: int; give .x_train, y_train, x_test, y_test., or a pair of Datasets"),
        ({"x": 1}, "data: has x; give x_train"),
        ((np.full((4, 8, 8), 0.3), 0, 0, 0), "x_train holds floats that are no multiples"),
        (([1], [2]), "data: list gives no images of one size"),
        ((Torn(), Torn()), "data: Torn gives no images .*KeyError: 'no such file'"),
        ((torch.empty(4, 8, 8, device="meta"), 0, 0, 0), "data: x_train is no array"),
        (([[1], [1, 2]], 0, 0, 0), "data: x_train is no array .*inhomogeneous"),
        ((np.zeros((4, 8, 7), np.uint8), [0, 1, 0, 1]) * 2, r"data: .*x_train"),
    ],
)
def test_what_images_are_refused(data, says):
    with pytest.raises(ValueError, match=says):
        Npz().holding(data).load()


@pytest.mark.parametrize(
    "words, more, says",
    [
        (["-m", "seed=1,2"], {}, "-m: sat.train does one training"),
        (["hydra.mode=MULTIRUN"], {}, "hydra.mode=MULTIRUN: sat.train does one training"),
        (["evaluate=x.pt"], {}, "evaluate=x.pt: sat.train does one training"),
        (["++evaluate=x:y"], {}, "evaluate=x:y: sat.train does one training"),
        (["atack=pgd"], {}, "atack: no such"),
        (["model.depth=18"], {"model": Net()}, "model.depth=18: the model given is what it is"),
        ([], {"model": Net}, "model: type; give a torch.nn.Module"),
        (["dataset=digits"], {"data": (1, 2)}, "dataset=digits: data are given"),
        (["dataset.path=x"], {"data": (1, 2)}, "dataset.path=x: data are given"),
        ([3], {}, "3: sat.train does one training; write key=value"),
        ([{"seed": 1}], {}, "one training; write key=value as text: sat.train"),
        (["hydra.run.dir=here"], {}, "hydra.run.dir: results lie where record.root says"),
        (["record.keep=[]"], {}, r"record.keep=\[\]: sat.train gives the model back"),
        (["activation=[relu,silu]"], {}, "a run has one option of activation"),
        ([], {"model": nn.Flatten()}, "model: Flatten has no parameter that is trained"),
        ([], {"model": Net().requires_grad_(False)}, "model: Net has no parameter that is trained"),
    ],
)
def test_what_is_refused(words, more, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=says):
        spec_of(words, **more)
    assert not [*tmp_path.iterdir()]


def test_keys_as_arguments_are_answered_with_the_text_to_write():
    with pytest.raises(TypeError, match=r'as text: sat.train\("activation=gelu", "seed=1"\)'):
        sat.train(activation="gelu", seed=1)


def test_a_folder_that_is_none_is_told_as_such(tmp_path):
    with pytest.raises(ValueError, match="nope: no such folder"):
        sat.load(tmp_path / "nope")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_program_is_not_trained():
    with pytest.raises(Refused, match="is a program; give the module that it was made of"):
        spec_of([], torch.jit.script(nn.Linear(2, 2)))


def test_it_is_asked_from_within_a_program_of_hydras():
    """Whose own configuration stays."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    own, config = object.__new__(GlobalHydra), object.__new__(HydraConfig)
    own.hydra, config.cfg = object(), object()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra.core.singleton.Singleton._instances", {
            **Singleton._instances, GlobalHydra: own, HydraConfig: config})  # fmt: skip
        assert spec_of(["seed=3"]).seed == 3
        assert GlobalHydra.instance() is own and HydraConfig.instance() is config
