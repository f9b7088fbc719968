"""`evaluate=` a network from elsewhere: a file, a function of a package, a model of RobustBench."""

import io
import json
import os
import pickle
import re
import shutil
import sys
import types
import warnings
import zipfile
from copy import deepcopy
from dataclasses import replace
from enum import Enum
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import small_network
from torch import nn

import sat as package
from sat import config
from sat.attacks import FastAutoAttack
from sat.attacks.ensemble import ATTACKS
from sat.errors import Refused, first_line
from sat.evaluation import robustbench
from sat.evaluation.external import is_network, of_network, refuse_training
from sat.evaluation.reproduction import Published, beside_card
from sat.evaluation.settings import Evaluation
from sat.models import card, programs
from sat.models.content import content_of
from sat.models.custom import Given
from sat.rundir.result import RunResult
from sat.training.preflight import check_network

FEW = ["evaluation.masking_checks=0", "evaluation.limit=40", "evaluation.attacks.pgd20.steps=2",
       "logger=[]"]  # fmt: skip
NETS = """
import torch
from torch import nn

class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

    def forward(self, x):
        return self.line(torch.relu(self.conv(x)).view(len(x), -1))

def fails():
    return 1 / 0

def leaves():
    raise SystemExit(3)

def number():
    return 3


def needs(images):
    return images.flatten(1)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A user's package, which this process has not imported."""
    folder = tmp_path / "theirs" / "their_nets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "zoo.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delenv("SAT_PLUGINS", raising=False)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "their_nets"]:
        del sys.modules[name]


def test_a_network_of_a_package_is_measured_like_a_run(sat, nets, tmp_path):
    from sat.data import Digits

    torch.manual_seed(3)  # 2 of 40 are right, without the normalisation 5
    weights = {"conv.weight": torch.randn(4, 1, 3, 3), "conv.bias": torch.randn(4),
               "line.weight": torch.randn(10, 144), "line.bias": torch.randn(10)}  # fmt: skip
    torch.save({"state_dict": weights}, tmp_path / "theirs.pt")
    asked = ["evaluate=their_nets.zoo:Viewing", f"model.weights={tmp_path / 'theirs.pt'}",
             "model.mean=[0.5]", "model.std=[0.25]", *FEW]  # fmt: skip
    done = sat(*asked, tiny=False)
    assert done.code == 0, done.err
    assert done.run.name.startswith("digits-their_nets.zoo_Viewing-")
    import their_nets.zoo

    net = their_nets.zoo.Viewing()
    net.load_state_dict(weights)
    data = Digits()(torch.device("cpu"), 0)
    ((x, y),) = data.test.stream([package.data.Batch(data.test_subset(40), None)])
    right = int((net((x - 0.5) / 0.25).argmax(1) == y).sum())
    assert done.result["last"]["clean"]["accuracy"] == right / 40 > 0
    assert "pgd20" in done.result["last"]["robust"] and done.result["parameters"] == 1490
    # asked again it is there; another evaluation is added; another network is another run
    more = "+attack@evaluation.attacks.other=fgsm"
    again = sat(*asked, more, tiny=False)
    assert again.code == 0 and {*again.result["last"]["robust"]} > {"pgd20", "other"}
    by_run = sat(f"evaluate={done.run}", tiny=False)
    assert by_run.code == 2 and "begin as before" in by_run.err
    with pytest.raises(ValueError, match="name="):
        package.load(done.run)
    loaded = package.load(done.run, model=net)
    assert torch.equal(loaded(x), net((x - 0.5) / 0.25))
    # so is another eps, under a name of its own
    taken = sat(*asked, "dataset.eps=20", tiny=False)
    assert taken.code == 2 and "measured in this run with other settings (eps)" in taken.err
    (words,) = re.findall(r"'(\+evaluation.*)'", taken.err)
    second = sat(*asked, words, tiny=False)
    assert second.code == 0 and second.result["last"]["robust"]["pgd20_20"]["eps"] == 20
    refused = sat(*asked, "activation=relu", tiny=False)
    assert refused.code == 2 and "is what it is" in refused.err
    assert len(refused.runs) == 1
    drawn = sat(*asked, "seed=1", tiny=False)  # which the attacks draw by
    names = sorted(run.name.rpartition("-")[0] for run in drawn.runs)
    title = "digits-their_nets.zoo_Viewing"
    assert drawn.code == 0 and names == [title, f"{title}-s1"], drawn.err


@pytest.mark.parametrize(
    "word, says",
    [
        ("their_nets.zoo:fails", r"fails\(\) fails \(ZeroDivisionError"),
        ("their_nets.zoo:number", "gives int; it must give a module"),
        ("their_nets.zoo:needs", r"'images'\); name a function without arguments that returns"),
        ("their_nets.zoo:none", "no such function"),
        ("their_nets.zoo:leaves", r"leaves\(\) fails \(SystemExit: 3\)"),
        ("their_nets.broken:net", r"importing their_nets.broken fails \(SyntaxError: .*line 1"),
        ("their_nets.leaving:net", r"importing their_nets.leaving fails \(SystemExit: 3\)"),
        ("their_nets.nowhere:net", "No module named .*their_nets must lie on PYTHONPATH"),
    ],
)
def test_what_a_factory_is_refused_for(nets, word, says):
    (nets / "broken.py").write_text("def net(:")
    (nets / "leaving.py").write_text("raise SystemExit(3)")
    assert is_network(word)
    with pytest.raises(ValueError, match=says):
        programs.open_factory(word, typed=True)


@pytest.mark.parametrize("word", [
    "attack=fgsm", "schedule.epochs=3", "schedule.precision=bf16", "+schedule/decay=step",
    "objective=trades", "augment=none", "~regulariser", "weight_attack=awp", "sampler=epochs",
    "validation.attack.steps=3", "metrics=gradient_norm",
])  # fmt: skip
def test_words_of_a_training_measure_nothing(word):
    with pytest.raises(Refused, match=rf"^{re.escape(word)}: nothing is trained with evaluate=x:y"):
        refuse_training(["evaluate=x:y", word], "x:y")


def test_words_of_a_measurement_are_none_of_a_training():
    kept = ["evaluation.attacks.a.steps=3", "+attack@evaluation.attacks.a=fgsm", "dataset=digits"]
    refuse_training(kept, "x:y")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_a_failing_network_says_is_one_line(nets):
    """Of TorchScript's many lines the last."""
    says = r"^model: fails on images .*three channels, please\); give it .*dataset="
    with pytest.raises(Refused, match=says):
        Given("x").bringing(lambda image: torch.jit.script(Picky()), "0")(1, 10, 8)


def test_the_kind_of_an_error_is_said_once():
    text = "The following fails in the TorchScript interpreter.\nRuntimeError: mat1 and mat2"
    assert first_line(RuntimeError(text)) == "RuntimeError: mat1 and mat2"


class Picky(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 3, "three channels, please"
        return x.flatten(1)


def test_foreign_code_runs_only_where_it_is_named(nets, monkeypatch):
    with pytest.raises(ValueError, match="SAT_PLUGINS=their_nets"):
        programs.open_factory("their_nets.zoo:Viewing", typed=False)
    assert "their_nets" not in sys.modules
    with pytest.raises(ValueError, match="opened only where it is named"):
        Given("their_nets.zoo:Viewing")(1, 10, 8)  # what a config holds
    monkeypatch.setenv("SAT_PLUGINS", "their_nets")
    make, _ = programs.open_factory("their_nets.zoo:Viewing", typed=False)
    assert type(make((1, 8, 8))).__name__ == "Viewing"


@pytest.mark.parametrize("hand", ["", "1"])
def test_a_file_is_opened_only_where_it_is_typed(tmp_path, monkeypatch, hand):
    """Not where a config names it, nor its `hydra.sweeper.params`, which stand in a job's words."""
    file, opened = tmp_path / "net.onnx", []
    file.write_bytes(b"onnx")
    monkeypatch.setattr(programs, "open_file", opened.append)
    monkeypatch.setenv("SAT_SWEEP_TYPED", hand)
    cfg, _ = config.compose([f"evaluate={file}"])
    for words in ([], [f"evaluate={file}"] if not hand else []):
        with pytest.raises(Refused, match=r"net.onnx: .*opened only where it is typed"):
            of_network(cfg, {}, words)
    assert not opened
    with pytest.raises(TypeError if hand else Refused):  # `append` gives no network
        of_network(cfg, {}, [f"evaluate={file}"])
    assert len(opened) == bool(hand)


# files ------------------------------------------------------------------------------------------

SAVED = {
    "script.pt": lambda net, at: torch.jit.trace(net, torch.zeros(2, 1, 8, 8)).save(at),
    "frozen.pt": lambda net, at: torch.jit.freeze(
        torch.jit.trace(net, torch.zeros(2, 1, 8, 8))).save(at),
    "program.pt2": lambda net, at: torch.export.save(
        torch.export.export(net, (torch.zeros(7, 1, 8, 8),)), at),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of one network, and it."""
    folder, net = tmp_path_factory.mktemp("saved"), small_network().eval()
    with torch.no_grad(), warnings.catch_warnings():  # whichever test asks first
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        net(torch.zeros(2, 1, 8, 8))
        for name, save in SAVED.items():
            save(net, folder / name)
    return folder, net


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SAVED)
def test_a_file_gives_its_network(saved, name):
    folder, net = saved
    assert is_network(str(folder / name))
    make, content = programs.open_file(folder / name)
    assert content == programs.open_file(folder / name)[1] and len(content) == 16
    found, x = Given(name).bringing(make, content)(1, 10, 8), torch.rand(9, 1, 8, 8)
    assert torch.allclose(found(x), net(x), atol=1e-5)
    (folder / "copy.bin").write_bytes((folder / name).read_bytes()[:-1])
    assert not is_network(str(folder / "copy.bin")) and not is_network(str(folder))


class Malicious:
    """Makes a folder where it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def with_member(path, ending, content, to):
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(to, "w") as other:
        for name in file.namelist():
            other.writestr(name, content if name.endswith(ending) else file.read(name))
    return to


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_is_loaded_with_a_program(saved, tmp_path):
    """What `torch.export.load` itself unpickles."""
    from torch.export.pt2_archive import constants

    program, marker = saved[0] / "program.pt2", tmp_path / "was here"
    buffer = io.BytesIO()
    torch.save(((Malicious(marker),), {}), buffer)
    bad = with_member(program, "sample_inputs/model.pt", buffer.getvalue(), tmp_path / "bad.pt2")
    config = json.dumps({"config": {"it": {"path_name": "opaque_obj_0", "is_param": False,
                                           "use_pickle": True, "tensor_meta": None}}})  # fmt: skip
    worse = with_member(program, "model_constants_config.json", config, tmp_path / "worse.pt2")
    with zipfile.ZipFile(worse, "a") as file:
        top = file.namelist()[0].split("/")[0]
        file.writestr(f"{top}/data/constants/opaque_obj_0", pickle.dumps(Malicious(marker)))
    opaque = hasattr(constants, "OPAQUE_OBJ_FILENAME_PREFIX")
    for path in (bad, worse)[: 1 + opaque]:  # torch 2.11 has no such objects
        with pytest.raises(ValueError, match="torch.export: holds objects other than tensors"):
            programs.open_file(path)
        assert not marker.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
        try:
            torch.export.load(path)
        except Exception:
            pass
        assert marker.exists()  # so it would have run
        marker.rmdir()
    compiled = tmp_path / "compiled.pt2"
    shutil.copy(program, compiled)
    with zipfile.ZipFile(compiled, "a") as file:
        file.writestr(f"{top}/data/aotinductor/model/it.so", b"")
    with pytest.raises(ValueError, match="compiled code"):
        programs.open_file(compiled)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.line = factor, nn.Linear(3, 2)

    def forward(self, x):
        return self.factor * self.line(x)


class Shifted(Scaled):
    def forward(self, x):
        return self.factor + self.line(x)


def test_two_networks_are_told_apart():
    def made(cls=Scaled, factor=1.0, seed=0):
        torch.manual_seed(seed)
        return cls(factor)

    def asking(net, sign):
        return lambda x: sign * net(x)

    nets = [made(), made(factor=2.0), made(seed=1), made(Shifted), nn.Sequential(made())]
    nets += [asking(made(), 1), asking(made(), -1), asking(made(seed=1), 1), made().forward]
    assert len({content_of(net) for net in nets}) == len(nets)
    assert content_of(made()) == content_of(made().train()) == content_of(made().eval())
    assert content_of(made()) == content_of(made().requires_grad_(False)), "measures the same"


class Holding(nn.Module):
    """A module of one value, which is no parameter of it."""

    def __init__(self, held, **more):
        super().__init__()
        self.held = held

    def get_extra_state(self):
        return "no tensor"


class Buffered(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.register_buffer("held", torch.tensor(held), persistent=False)


class Calling:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


def line(value):
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, value), nn.init.zeros_(net.bias)
    return net


def around(held):
    return lambda x: held


HOLDERS = [
    lambda v: Calling(line(v)),
    lambda v: around([line(v)]),
    lambda v: around(torch.tensor(v)),
    lambda v: around(around(line(v))),
    lambda v: around({"a": (np.float32(v), np.array([v]))}),
    lambda v: partial(torch.add, other=torch.tensor(v)),
    lambda v: Holding(torch.tensor(v)),
    lambda v: Holding({"mean": [v]}),
    lambda v: Holding(around({line(v)})),
    lambda v: Buffered(v),
    lambda v: torch.tensor([v, 1.0]).mul,
    lambda v: Calling(line(v)).__call__,
    lambda v: torch.jit.script(line(v)),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("held", HOLDERS)
def test_what_a_network_holds_tells_it(held):
    one, again, other = held(1.0), held(1.0), held(2.0)
    assert content_of(one) == content_of(again) != content_of(other)


def test_what_cant_be_told_is_never_taken_as_known():
    endless = Holding(iter([1]))
    assert content_of(endless) != content_of(endless)
    endless.held = endless.__dict__  # a circle can
    assert content_of(endless) == content_of(endless)
    net, copy = small_network().eval(), small_network().eval()
    with torch.no_grad():
        net(torch.rand(2, 1, 8, 8)), copy(torch.rand(2, 1, 8, 8))
    copy.load_state_dict(net.state_dict())
    assert content_of(net) == content_of(copy) == content_of(deepcopy(net))
    program = torch.export.export(net, (torch.zeros(7, 1, 8, 8),)).module()
    assert content_of(program) == content_of(program)


def test_a_class_of_a_notebook_is_told_by_its_code():
    """It has no file that its source could be read from."""
    texts = ["2 * x", "2 * x", "3 * x"]
    made = []
    for text in texts:
        names = {"nn": nn, "__name__": "__main__"}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {text}\n", names)
        made.append(content_of(names["Net"]()))
    assert made[0] == made[1] != made[2]


# what would end an evaluation -----------------------------------------------------------------


def test_a_network_is_checked_before_it_is_measured():
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    net, strong = small_network(), FastAutoAttack(8)
    with torch.no_grad():
        net(x)
    masked = nn.Sequential(net, MinusInfinity())
    check_network(masked, Evaluation(attacks={"strong": strong}), x, y)
    with pytest.raises(Refused, match="the model 10 classes"):
        check_network(net, Evaluation(attacks={"strong": strong}), x, y + 5)
    blind = nn.Sequential(net, Rounded())
    with pytest.raises(Refused, match="no gradient.*only Square measures it"):
        check_network(blind, Evaluation(attacks={"strong": strong}), x, y)
    square = FastAutoAttack(8, attacks=("square",))
    check_network(blind, Evaluation(attacks={"strong": square}), x, y)


class MinusInfinity(nn.Module):
    def forward(self, logits):
        return torch.cat([logits[:, :9], torch.full_like(logits[:, 9:], -torch.inf)], 1)


class Rounded(nn.Module):
    def forward(self, logits):
        return logits.detach().round()


# ONNX -------------------------------------------------------------------------------------------


def stand_in(monkeypatch, net, theirs, error=None):
    """`onnx2torch` and `onnxruntime`, as far as they are called."""

    def convert(path):
        if error:
            raise NotImplementedError(error)
        return net

    class InferenceSession:
        def __init__(self, path, providers):
            pass

        def get_inputs(self):
            return [types.SimpleNamespace(name="x", shape=["batch", 1, 8, 8])]

        def run(self, outputs, given):
            return [theirs(torch.from_numpy(given["x"])).detach().numpy()]

    monkeypatch.setitem(sys.modules, "onnx2torch", types.SimpleNamespace(convert=convert))
    session = types.SimpleNamespace(InferenceSession=InferenceSession)
    monkeypatch.setitem(sys.modules, "onnxruntime", session)


def test_an_onnx_file_is_checked_against_onnxruntime(saved, tmp_path, monkeypatch):
    net, path = saved[1], tmp_path / "net.onnx"
    path.write_bytes(b"onnx")
    assert is_network(str(path))
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ValueError, match="needs onnx2torch; pip install .onnx2torch"):
        programs.open_file(path)
    stand_in(monkeypatch, net, net)
    make, content = programs.open_file(path)
    assert make((1, 8, 8)) is net and content.endswith(content_of(net))
    stand_in(monkeypatch, net, lambda x: net(x) + 0.1)
    with pytest.raises(ValueError, match="other logits than onnxruntime"):
        programs.open_file(path)[0]((1, 8, 8))
    stand_in(monkeypatch, net, net, "(OperationDescription(operation_type='Reshape', version=19))")
    with pytest.raises(ValueError, match="operation Reshape .*dynamo=False"):
        programs.open_file(path)


@pytest.mark.skipif(find_spec("onnx2torch") is None, reason="the extra onnx is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_real_onnx_file(saved, tmp_path):
    _, net = saved
    torch.onnx.export(net, (torch.zeros(4, 1, 8, 8),), tmp_path / "net.onnx", dynamo=False)
    make, content = programs.open_file(tmp_path / "net.onnx")
    found, x = Given().bringing(make, content)(1, 10, 8), torch.rand(5, 1, 8, 8)
    assert torch.allclose(found(x), net(x), atol=1e-5)


# RobustBench ------------------------------------------------------------------------------------

README = """
### CIFAR-10

#### Linf, eps=8/255
| <sub>#</sub> | <sub>Model ID</sub> | <sub>Paper</sub> | <sub>Clean accuracy</sub> |
|:---:|---|---|:---:|
| <sub>**1**</sub> | <sub><sup>**Ours2026Net**</sup></sub> | <sub>*[A title: Said](https://a.b/c)*</sub> | <sub>90.25%</sub> | <sub>61.50%</sub> | <sub>WideResNet-28-10</sub> | <sub>NeurIPS 2026</sub> |

#### L2, eps=0.5
| <sub>**1**</sub>  | <sub><sup>**Ours2026Net**</sup></sub>  | <sub>*[Another](https://a.b/d)*</sub> |     <sub>95.5%</sub>     | <sub>80.1%</sub> | <sub>RN-18</sub> | <sub>2026</sub> |
"""  # noqa: E501


@pytest.fixture
def zoo(monkeypatch):
    """A package of RobustBench's form with one model, whose weights are in no file."""
    datasets = Enum("BenchmarkDataset", {n: n for n in ("cifar10", "cifar100", "imagenet")})
    threats = Enum("ThreatModel", {"Linf": "Linf", "L2": "L2"})
    net, asked = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), []

    def load_model(name, model_dir, dataset, threat_model):
        asked.append((model_dir, dataset, os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")))
        return net

    utils = types.ModuleType("robustbench.utils")
    known = {dataset: {threat: {"Ours2026Net": {}} for threat in threats} for dataset in datasets}
    vars(utils).update(all_models=known, BenchmarkDataset=datasets, ThreatModel=threats,
                       load_model=load_model, asked=asked)  # fmt: skip
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    described = types.SimpleNamespace(json={"description": README})
    monkeypatch.setattr(robustbench, "metadata", lambda name: described)
    monkeypatch.setattr(robustbench, "version", lambda name: "1.1.1")
    monkeypatch.delitem(sys.modules, "autoattack", raising=False)
    monkeypatch.delitem(sys.modules, "autoattack.state", raising=False)
    yield utils
    for name in ("autoattack", "autoattack.state"):
        sys.modules.pop(name, None)


def plain(dataset="cifar10", norm="linf", weights=None):
    return {"choices": {"dataset": dataset}, "dataset": {"norm": norm},
            "model": {"weights": weights}}  # fmt: skip


def test_a_model_of_robustbench_comes_with_its_card(zoo):
    asked = plain(weights="elsewhere")
    make, content = robustbench.opened("robustbench:Ours2026Net", asked, typed=True)
    assert zoo.asked == [("elsewhere", "cifar10", "1")] and asked["model"]["weights"] is None
    assert content.startswith("cifar10-Linf-Ours2026Net-") and callable(make((3, 32, 32)))
    told = Published.of(asked["published"])
    assert "RobustBench 1.1.1: A title: Said" == told.source
    assert told.network == "WideResNet-28-10"
    assert [(n.attack, n.percent, n.eps) for n in told.numbers] == [
        ("clean", 90.25, None), ("autoattack", 61.5, 8.0)]  # fmt: skip
    robustbench.opened("robustbench:Ours2026Net", in_l2 := plain(norm="l2"), typed=True)
    assert [n["percent"] for n in in_l2["published"]["numbers"]] == [95.5, 80.1]
    assert in_l2["published"]["numbers"][1]["eps"] == 127.5
    robustbench.opened("robustbench:Ours2026Net", uncarded := plain("imagenet"), typed=True)
    assert "published" not in uncarded


@pytest.mark.parametrize("text", ['{"clean_acc": "90.1"}', "[]", "no json"])
def test_a_card_of_another_form_is_left_out(zoo, text, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "model_info" / "cifar10" / "Linf").mkdir(parents=True)
    (folder / "Ours2026Net.json").write_text(text)
    robustbench.opened("robustbench:Ours2026Net", asked := plain(), typed=True)
    assert "published" not in asked and "its card can't be read" in caplog.text


@pytest.mark.parametrize(
    "word, asked, says",
    [
        ("robustbench:Ours2026Nut", plain(), "no such Linf model for cifar10; there are Ours2026"),
        ("robustbench:Ours2026Net", plain("digits"), "dataset=digits: RobustBench has no such"),
        ("robustbench:Ours2026Net", plain(norm="l1"), "dataset.norm=l1: RobustBench has no such"),
    ],
)
def test_what_of_robustbench_is_refused(zoo, word, asked, says):
    with pytest.raises(ValueError, match=says):
        robustbench.opened(word, asked, typed=True)


def test_robustbench_is_said_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(ValueError, match="pip install --no-deps robustbench==1.1.1"):
        robustbench.opened("robustbench:Ours2026Net", plain(), typed=True)
    with pytest.raises(ValueError, match="typed"):
        robustbench.opened("robustbench:Ours2026Net", plain(), typed=False)


def test_the_card_beside_what_was_measured(default_run):
    result = RunResult.read(default_run)
    pgd20, alike = result.last.robust["pgd20"], {"attack": "FastAutoAttack", "attacks": ATTACKS}
    strong = replace(pgd20, settings=alike)
    weak = replace(pgd20, settings={**alike, "attacks": ATTACKS[:1]})
    result = result.with_part("last", replace(result.last, robust={"strong": strong}))
    numbers = [{"attack": "clean", "percent": 90.0, "checkpoint": "last", "images": 50},
               {"attack": "autoattack", "percent": 60.0, "checkpoint": "last", "images": 50,
                "eps": 8.0}]  # fmt: skip
    published = Published.of({"source": "S", "network": "N", "numbers": numbers})
    *_, clean, robust = beside_card(published, result).splitlines()
    here = 100 * result.last.clean.accuracy
    assert clean.split() == ["clean", "90.00", f"{here:.2f}", f"{here - 90:+.2f}"]
    assert robust.endswith("measured with eps=38, where 8 is published")
    alike = replace(strong, eps=8.0)

    def said(**robust) -> str:
        at = result.with_part("last", replace(result.last, robust=robust))
        return beside_card(published, at).splitlines()[-1]

    assert said(strong=replace(alike, norm="l2")).endswith("in l2, where linf is published")
    assert said(autoattack=pgd20, strong=weak).endswith("not measured")
    for other in ({"attacks": [*ATTACKS, "apgd-pma"]}, {"patience": 1.0}):
        weaker = replace(alike, settings={**alike.settings, **other})
        assert said(strong=weaker).endswith("not measured")
    assert said(other=strong, mine=alike).endswith(f"{100 * alike.accuracy - 60:+.2f}")


def test_autoattack_as_robustbench_calls_it(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "autoattack", raising=False)
    robustbench.provide_autoattack()
    try:
        from autoattack import AutoAttack
        from autoattack.state import EvaluationState

        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
        x, log, state = torch.rand(6, 1, 8, 8), tmp_path / "log.txt", tmp_path / "state.json"
        y = net(x).argmax(1)
        adversary = AutoAttack(net, norm="Linf", eps=0.2, version="custom", device="cpu",
                               attacks=["apgd-ce"], log_path=str(log))  # fmt: skip
        found = adversary.run_standard_evaluation(x, y, bs=4, state_path=state)
        assert found.shape == x.shape and (found - x).abs().max() <= 0.2 + 1e-6
        assert (net(found).argmax(1) == y).float().mean() < 1 and "accuracy" in log.read_text()
        flags = EvaluationState.from_disk(state).robust_flags
        assert flags.mean().item() == (net(found).argmax(1) == y).float().mean().item()
        with pytest.raises(ValueError, match="does not go on from a state"):
            adversary.run_standard_evaluation(x, y, bs=4, state_path=state)
    finally:
        for handler in adversary.logger.handlers[:]:
            adversary.logger.removeHandler(handler)
            handler.close()
        for name in ("autoattack", "autoattack.state"):
            sys.modules.pop(name, None)


@pytest.mark.skipif(find_spec("robustbench") is None, reason="robustbench is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_real_wheel(tmp_path):
    """A model of its zoo from a local folder, and the card that the wheel brings."""
    asked = plain(weights=str(tmp_path))
    zoo = robustbench._imported(typed=True)
    models = zoo.all_models[zoo.BenchmarkDataset("cifar10")][zoo.ThreatModel("Linf")]
    net, place = models["Wong2020Fast"]["model"](), tmp_path / "cifar10" / "Linf"
    place.mkdir(parents=True)
    torch.save({"state_dict": net.state_dict()}, place / "Wong2020Fast.pt")
    make, _ = robustbench.opened("robustbench:Wong2020Fast", asked, typed=True)
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(make((3, 32, 32))(x), net.eval()(x))
    assert [n["percent"] for n in asked["published"]["numbers"]] == [83.34, 43.21]
    torch.save({"state_dict": Malicious(tmp_path / "was here")}, place / "Wong2020Fast.pt")
    with pytest.raises(ValueError, match="can't be loaded"):
        robustbench.opened("robustbench:Wong2020Fast", plain(weights=str(tmp_path)), typed=True)
    assert not (tmp_path / "was here").exists()


def test_a_run_has_a_card_of_its_form(ran, monkeypatch, capsys):
    from sat.models.command import main

    assert main([str(ran.run), "--card"]) == 2 and "is of digits" in capsys.readouterr().err
    monkeypatch.setitem(card.IMAGES, "digits", 50)
    told, measured = ran.result, ran.result["best"]["robust"]["pgd20"]

    def named_autoattack(norm="linf", **settings) -> None:
        alike = {**measured["settings"], "attack": "AutoAttack", "version": "standard"}
        settings = {**alike, **settings}
        told["best"]["robust"] = {"autoattack": {**measured, "norm": norm, "settings": settings}}
        (ran.run / "result.json").write_text(json.dumps(told))

    for wrong in ({"attack": "PGD"}, {"version": "rand"}, {"norm": "l2"}):
        named_autoattack(**wrong)
        with pytest.raises(ValueError, match="version in linf on 50 test images; .*evaluate="):
            card.card_of(ran.run)
    named_autoattack()
    assert main([str(ran.run), "--card"]) == 0
    found = json.loads(capsys.readouterr().out)
    clean, robust = told["best"]["clean"], told["best"]["robust"]["autoattack"]
    assert found["clean_acc"] == f"{100 * clean['accuracy']:.2f}"
    assert found["autoattack_acc"] == f"{100 * robust['accuracy']:.2f}"
    assert (found["eps"], found["architecture"]) == ("38/255", "ResNet-10-0.0625")
    keys = "link name authors additional_data number_forward_passes dataset venue architecture eps"
    assert {*found} == {*keys.split(), "clean_acc", "reported", "autoattack_acc"}
