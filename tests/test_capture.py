"""A step that can be one CUDA graph: nothing of it asks the host, and its random numbers, rates and
counts are read from memory."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_network
from guard import (
    COPYING,
    DEPENDING,
    INDEXING,
    MAKING,
    TELLING,
    Functions,
    HostAsked,
    Operators,
    nothing_asks_the_host,
)
from tape import Tape
from test_augment import EVERY, names
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat.acceleration import auto, graph
from sat.attacks import APGD, FGSM, PGD, Clean, Free, Multi, quick
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.quick import Quick
from sat.bench.case import case_of
from sat.data import CutMix, Cutout, Data, Digits, Loader, MixUp, Standard
from sat.data.samplers import Epochs
from sat.distributed import ALONE
from sat.evaluation.measure import measure
from sat.models import Classifier
from sat.objectives import (
    AWP,
    ELLE,
    MART,
    TRADES,
    AdaptiveELLE,
    Adversarial,
    Consistency,
    GradAlign,
    Method,
    training_attack,
)
from sat.objectives import GradientNorm as SmallGradient
from sat.rng import RowRng, StepKey, seed_of
from sat.training.memory import attempt
from sat.training.metrics import GradientNorm
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import advance
from sat.training.train import plan_of

# What a step may be made of, each with the rest as usual: attack, objective, words of the schedule,
# and what stands beside the objective.
CASES = {
    "pgd1": (PGD(20, 1), Adversarial(), {}),
    "pgd3": (PGD(20, 3), Adversarial(), {}),
    "fgsm": (FGSM(20), Adversarial(), {}),
    "clean": (Clean(), Adversarial(), {}),
    "l2": (PGD(128, 2, norm="l2"), Adversarial(), {}),
    "normal start": (PGD(20, 2, start="normal", noise=2.0), Adversarial(), {}),
    "clean start": (PGD(20, 2, clean_start=0.5), Adversarial(), {}),
    "batch's norm": (PGD(20, 2, batch_norm="train"), Adversarial(), {}),
    "cw": (PGD(20, 2, loss="cw"), Adversarial(), {}),
    "dlr": (PGD(20, 2, loss="dlr"), Adversarial(), {}),
    "kept": (PGD(20, 2, start="uncut", keep="best"), Adversarial(), {"norm_start": "batch"}),
    "trades": (PGD(20, 2, start="normal", noise=0.255), TRADES(), {}),
    "trades, awp": (PGD(20, 2), TRADES(forwards=3), {}, {"weight_attack": AWP(warmup_epochs=1)}),
    "forwards": (PGD(20, 1, batch_norm="train"), Adversarial(forwards=3), {}),
    "target": (PGD(20, 2, loss="dlr", target=2), Adversarial(), {}),
    "two views": (PGD(20, 1), Consistency(), {"accumulate": 3}),
    "mart": (PGD(20, 1), MART(), {}),
    "gradient norm": (Clean(), SmallGradient(20), {}),
    "awp": (PGD(20, 1), Adversarial(), {"accumulate": 3}, {"weight_attack": AWP()}),
    "n-fgsm": (
        PGD(20, 1, noise=2.0, project=False, batch_norm="train", update_statistics=True),
        Adversarial(),
        {},
    ),
    "ramps": (PGD(20, 3, "1*eps", eps_warmup=0.5, steps_warmup=0.5), Adversarial(), {}),
    "l1": (PGD(400, 2, norm="l1"), Adversarial(), {}),
    "apgd": (APGD(20, 2, start="none", eps_warmup=0.5), Adversarial(), {}),
    "multi": (Multi({"linf": 20, "l1": 400, "l2": 128}, 2), Adversarial(), {"accumulate": 3}),
    "free": (Free(20, 2), Adversarial(), {"accumulate": 3}),
    "gradalign": (PGD(20, 1), Adversarial(), {}, {"regulariser": GradAlign()}),
    "elle": (PGD(20, 1), Adversarial(), {}, {"regulariser": ELLE(10.0)}),
    "elle-a": (PGD(20, 1), Adversarial(), {"accumulate": 3}, {"regulariser": AdaptiveELLE(10.0)}),
    "smoothing": (PGD(20, 1), Adversarial(0.1), {}),
    "average": (PGD(20, 1), Adversarial(), {"ema": 0.9}),
    "ramp": (PGD(20, 1), Adversarial(), {"ema": 0.9, "ema_ramp": True, "ema_start": 0.1}),
    "swa": (PGD(20, 1), Adversarial(), {"swa_start": 0.1}),
    "parts": (PGD(20, 1), Adversarial(), {"accumulate": 3}),
    "clip": (PGD(20, 1), Adversarial(), {"clip": 0.5}),
    "adamw": (PGD(20, 1), Adversarial(), {"optimizer": "adamw", "learning_rate": 0.01}),
    "bf16": (PGD(20, 1), Adversarial(), {"precision": "bf16"}),
    "fp16": (PGD(20, 1), Adversarial(), {"precision": "fp16"}),
}
BATCH = 12
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def started(attack, objective, words, beside=None, device="cpu", **more) -> TrainState:
    words = {"learning_rate": 0.5, **words}
    schedule = Schedule(batch_size=BATCH, epochs=10, **words)
    choices = {"precision": words.get("precision", "fp32"), "channels_last": True,
               "compile": False, "fold": True, "fused": True, **more}  # fmt: skip
    plan = Plan(schedule, BATCH, 0, choices)
    attack = training_attack(attack, objective)
    model = Classifier(small_network(), [0.5], [0.25]).to(device)
    method = copy.deepcopy(Method(attack, objective, **(beside or {})))  # some have a memory
    return TrainState(model, method, plan, metrics=GradientNorm())


def batch(step: int = 0, views: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(views * BATCH, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (BATCH,), generator=generator).repeat(views)


@pytest.mark.parametrize("case", CASES)
def test_no_step_asks_the_host(case):
    state = started(*CASES[case])
    for step in range(3):
        x, y = batch(step, state.objective.views)
        state.begin(x)
        if step < 2:  # the first ones make what the later ones have
            advance(state, x, y)
        else:
            with nothing_asks_the_host():
                advance(state, x, y)
        state.step += 1
    assert state.read()["train/gradient_norm"] > 0
    assert not state.skips.skipped or case == "fp16"  # which begins with too large a scale


# a graph ------------------------------------------------------------------------------------------


@pytest.fixture
def taped(monkeypatch):
    """Graphs of a CPU; the number of operators in each."""
    sizes = []

    def record(call):
        with nothing_asks_the_host():
            tape = Tape(call)
        sizes.append(len(tape.calls))
        return tape.replay

    monkeypatch.setattr(graph, "record", record)
    return sizes


def trained(case: str, steps: int = 7, device: str = "cpu", **choices) -> TrainState:
    state = started(*CASES[case], device=device, **choices)
    for step in range(steps):
        attempt(state, *(t.to(device) for t in batch(step, state.objective.views)))
    return state


def memory_of(state: TrainState) -> list[Tensor]:
    kept = state.state_dict()
    flat, _ = torch.utils._pytree.tree_flatten([kept[k] for k in kept if k != "choices"])
    return [value for value in flat if isinstance(value, Tensor)]


@pytest.mark.parametrize("case", CASES)
def test_what_a_graph_computes_is_what_the_steps_do(case, taped):
    """To the bit, over steps of other images, rates, noise and coins than those of the capture."""
    replayed, eager = trained(case, graph=True), trained(case)
    assert len(taped) == 1 and taped[0] > 50
    first = graph.FIRST // replayed.replays
    assert replayed.news == [f"step {first}: a step is one CUDA graph from here on"]
    ours, theirs = memory_of(replayed), memory_of(eager)
    assert len(ours) == len(theirs) > 10
    assert all(map(torch.equal, ours, theirs))
    assert replayed.read() == eager.read()


@on_gpu
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_captures_a_step_and_computes_the_same(case, monkeypatch):
    """Within rounding: torch may take other kernels. The noise is the same, else no weight were."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    replayed, eager = (trained(case, 6, "cuda", graph=on) for on in (True, False))
    assert replayed.graph.on, replayed.news
    assert not eager.graph.on
    torch.testing.assert_close(memory_of(replayed), memory_of(eager), rtol=1e-3, atol=1e-4)


def test_a_replayed_step_runs_nothing_of_python(taped, monkeypatch):
    state = trained("pgd1", 4, graph=True)
    monkeypatch.setattr("sat.training.step.advance", lambda *_: 1 / 0)
    before = [p.clone() for p in state.parameters]
    attempt(state, *batch(4))
    assert not any(map(torch.equal, before, state.parameters)) and state.step == 5


def test_a_batch_that_is_shorter_is_taken_as_before_and_the_graph_again_after_it(taped):
    states = [started(*CASES["parts"], graph=on) for on in (True, False)]
    for state in states:
        for step in range(8):
            x, y = batch(step)
            attempt(state, *(t[: BATCH - 1 - (step < 3)] if step in (1, 5) else t for t in (x, y)))
    assert len(taped) == 1
    assert all(map(torch.equal, *map(memory_of, states)))


def test_other_parts_are_another_graph(taped):
    states = [started(*CASES["average"], graph=on) for on in (True, False)]
    for state in states:
        for step in range(10):
            if step == 5:
                state.split(2)
            attempt(state, *batch(step))
    assert len(taped) == 2 and taped[1] > taped[0]
    assert all(map(torch.equal, *map(memory_of, states)))


def test_a_step_that_is_not_finite_is_skipped_by_a_graph_too(taped):
    states = [started(*CASES["average"], graph=on) for on in (True, False)]
    for state in states:
        for step in range(8):
            x, y = batch(step)
            attempt(state, x * (float("nan") if step == 5 else 1), y)
        assert state.read()["train/skipped_steps"] == 1
        assert state.skips.last == 5
    assert all(map(torch.equal, *map(memory_of, states)))


def test_a_graph_of_skipped_first_steps_is_captured_again(taped):
    """Statistics begin with the first step that is taken, by a momentum that the graph holds."""
    states = [started(*CASES["kept"], graph=on) for on in (True, False)]
    for state in states:
        for step in range(11):
            x, y = batch(step)
            attempt(state, x * (float("nan") if step < 5 else 1), y)
    assert len(taped) == 2
    assert all(map(torch.equal, *map(memory_of, states)))


def test_a_graph_goes_on_after_a_resume(taped):
    whole = trained("average", 10, graph=True)
    half = trained("average", 5, graph=True)
    kept = copy.deepcopy({**half.state_dict(), "generators": half.generators()})
    again = started(*CASES["average"], graph=True)
    again.load_state_dict(kept)
    for step in range(5, 10):
        attempt(again, *batch(step))
    assert len(taped) == 3
    assert all(map(torch.equal, memory_of(whole), memory_of(again)))


@pytest.mark.parametrize("case", ["pgd1", "fp16", "average"])
def test_a_step_that_cannot_be_captured_goes_on_as_before(case, monkeypatch):
    class Unable(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator.overloadpacket.__name__ == "_fused_sgd_":  # gradients are there, unscaled
                raise RuntimeError("operation not permitted\nwhen stream is capturing")
            return operator(*args, **(kwargs or {}))

    def record(call):
        with Unable():
            Tape(call)

    monkeypatch.setattr(graph, "record", record)
    failed, eager = trained(case, graph=True), trained(case)
    assert all(map(torch.equal, memory_of(failed), memory_of(eager)))
    (line,) = failed.news
    assert line.startswith("step 3: ") and "RuntimeError: operation not permitted when" in line
    assert not failed.applying


def test_what_ended_a_capture_is_told_and_not_what_followed(monkeypatch):
    """The end of a capture that was invalidated raises an error of its own."""

    def record(call):
        try:
            raise NotImplementedError("aten::nonzero while capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graph, "record", record)
    (line,) = trained("pgd1", 5, graph=True).news
    assert "NotImplementedError: aten::nonzero while capturing (test_capture.py:" in line


def test_the_graph_is_of_the_usual_batch(taped):
    """One that lacks an image is not what all later ones are taken for."""
    taken, x = graph.Graph(True, StepKey(torch.device("cpu")), print, "a step"), torch.arange(4.0)
    for count in (4, 4, 4, 3, 4, 4):
        (got,) = taken(lambda x: (2 * x,), x[:count])
        assert torch.equal(got, 2 * x[:count])
        assert len(taped) == 0 or count == 4
    assert len(taped) == 1


def test_a_graph_of_a_checkpoint_is_for_one_process_on_a_gpu():
    """Elsewhere it would be captured empty, and nothing be trained from there on."""
    case = case_of(["dataset=digits", "model.depth=10", "device=cpu"])
    chosen = {**case.choices, "graph": True}
    data = case.spec.dataset(torch.device("cpu"), 0)
    kept = {"choices": chosen, "generators": [{}]}
    plan = plan_of(case.spec, case.model(), data, kept, ALONE)
    assert plan.choices == {**chosen, "graph": False}


def test_a_step_that_asks_the_host_is_not_captured(taped, monkeypatch):
    asked = contextmanager(lambda: iter([["average.py:37"]]))
    monkeypatch.setattr(graph, "questions", asked)
    state = trained("pgd1", 6, graph=True)
    assert not taped and state.step == 6
    assert state.news == [
        "step 2: a step is no CUDA graph, and goes on without: it asks the host (average.py:37)"
    ]


def test_a_draw_that_a_graph_would_repeat_is_refused(taped):
    """A name by the step's number has a seed of its own in each step."""

    class Forgetful(PGD):
        def begin(self, x, rng, rise=1.0):
            forgetful.append(1)
            return x + 0.01 * rng.uniform(f"start {len(forgetful)}", *x.shape[1:])

    forgetful = []
    CASES["forgetful"] = (Forgetful(20, 1), Adversarial(), {})
    try:
        state = trained("forgetful", 6, graph=True)
    finally:
        del CASES["forgetful"]
    assert "start 4: is drawn in this step, and was not in those before" in state.news[0]
    assert state.step == 6


# the batches of a step ----------------------------------------------------------------------------


class Own(Standard):
    """An augmentation of somebody's own, which draws with a key of the host's."""

    def __call__(self, x, y, rng):
        generator = torch.Generator().manual_seed(rng.number)
        return (x + torch.rand(len(x), 1, 1, 1, generator=generator)).clamp(0, 1), y


class Read:
    """Images that are read for each batch, of which one can't be read in every third."""

    in_order = skips = False

    def __init__(self, split):
        self._split, self.labels = split, split.labels

    def __len__(self):
        return len(self._split)

    def stream(self, batches):
        for number, (x, y) in enumerate(self._split.stream(batches)):
            missing = number % 3 == 1
            yield x[missing:], y[missing:]


def images(device="cpu", extra=None) -> Data:
    return Digits(crop=2, extra=extra)(torch.device(device), 0)


def batches(data: Data, augment, on: bool, views: int = 1) -> tuple[list[Tensor], list[str]]:
    """The x and y of six batches, with a graph that is `on` or not; and what it says."""
    told: list[str] = []
    device = data.test.device
    taken = graph.Graph(on, StepKey(device), told.append, "a batch's augmentation")
    sampler = data.mixture or Epochs()
    stream = Loader(data, augment, sampler, BATCH, 9, views).stream(
        torch.arange(BATCH), 2, 8, taken
    )
    made = [part.clone() for batch in stream for part in batch]
    return made, told


@pytest.mark.parametrize("augment", EVERY, ids=names)
def test_what_a_graph_makes_of_indices_are_the_batches_without(augment, taped):
    """To the bit; a loader without draws with the number of each step."""
    data, views = images(), 2 if augment == MixUp() else 1
    made, told = batches(data, augment, True, views)
    assert len(taped) == 1 and told == ["a batch's augmentation is one CUDA graph from here on"]
    plain = Loader(data, augment, Epochs(), BATCH, 9, views).stream(torch.arange(BATCH), 2, 8)
    assert all(map(torch.equal, made, [part for batch in plain for part in batch]))
    assert len(made) == 12 and len(made[0]) == views * BATCH


@pytest.mark.parametrize("augment", [Cutout(5), MixUp()], ids=names)
def test_batches_that_lack_an_image_are_made_as_before(augment, taped):
    data = images()
    data = replace(data, train=Read(data.train))
    (made, _), (plain, _) = (batches(data, augment, on) for on in (True, False))
    assert len(taped) == 1 and [len(x) for x in made[::2]] == [12, 11, 12] * 2
    assert all(map(torch.equal, made, plain))


def test_images_beside_a_set_are_mixed_in_before_the_graph(taped, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "made.npz", image=pixels, label=np.arange(30) % 10)
    data = images(extra=str(tmp_path / "made.npz"))
    for augment, graphs in (Standard(), 0), (CutMix(), 1):
        made, _ = batches(data, augment, True)
        assert len(taped) == graphs, "of images that are only read a graph would be empty"
        assert all(map(torch.equal, made, batches(data, augment, False)[0]))


def test_an_augmentation_that_cannot_be_captured_goes_on_as_before(taped):
    data = images()
    made, (line,) = batches(data, Own(), True)
    assert all(map(torch.equal, made, batches(data, Own(), False)[0])) and not taped
    assert "and goes on without: RuntimeError: the key of a step is asked for as a number" in line


def test_a_run_takes_its_batches_and_its_steps_as_a_graph_each(
    sat, default_run, taped, monkeypatch
):
    monkeypatch.setattr(auto, "_captured", lambda *_: True)
    run = sat().run
    assert len(taped) == 2
    kept = [torch.load(at / "checkpoints" / "last.pt", weights_only=True)["model"]
            for at in (run, default_run)]  # fmt: skip
    assert all(map(torch.equal, *(weights.values() for weights in kept)))


@on_gpu
@pytest.mark.parametrize("augment", EVERY, ids=names)
def test_a_gpu_captures_the_making_of_batches(augment):
    data = images("cuda")
    (made, told), (plain, _) = (batches(data, augment, on) for on in (True, False))
    assert told == ["a batch's augmentation is one CUDA graph from here on"]
    torch.testing.assert_close(made, plain)


# the search of an evaluation ----------------------------------------------------------------------


def searched(device: str = "cpu") -> AttackOutcomes:
    """PGD-5 with a restart on 60 images, 12 at a time, of which some stand and some fall."""
    model = Classifier(small_network(), [0.5], [0.25]).to(device).eval()
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    ensemble = Quick(PGD(4, 5), 2, BATCH)
    outcomes = AttackOutcomes.new(ensemble.names, len(x))
    with torch.no_grad():
        y = model(x).argmax(1)
    return measure(model, iter([(torch.arange(len(x)), x, y)]), ensemble, 3, outcomes)


def test_a_search_by_a_graph_has_the_verdicts_of_one_without(taped, monkeypatch):
    """One graph for all restarts; where a batch shrinks at the end of one, steps are as before."""
    eager = searched()
    assert not taped, "on a CPU there is none by itself"
    monkeypatch.setattr(quick, "graph_pays", lambda *_: True)
    replayed = searched()
    assert len(taped) == 1 and 5 < int((eager.fell >= 0).sum()) < 55
    assert torch.equal(replayed.fell, eager.fell) and torch.equal(replayed.passed, eager.passed)


@on_gpu
def test_a_gpu_captures_a_search(monkeypatch):
    monkeypatch.setattr(quick, "graph_pays", lambda *_: False)
    eager, captured, record = searched("cuda"), [], graph.record
    monkeypatch.setattr(quick, "graph_pays", lambda *_: True)
    monkeypatch.setattr(graph, "record", lambda call: captured.append(record(call)) or captured[-1])
    replayed = searched("cuda")
    assert len(captured) == 1
    assert int((replayed.fell != eager.fell).sum()) <= 1, "but for rounding"


# the guard ----------------------------------------------------------------------------------------

aten = torch.ops.aten
FUNCTIONS = {
    "tolist": lambda t: t.tolist(),
    "item": lambda t: t[0].item(),
    "numpy": lambda t: t.numpy(),
    "__array__": lambda t: t.__array__(),
    "cpu": lambda t: t.cpu(),
    "__bool__": lambda t: 1 if t[0] else 0,
    "__float__": lambda t: float(t[0]),
    "__int__": lambda t: int(t[0]),
    "__complex__": lambda t: complex(t[0]),
    "__index__": lambda t: [1, 2, 3, 4][t.long()[0]],
    "__repr__": lambda t: repr(t),
    "__format__": lambda t: f"{t[0]:.3f}",
    "__contains__": lambda t: 1.0 in t,
    "to": lambda t: t.to("meta"),
    "tensor": lambda t: t + torch.tensor([1.0, 2.0, 3.0]),
    "as_tensor": lambda t: t + torch.as_tensor([1.0, 2.0, 3.0]),
    "asarray": lambda t: t + torch.asarray([1.0, 2.0, 3.0]),
    "__getitem__": lambda t: t[None][:, t > 1],
    "__setitem__": lambda t: t.__setitem__(t > 1, 0.0),
}
OPERATORS = {
    "_local_scalar_dense": lambda t: nn.utils.clip_grad_norm_(t, 1, error_if_nonfinite=True),
    "nonzero": lambda t: torch.where(t > 1),
    "masked_select": lambda t: t.masked_select(t > 1),
    "_unique2": lambda t: t.unique(),
    "unique_dim": lambda t: t[None].unique(dim=0),
    "unique_consecutive": lambda t: t.unique_consecutive(),
    "equal": lambda t: torch.equal(t, t + 1),
    "bincount": lambda t: t.long().bincount(),
    "repeat_interleave": lambda t: t.repeat_interleave(t.long()),
    "index": lambda t: t[t > 1],
    "index_put": lambda t: t.index_put([t > 1], t[0]),
    "index_put_": lambda t: t.index_put_([t > 1], t[0].clone()),
    "_to_copy": lambda t: t.to("meta"),
    "copy_": lambda t: torch.empty(3, device="meta").copy_(t),
}


def numbers() -> Tensor:
    found = torch.tensor([1.0, 2.0, 3.0])
    found.grad = torch.ones(3)
    return found


@pytest.mark.parametrize(
    "mode, name, ask",
    [(Functions, *pair) for pair in FUNCTIONS.items()]
    + [(Operators, *pair) for pair in OPERATORS.items()],
)
def test_each_hook_of_the_guard_fires(mode, name, ask):
    ask(numbers())
    t = numbers()
    with pytest.raises(HostAsked, match=f"^{name}\\b"), mode():
        ask(t)
    with pytest.raises(HostAsked), nothing_asks_the_host():
        ask(t)


def test_all_hooks_of_the_guard_are_tried():
    assert {*FUNCTIONS} == TELLING | MAKING | {"to", "__getitem__", "__setitem__"}
    assert {*OPERATORS} == DEPENDING | INDEXING | COPYING


@pytest.mark.parametrize("index", [[0, 1], (slice(None), [0, 1])])
def test_a_list_as_an_index_is_refused(index):
    t = torch.zeros(2, 2)
    with pytest.raises(HostAsked, match="a list"), Functions():
        t[index]


def test_the_guard_lets_pass_what_stays_on_the_device():
    t, rows = torch.arange(6.0).view(2, 3), torch.tensor([1, 0])
    with nothing_asks_the_host():
        t[rows, 1:] += 1
        chosen = t[rows].gather(1, rows[:, None])
        assert t.shape == (2, 3) and t.device == chosen.device and len(t) == 2
        torch.where(t > 1, t, 0.0).to(torch.float64).sum(), t.to("cpu"), str(t.dtype)


# what a later step reads from memory --------------------------------------------------------------


def test_the_seeds_of_a_step_are_those_of_its_key():
    rows, key = torch.arange(5), StepKey(torch.device("cpu"))
    for number in (11, 12):
        key.set(number)
        for own, told in (
            (RowRng(key, rows), RowRng(number, rows)),
            (
                RowRng(key, rows).child("apgd", 3).child("x"),
                RowRng(number, rows).child("apgd", 3).child("x"),
            ),
        ):
            assert torch.equal(own.uniform("u", 4, 4), told.uniform("u", 4, 4))
            assert torch.equal(own.normal("n", 4), told.normal("n", 4))
            assert torch.equal(own.coin("c", 0.5), told.coin("c", 0.5))
            assert own.number == told.number
        child = RowRng(seed_of(seed_of(number, "apgd", 3), "x"), rows)
        assert torch.equal(child.uniform("u", 4, 4), own.uniform("u", 4, 4))


def test_a_sealed_key_takes_no_new_name():
    key = StepKey(torch.device("cpu"))
    rng = RowRng(key, torch.arange(2))
    rng.uniform("known"), rng.child("below").uniform("known")
    key.sealed = True
    rng.uniform("known"), rng.child("below").uniform("known")
    with pytest.raises(RuntimeError, match="new: is drawn in this step"):
        rng.uniform("new")
    with pytest.raises(RuntimeError, match="new: is drawn in this step"):
        rng.child("below").uniform("new")
    with pytest.raises(RuntimeError, match="as a number"):
        rng.child("below").number  # noqa: B018


def test_a_fault_before_a_step_begins_leaves_the_statistics_of_the_last_one():
    """What the step before had kept is older."""
    state = trained("pgd1", 2)
    before = [tensor.clone() for tensor in state.model.buffers()]
    state.begin(batch(2)[0])
    state.put_back(state.generators())
    assert all(map(torch.equal, before, state.model.buffers())) and len(before) > 2
    state.statistics.keep()
    with torch.no_grad():
        state.net(batch(2)[0])
    assert not all(map(torch.equal, before, state.model.buffers()))
    state.put_back(state.generators())
    assert all(map(torch.equal, before, state.model.buffers()))
