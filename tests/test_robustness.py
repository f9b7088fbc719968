"""`sat.evaluate`: any network that maps images to logits, measured in one call."""

import errno
import io
import json
import multiprocessing
import re
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_network, trained_on_digits
from torch import nn

import sat
from sat.attacks import PGD, FastAutoAttack, Square
from sat.attacks.base import input_gradient
from sat.attacks.square import SquareSearch
from sat.evaluation.masking_checks import InParts
from sat.loggers import screen
from sat.models.foreign import Foreign, as_images
from sat.rundir.checkpoint import Unwritable

CPU = torch.device("cpu")
EPS = 25
QUICK = FastAutoAttack(EPS, attacks=("apgd-ce", "square"))


@pytest.fixture(scope="module", autouse=True)
def short_search():
    """A hundred queries in place of 5,000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sat.attacks.ensemble.SquareSearch", partial(SquareSearch, iterations=100))
        yield


@pytest.fixture(scope="module")
def digits():
    """A robust network, and 60 images with labels; some are wrong when clean, some fall."""
    model, x, y = trained_on_digits(small_network(), 6, 64)
    return model, x[:60], y[:60]


@pytest.fixture(scope="module")
def plain(digits):
    return sat.evaluate(*digits, attack=QUICK, masking_checks=0, progress=False)


def test_an_attack_has_a_bar_where_it_is_wanted(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model, x = small_network().eval(), torch.rand(8, 1, 8, 8)
    shown = {}
    for progress in (True, False):
        sat.evaluate(
            model, x, model(x).argmax(1), attack=PGD(EPS, 2), masking_checks=0, progress=progress
        )
        shown[progress] = capsys.readouterr().err
    assert "looking at the network" in shown[True] and "PGD: " in shown[True]
    assert shown[False] == ""


def test_a_notebook_has_bars_too(monkeypatch):
    """Its cells are no terminal."""
    kernels = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", kernels())
    with screen.showing(True, "looking"):
        bar = screen.Progress("here", 8)
        bar.show()
        bar.close()
    assert "here" in sys.stderr.getvalue()


def quick(model, x, y, **options):
    options = {"attack": QUICK, "masking_checks": 0, "progress": False, **options}
    return sat.evaluate(model, x, y, **options)


def test_what_it_says_is_so(digits, plain):
    model, x, y = digits
    with torch.no_grad():
        clean, attacked = (model(images).argmax(1) == y for images in (x, plain.adversarial))
    assert plain.clean.accuracy == int(clean.sum()) / 60 < 1
    assert torch.equal(attacked, plain.standing) and 0 < plain.standing.sum() < clean.sum()
    assert plain.robust.accuracy == int(plain.standing.sum()) / 60
    assert (plain.adversarial - x).abs().max() <= EPS / 255 + 1e-6
    assert plain.adversarial.min() >= 0 and plain.adversarial.max() <= 1
    assert torch.equal(plain.adversarial[plain.standing], x[plain.standing])
    assert sum(plain.felled.values()) == clean.sum() - plain.standing.sum()
    assert [*plain.felled] == ["apgd-ce", "square"]
    low, high = plain.robust.ci95
    assert low < plain.robust.accuracy < high
    own = {k: plain.standing[y == k].float().mean().item() for k in range(10)}
    assert plain.classes == pytest.approx(own) and own[plain.worst_class] == min(own.values())


def test_the_table_has_every_number(digits, plain):
    text = str(plain)
    assert "FastAutoAttack, linf, eps 25/255: 60 images" in text
    for word in ("clean", "apgd-ce", "square", "robust", f"worst class {plain.worst_class}"):
        assert word in text
    for part in (plain.clean, plain.robust):
        assert f"{part.accuracy:.1%}".replace("%", " %") in text


def test_a_result_can_be_compared_kept_in_a_set_and_shown_in_a_notebook(plain):
    assert plain == plain and plain != deepcopy(plain) and plain in {plain}
    shown = []
    plain._repr_pretty_(SimpleNamespace(text=shown.append), False)
    assert shown == [str(plain)]


def test_it_is_saved_as_json_and_npz(plain, tmp_path):
    plain.save(tmp_path / "out.v1")
    told = json.loads((tmp_path / "out.v1.json").read_text())
    assert told["robust"]["accuracy"] == plain.robust.accuracy
    assert told["attack"]["eps"] == EPS and told["felled"] == plain.felled
    arrays = np.load(tmp_path / "out.v1.npz")
    assert np.array_equal(arrays["standing"], plain.standing.numpy())
    assert np.array_equal(arrays["adversarial"], plain.adversarial.numpy())


def test_a_network_with_masked_gradients_is_doubted(digits):
    model, x, y = digits
    flat = nn.Sequential(model, nn.Softmax(1))
    found = sat.evaluate(flat, x, y, attack=PGD(EPS, 5), masking_checks=40, progress=False)
    assert "saturated" in [alarm.name for alarm in found.alarms]
    assert "! saturated: attacks by gradients may be blind" in str(found)
    assert "\nchecked for masked gradients on 30 of 60 images: " in str(found)
    honest = sat.evaluate(model, x, y, EPS, attack="pgd20", masking_checks=40, progress=False)
    assert honest.masking_checks.images == 30 and "saturated" not in str(honest)
    assert honest.attack["name"] == "pgd20"


def test_the_checks_ask_no_more_images_at_once_than_may_be(digits):
    model, x, y = digits
    whole = quick(model, x, y, attack=PGD(EPS, 3), masking_checks=40).masking_checks
    asked = {False: set(), True: set()}  # without and with a gradient

    def counting(images):
        asked[images.requires_grad].add(len(images))
        return model(images)

    for size, most in ((9, 9), (2, 8)):
        found = quick(counting, x, y, attack=PGD(EPS, 3), masking_checks=40, batch_size=size)
        assert found.masking_checks.curve == whole.curve
        assert found.masking_checks.alarms == whole.alarms
        assert [max(sizes) for sizes in asked.values()] == [most, most]
        asked = {kind: set() for kind in asked}


def test_the_gradient_of_a_network_in_parts_is_its_own(digits):
    model, x, y = digits
    gradients = [input_gradient(net, x, y) for net in (model, InParts(model, 9))]
    torch.testing.assert_close(*gradients)


def test_parts_of_a_large_set_are_searched_alike(digits, monkeypatch, caplog):
    """By its first images, whatever is true of those of a part."""
    model, x, y = digits
    x = x.clone()
    x[:, 0, 0, 0] = (torch.arange(60) >= 8).float()
    late = lambda x: torch.where(x[:, 0, 0, 0, None] > 0.5, model(x).round(), model(x))  # noqa: E731
    whole = quick(late, x, y)
    monkeypatch.setattr("sat.evaluation.robustness.CHUNK", 20 * x[0].numel() * 4)
    with caplog.at_level("WARNING", "sat"):
        assert torch.equal(quick(late, x, y).standing, whole.standing)
    assert "rounded" not in caplog.text


class Killed(Exception):
    pass


@pytest.mark.parametrize("attack, after", [(QUICK, 900), (PGD(EPS, 3), 340)])
def test_a_killed_evaluation_goes_on(digits, tmp_path, attack, after, monkeypatch):
    model, x, y = digits
    whole = quick(lambda images: model(images), x, y, attack=attack, batch_size=20)
    monkeypatch.setattr("sat.evaluation.state.KEEP_EVERY", 0.0)
    calls, state = [], tmp_path / "state.npz"

    def dying(images):
        calls.append(len(images))
        if sum(calls) > after:
            raise Killed
        return model(images)

    with pytest.raises(Killed):
        quick(dying, x, y, attack=attack, batch_size=20, state=state)
    with np.load(state) as kept:
        decided = int(((kept["fell"] >= 0) | (kept["passed"] > 0)).sum())
    assert 0 < decided
    calls.clear()
    dying_no_more = lambda images: calls.append(len(images)) or model(images)  # noqa: E731
    again = quick(dying_no_more, x, y, attack=attack, batch_size=20, state=state)
    assert torch.equal(again.standing, whole.standing)
    assert again.felled == whole.felled
    with torch.no_grad():  # in batches of other sizes the search rounds otherwise
        assert torch.equal(model(again.adversarial).argmax(1) == y, whole.standing)
    calls.clear()
    # nothing is attacked any more
    quick(dying_no_more, x, y, attack=attack, batch_size=np.int64(20), state=state)
    assert sum(calls) < 600  # what is asked of the network itself
    for key, other in (("attack", {"seed": 1}), ("images", {})):
        pixels = x if key == "attack" else x.flip(0)
        with pytest.raises(ValueError, match=rf"state=.*is of another {key}; name another file"):
            quick(dying_no_more, pixels, y, attack=attack, batch_size=20, state=state, **other)
    with pytest.raises(ValueError, match="is of another images; name another file"):  # fewer
        quick(dying_no_more, x[:9], y[:9], attack=attack, batch_size=20, state=state)
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match="is no state of an evaluation"):
        quick(model, x, y, state=tmp_path / "junk.npz")


def test_a_state_is_gone_on_with_in_batches_of_another_size(digits, plain, tmp_path):
    """Also one whose file tells the usual size, as those of before do."""
    path = tmp_path / "state"
    quick(*digits, state=path)
    with np.load(path) as kept:
        assert json.loads(str(kept["attack"]))["batch_size"] == "auto"
    again = quick(*digits, batch_size=20, state=path)
    assert torch.equal(again.standing, plain.standing) and again.attack["batch_size"] == 20
    with pytest.raises(ValueError, match="is of another attack"):
        quick(*digits, batch_size=20, state=path, seed=1)


def test_a_state_is_not_taken_for_that_of_another_model(digits, tmp_path):
    """What normalises keeps no tensors, and a function nothing that could be compared."""
    model, x, y = digits
    module = lambda change: Changed(model, change)  # noqa: E731
    function = lambda change: lambda images: model(change(images))  # noqa: E731
    for number, wrap in enumerate((module, function)):
        asked = {"attack": PGD(EPS, 1), "state": tmp_path / str(number)}
        once = quick(wrap(lambda images: images), x, y, **asked)
        assert torch.equal(quick(wrap(lambda images: 1 * images), x, y, **asked).standing,
                           once.standing)  # fmt: skip
        with pytest.raises(ValueError, match="is of another model; name another file"):
            quick(wrap(lambda images: 1 - images), x, y, **asked)


class Changed(nn.Module):
    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.net(self.change(x))


def test_a_model_that_gives_no_tensor_is_told_at_once(digits):
    model, x, y = digits
    for give, says in (
        (lambda z: {"out": z}, "gives dict, .*: lambda x: model(x)['out']"),
        (lambda z: {"out": z, "logits": z}, "gives dict, .*: lambda x: model(x)['logits']"),
        (
            lambda z: SimpleNamespace(logits=z),
            "gives SimpleNamespace, .*: lambda x: model(x).logits",
        ),
        (lambda z: (z,), "gives tuple, .*: lambda x: model(x)[0]"),
        (lambda z: z.detach().numpy(), "gives ndarray, .*; give a tensor"),
        (lambda z: None, "gives NoneType, .*; give a tensor"),
    ):
        words = ".*".join(map(re.escape, says.split(".*")))
        with pytest.raises(ValueError, match=f"{words}$"):
            quick(lambda x, give=give: give(model(x)), x, y, attack=PGD(EPS, 1))


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, images):
        return self.net(images)

    def answer(self, images):
        return sum(net(images) for net in [self.net])


HOLDING = {
    "closure": lambda net: lambda images: net(images),
    "default": lambda net: lambda images, net=net: net(images),
    "list": lambda net, *nets: (lambda nets: lambda images: nets[0](images))([net]),
    "partial": lambda net: partial(torch.func.functional_call, net, {}),
    "object": Holder,
    "method": lambda net: Holder(net).answer,
    "object in a closure": lambda net: (lambda held: lambda images: held.net(images))(Holder(net)),
}


@pytest.mark.parametrize("kind", HOLDING)
def test_statistics_of_a_network_in_a_function_are_put_back(digits, kind):
    """It is refused, as its answers go by the batch: the user mends it and asks again."""
    model, x, y = digits
    net = copied(model).train()
    net.register_buffer("expanded", torch.zeros(1).expand(3))  # can't be written, nor has it moved
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="model.eval()"):
        quick(HOLDING[kind](net), x, y, attack=PGD(EPS, 1))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Hiding(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.nets = [net]

    def forward(self, images):
        return self.nets[0](images)


OUT_OF_SIGHT = {
    "in a list": Hiding,
    "traced": lambda net: torch.jit.trace(net, torch.zeros(4, 1, 8, 8), check_trace=False),
    "exported": lambda net: torch.export.export(net, (torch.zeros(4, 1, 8, 8),)).module(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", OUT_OF_SIGHT)
def test_statistics_of_modules_out_of_sight_are_put_back(digits, kind):
    net = copied(digits[0]).train()
    model = OUT_OF_SIGHT[kind](net)
    held = {**dict(net.named_buffers()), **dict(model.named_buffers(prefix="model"))}
    before = {name: value.clone() for name, value in held.items()}
    with pytest.raises(ValueError, match="model.eval()"):
        quick(model, *digits[1:], attack=PGD(EPS, 1))
    assert before and all(torch.equal(before[name], value) for name, value in held.items())


def test_threads_are_answered_one_after_the_other(digits):
    """Modes of a model and the precision of products are shared by all of them."""
    model, x, y = digits
    began, came, met = threading.Event(), threading.Event(), []

    def first(images):
        if not began.is_set():
            began.set()
            met.append(came.wait(0.3))
        return model(images)

    def second(images):
        came.set()
        return model(images)

    thread = threading.Thread(target=quick, args=(first, x, y), kwargs={"attack": PGD(EPS, 1)})
    thread.start()
    assert began.wait(60)
    quick(second, x, y, attack=PGD(EPS, 1))
    thread.join()
    assert met == [False] and came.is_set()


def test_a_forked_process_waits_for_no_thread_of_its_parent(digits):
    """It has none of them, and the one that measures would never be done."""
    model, x, y = digits
    began, over = threading.Event(), threading.Event()

    def slow(images):
        began.set()
        over.wait(120)
        return model(images)

    thread = threading.Thread(target=quick, args=(slow, x[:2], y[:2]), kwargs={"attack": PGD(8, 1)})
    thread.start()
    assert began.wait(60)
    child = multiprocessing.get_context("fork").Process(
        target=quick, args=(model, x[:2], y[:2]), kwargs={"attack": PGD(8, 1)}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child.start()
    child.join(60)
    ended = child.exitcode
    child.kill()
    over.set()
    thread.join()
    assert ended == 0


def test_weights_of_inference_mode_are_refused(digits):
    model, x, y = digits
    with torch.inference_mode():
        made = deepcopy(model)
    with pytest.raises(ValueError, match="copy.deepcopy"):
        quick(made, x, y)
    quick(deepcopy(made), x[:2], y[:2], attack=PGD(EPS, 1))


@contextmanager
def float64_by_default():
    """Which what is done within must leave as it is."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("norm, eps", [("linf", EPS), ("l2", 70), ("l1", "1.2/1")])
def test_another_default_dtype_moves_no_number(digits, norm, eps):
    model, x, y = digits
    asked = {"eps": eps, "norm": norm, "masking_checks": 4}
    usual = [quick(model, x[:12], y[:12], attack=a, **asked) for a in ("strong", "pgd20")]
    with float64_by_default():
        found = [quick(model, x[:12], y[:12], attack=a, **asked) for a in ("strong", "pgd20")]
    for one, other in zip(usual, found, strict=True):
        assert torch.equal(one.adversarial, other.adversarial)
        checks = [part.masking_checks.as_json() | {"seconds": 0} for part in (one, other)]
        assert checks[0] == checks[1]


def test_a_compiled_module_is_measured_as_what_was_compiled(digits, plain, monkeypatch):
    model, x, y = digits
    compiled = torch.compile(model, backend="eager")
    monkeypatch.setattr(type(compiled), "forward", None)  # is asked for nothing
    assert torch.equal(quick(compiled, x, y).standing, plain.standing)


# networks of every kind --------------------------------------------------------------------------


class Remembering(nn.Module):
    """Keeps a tensor of its last graph, and a lock: no copy can be made."""

    def __init__(self, net):
        super().__init__()
        self.net, self.lock, self.last = net, threading.Lock(), None

    def forward(self, x):
        with self.lock:
            self.last = self.net[0](x)
            return self.net[1:](self.last)


class Viewing(nn.Module):
    """Flattens by a view, which wants the usual layout."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        for layer in self.net:
            x = x.view(len(x), -1) if isinstance(layer, nn.Flatten) else layer(x)
        return x


class Single(nn.Module):
    """Takes batches of one size alone."""

    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        if len(x) != self.size:
            raise RuntimeError(f"expected {self.size} images, got {len(x)}")
        return self.net(x)


class Halving(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(2 * x.mul_(0.5))


def copied(model):
    other = small_network()
    other.load_state_dict(model.state_dict())
    return other.eval()


def pruned(net):
    from torch.nn.utils import prune

    prune.identity(net[0], "weight")  # a hook that makes the weight in each forward
    return net


def weight_normed(net):
    with torch.no_grad():
        net(torch.zeros(1, 1, 8, 8))
    torch.nn.utils.weight_norm(net[0])
    return net


def traced(net):
    return torch.jit.trace(net, torch.zeros(4, 1, 8, 8))


def exported(net, **dynamic):
    return torch.export.export(net, (torch.zeros(7, 1, 8, 8),), **dynamic).module()


KINDS = {
    "a function": lambda net: lambda x: net(x),
    "that squeezes": lambda net: lambda x: net(x).squeeze(),
    "that changes its images": lambda net: lambda x: net(2 * x.mul_(0.5)),
    "a module that changes its images": lambda net: Halving(net),
    "pruned": pruned,
    "parametrised": lambda net: (
        nn.utils.parametrizations.weight_norm(net[0]), net)[1],
    "weight_norm": pytest.param(weight_normed),
    "stored graph and lock": Remembering,
    "views": Viewing,
    "traced": traced,
    "frozen": lambda net: torch.jit.freeze(traced(net)),
    "exported for 7": exported,
    "exported for any": lambda net: exported(
        net, dynamic_shapes=({0: torch.export.Dim("n")},)
    ),
    "one at a time": lambda net: Single(net, 1),
    "37 at a time": lambda net: Single(net, 37),
    "in train mode": lambda net: net.train(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_are_measured_alike(digits, plain, kind):
    model, x, y = digits
    build = KINDS[kind].values[0] if hasattr(KINDS[kind], "values") else KINDS[kind]
    net = build(copied(model))
    walked = isinstance(net, nn.Module) and kind != "frozen"
    modes = [m.training for m in net.modules()] if walked else []
    found = quick(net, x, y)
    assert torch.equal(found.standing, plain.standing)
    assert found.clean.accuracy == plain.clean.accuracy
    if modes:
        assert [m.training for m in net.modules()] == modes
        assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_flat_images(digits, plain):
    model, x, y = digits
    found = quick(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), model), x.flatten(1), y)
    assert torch.equal(found.standing, plain.standing)
    assert torch.equal(found.adversarial, plain.adversarial.flatten(1))
    assert as_images(torch.zeros(2, 12)).shape == (2, 1, 3, 4)


def test_images_of_inference_mode(digits, plain):
    model, x, y = digits
    with torch.inference_mode():
        x, y = x.clone(), y.clone()
    found = quick(model, x, y)
    assert torch.equal(found.standing, plain.standing)
    assert torch.equal(found.adversarial, plain.adversarial)


def test_an_evaluation_under_inference_mode_has_its_gradients(digits, plain):
    model, x, y = digits
    with torch.inference_mode():
        found = quick(model, x.clone(), y.clone())
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found.adversarial, plain.adversarial)


def test_eps_may_be_a_number_of_torch(digits):
    asked = {"attack": "pgd20", "eps": torch.tensor(25.0)}
    found = quick(digits[0], *(part[:8] for part in digits[1:]), **asked)
    assert found.attack["eps"] == 25


def test_a_sparse_buffer_is_told_from_another(digits, tmp_path):
    model, asked = copied(digits[0]), {"attack": PGD(EPS, 1), "state": tmp_path / "state"}
    model.register_buffer("mask", torch.eye(3).to_sparse())
    once = quick(model, *digits[1:], **asked)
    assert torch.equal(quick(model, *digits[1:], **asked).standing, once.standing)
    model.mask = torch.eye(3).flip(0).to_sparse()
    with pytest.raises(ValueError, match="is of another model"):
        quick(model, *digits[1:], **asked)


def test_attacks_come_with_the_package():
    """As the documents write them; a process that has measured nothing yet has not loaded them."""
    code = "import sat; print(sat.attacks.FastAutoAttack(8).eps); sat.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "8.0\n" and "module 'sat' has no attribute 'nothing'" in done.stderr


def test_a_network_without_gradient_is_measured_by_square_alone(digits):
    model, x, y = digits
    blind = lambda images: model(images).detach()  # noqa: E731
    with pytest.raises(ValueError, match=r"^model: .*attack=Square\(eps, .*'square'"):
        quick(blind, x, y)
    assert not quick(blind, x, y, attack=Square(EPS, 300), masking_checks=0).standing.all()
    found = quick(blind, x, y, attack=FastAutoAttack(EPS, attacks=("square",)), masking_checks=20)
    assert 0 < found.felled["square"]
    assert [alarm.name for alarm in found.alarms if alarm.name != "black_box"] == ["no_gradient"]


class ByDefault(nn.Module):
    """Computes in torch's default dtype, with weights of it."""

    def __init__(self, net):
        super().__init__()
        self.net = copied(net).to(torch.get_default_dtype())

    def forward(self, images):
        return self.net(images.to(torch.get_default_dtype())) @ torch.eye(10)


@pytest.mark.parametrize("in_sight", [True, False])
def test_a_network_may_go_by_the_default_dtype(digits, in_sight):
    model, x, y = digits
    asked = {"eps": EPS, "masking_checks": 4}
    doubled = copied(model).double()
    usual = [quick(lambda z: doubled(z.double()), x[:12], y[:12], attack=a, **asked)
             for a in ("strong", "pgd20")]  # fmt: skip
    with float64_by_default():
        net = ByDefault(model).eval()
        given = net if in_sight else lambda images: net(images)
        found = [quick(given, x[:12], y[:12], attack=a, **asked) for a in ("strong", "pgd20")]
    for one, other in zip(usual, found, strict=True):
        assert torch.equal(one.standing, other.standing)


class Unlucky(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way back\nat all")


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(images=lambda x: x * 255), r"images: lie in \[0, 255\], .*; give images / 255"),
        (dict(images=lambda x: x * 4 - 2), r"images: lie in \[-2, 2\], .*; let the model norm"),
        (dict(images=lambda x: (x * 255).byte()), "images: are torch.uint8; give float32"),
        (dict(images=lambda x: x.double()), r"images: are torch.float64; .*\(images.float\(\)\)"),
        (dict(images=lambda x: x.numpy()), r"images: ndarray \[60.*\(torch.from_numpy\(images\)\)"),
        (dict(images=lambda x: x.to_sparse()), "images: are torch.sparse_coo; .*to_dense"),
        (dict(images=lambda x: x.to("meta")), "images: are on no device"),
        (dict(images=lambda x: x[:, :0]), r"images: \[60, 0, 8, 8\]; give"),
        (dict(labels=lambda y: "cats"), "labels: str, no numbers; give one whole number"),
        (dict(labels=lambda y: ["cat"] * 60), "labels: list, no numbers"),
        (dict(labels=lambda y: None), "labels: NoneType, no numbers"),
        (dict(labels=lambda y: y.to(torch.complex64)), r"labels: torch.complex64 \[60\]"),
        (dict(model=lambda m: lambda x: Unlucky.apply(m(x))), "model: its gradient fails .*no way"),
        (dict(model=lambda m: "resnet18"), "model: str is no function of images; give a module"),
        (dict(images=lambda x: x[0]), r"images: \[1, 8, 8\]; give a tensor \[N, C, H, W\]"),
        (dict(images=lambda x: x[:0]), r"images: \[0, 1, 8, 8\]; give"),
        (dict(images=lambda x: x * torch.nan), "images: 60 of 60 hold NaN or inf; give 0 to 1"),
        (dict(images=lambda x: x + 1e-6), r"images: lie in .*1.00000\d+\], .*images.clamp\(0, 1\)"),
        (dict(labels=lambda y: y.to("meta")), "labels: are on no device"),
        (dict(labels=lambda y: nn.functional.one_hot(y)), r" \(labels.argmax\(1\)\)$"),
        (dict(labels=lambda y: y[:, None]), r" \(labels\[:, 0\]\)$"),
        (dict(labels=lambda y: y[:, None].float()), r" \(labels\[:, 0\].long\(\)\)$"),
        (dict(labels=lambda y: y + 0.5), r"give one whole number an image \[60\]$"),
        (dict(labels=lambda y: y[:3]), r"labels: torch.int64 \[3\]; give one whole number"),
        (dict(labels=lambda y: y.float()), r"labels: torch.float32 .* \(labels.long\(\)\)$"),
        (dict(labels=lambda y: y + 9), r"labels: lie in \[9, 18\], and the model has 10 classes"),
        (dict(model=lambda m: 3), "model: int is no function of images"),
        (dict(model=lambda m: lambda x: x), r"model: gives \[3, 1, 8, 8\] for 3 images"),
        (
            dict(model=lambda m: lambda x: m(x)[:, :1]),
            r"number an image.*\(model, torch.nn.ZeroPad1d",
        ),
        (dict(model=lambda m: lambda x: m(x)[:, 0]), r"number an image.*Unflatten.*ZeroPad1d"),
        (dict(model=lambda m: type(m)), "model: is the class .*; make an instance"),
        (dict(model=lambda m: nn.Conv2d(1, 4, 8, device="meta")), "model: lies on no device"),
        (
            dict(model=lambda m: copied(m).double()),
            r"weights are torch.float64: give model.float\(",
        ),
        (dict(images=lambda x: x.permute(0, 2, 3, 1)), r"images.permute\(0, 3, 1, 2\)$"),
        (dict(attack=PGD), "attack: is the class PGD; make an instance"),
        (dict(model=lambda m: nn.Conv2d(3, 4, 1)), r"model: fails on images \[3, 1, 8, 8\] \(Run"),
        (dict(model=lambda m: lambda x: m(x) + torch.randn(10)), "model: .*version=rand"),
        (dict(attack="linf"), "attack=linf: choose from strong, autoattack, pgd20"),
        (dict(attack=3), "attack=3: is no attack; name"),
        (dict(attack=PGD(8, batch_norm="train")), "attack.batch_norm=train: an image"),
        (dict(attack="pgd20", eps=0.03), "eps=0.03"),
        (dict(attack="pgd20", norm="Linf"), "norm=Linf: choose from linf, l2"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=2.5), "batch_size=2.5: must be a whole number"),
        (dict(batch_size="8"), "batch_size=8: must be a whole number"),
        (dict(masking_checks="all"), "masking_checks=all: must be a whole number"),
        (dict(seed=None), "seed=None: must be a whole number"),
        (dict(state=3), "state=3: must name a file"),
        (dict(state="/nowhere/state"), r"state=/nowhere/state: can't be written \(No such"),
        (dict(state="/dev/null"), r"state=/dev/null: is no state of an evaluation \(is no regular"),
    ],
)
def test_what_it_refuses(digits, change, match, monkeypatch):
    monkeypatch.setattr("sat.models.foreign.PATIENCE", 0.1)
    model, x, y = digits
    own = {"model": model, "images": x, "labels": y}
    given = {key: change[key](value) if key in change else value for key, value in own.items()}
    options = {key: value for key, value in change.items() if key not in own}
    with pytest.raises(ValueError, match=match) as error:
        quick(*given.values(), **options)
    assert "\n" not in str(error.value)


def test_an_option_that_is_none_is_told(digits):
    says = "evaluate: has no option epsilon; did you mean eps. allowed: eps, norm, attack, seed, "
    with pytest.raises(TypeError, match=says):
        quick(*digits, epsilon=3)


CONTENTS = {
    "nothing": b"", "no archive": b"x" * 99, "other arrays": {"a": 1},
    "objects": {"fell": np.array([{}], dtype=object)},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_that_is_no_state_is_told(digits, tmp_path, kind):
    path, content = tmp_path / "state", CONTENTS[kind]
    with open(path, "wb") as file:
        file.write(content) if isinstance(content, bytes) else np.savez(file, **content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="state=.*: is no state of an evaluation") as error:
        quick(*digits, state=path)
    assert "allow_pickle" not in str(error.value) and path.read_bytes() == before


@pytest.mark.parametrize("change", [
    {"fell": np.zeros(59, np.int16)}, {"fell": np.full(60, 9, np.int16)},
    {"seconds": np.zeros(2)}, {"fallen": np.array([60])}, {"points": np.zeros((0, 1, 8, 8))},
])  # fmt: skip
def test_a_state_of_other_images_is_told(digits, tmp_path, change):
    """By hand: what a disk damages, the archive's checksum tells."""
    attack, path = PGD(EPS, 1), tmp_path / "state"
    if not (kept := tmp_path.parent / "kept-state").exists():
        quick(*digits, attack=attack, state=kept)
    with np.load(kept) as file:
        found = {**file, **change}
    with open(path, "wb") as file:
        np.savez(file, **found)
    with pytest.raises(ValueError, match="not one verdict for each image"):
        quick(*digits, attack=attack, state=path)


def test_a_disk_that_fills_ends_no_evaluation(digits, tmp_path, monkeypatch, caplog):
    writes, attack = [], PGD(EPS, 1)
    whole = quick(*digits, attack=attack)

    def full(path, write):
        writes.append(path)
        if len(writes) > 1:
            raise Unwritable(path, error) from error

    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("sat.evaluation.state.write_whole", full)
    with caplog.at_level("WARNING", "sat"):
        found = quick(*digits, attack=attack, state=tmp_path / "state")
    assert torch.equal(found.standing, whole.standing) and len(writes) == 2
    assert "can't be written (No space left on device); the evaluation goes on" in caplog.text


def test_copies_of_what_is_out_of_sight_compute_alike():
    net = Foreign(lambda x: x.flatten(1) @ torch.ones(64, 2), torch.Size([1, 8, 8]), CPU)
    net.autocast = torch.bfloat16
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(deepcopy(net)(x), net(x)) and deepcopy(net).autocast == torch.bfloat16


def test_several_balls_give_their_union_image_by_image(digits, tmp_path):
    model, x, y = digits
    sizes = {"l2": 70, "linf": 25, "l1": "1.2/1"}
    found = quick(model, x, y, eps=sizes, attack="pgd20", state=tmp_path / "state")
    alone = {norm: quick(model, x, y, eps=eps, norm=norm, attack="pgd20")
             for norm, eps in sizes.items()}  # fmt: skip
    stands = torch.stack([one.standing for one in alone.values()])
    assert torch.equal(found.standing, stands.all(0))
    assert min(found.felled.values()) > 0 and found.robust.accuracy == stands.all(0).sum() / 60
    assert [*found.felled.values()] == [
        int(found.clean.accuracy * 60) - int(stands[0].sum()),
        int((stands[0] & ~stands[1]).sum()),
        int((stands[0] & stands[1] & ~stands[2]).sum()),
    ]
    assert torch.equal(model(found.adversarial).argmax(1) == y, found.standing)
    assert found.classes[found.worst_class] == min(found.classes.values())
    assert found.deviation == pytest.approx(np.std([*found.classes.values()]))
    for text in (
        "l2, eps 70/255; linf, eps 25/255; l1, eps 306/255",
        "robust in l1 alone",
        "not checked for masked gradients (masking_checks=0)",
    ):
        assert text in str(found)
    told = json.loads(json.dumps(found.as_json()))
    assert told["norms"]["l2"]["robust"]["accuracy"] == alone["l2"].robust.accuracy
    assert {path.name for path in tmp_path.iterdir()} == {"state.linf", "state.l2", "state.l1"}
    with pytest.raises(ValueError, match="by its name"):
        quick(model, x, y, eps=sizes)
