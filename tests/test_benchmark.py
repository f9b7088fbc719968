"""The benchmark's loops do the same work, its counts are torch's, and its ratios survive noise.

No test looks at a time.
"""

import json
import sys
import time
import timeit
import types
from functools import partial
from multiprocessing import active_children

import numpy as np
import pytest
import torch
import torch._inductor.compile_fx
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sat.acceleration import auto
from sat.acceleration.graph import Graph
from sat.bench import benchmark, book, counting, parts, steps, stopwatch
from sat.bench.case import case_of, units
from sat.errors import Refused
from sat.loggers.usage import seconds_of
from sat.models import Classifier

TINY = ["dataset=digits", "model=resnet_cifar", "model.depth=8", "model.width=0.25",
        "schedule.batch_size=8"]  # fmt: skip
FIXED = [*TINY, "attack.start=none", "attack.eps=32"]


class StandIn:
    """What `torchattacks.PGD` 3.5 computes, for machines without it: the network in eval mode, the
    gradient of the mean loss with respect to the images."""

    def __init__(self, model, eps, alpha, steps, random_start):
        self.model, self.eps, self.alpha, self.steps = model, eps, alpha, steps
        assert not random_start

    def __call__(self, images, labels):
        training, adversarial = self.model.training, images.clone().detach()
        self.model.eval()
        for _ in range(self.steps):
            adversarial.requires_grad = True
            loss = nn.CrossEntropyLoss()(self.model(adversarial), labels)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = adversarial.detach() + self.alpha * gradient.sign()
            delta = (adversarial - images).clamp(-self.eps, self.eps)
            adversarial = (images + delta).clamp(0, 1).detach()
        self.model.train(training)
        return adversarial


@pytest.fixture(params=["stand-in", "installed"])
def torchattacks(request, monkeypatch):
    if request.param == "installed":
        pytest.importorskip("torchattacks")
    else:
        module = types.ModuleType("torchattacks")
        module.PGD = StandIn
        monkeypatch.setitem(sys.modules, "torchattacks", module)


@pytest.fixture
def quick(monkeypatch):
    """Blocks of one call and small products: the numbers mean nothing."""
    monkeypatch.setattr(timeit.Timer, "autorange", lambda timer: (1, timer.timeit(1)))
    monkeypatch.setattr(stopwatch, "SIDE", {"cpu": 16, "cuda": 16})
    monkeypatch.setattr(stopwatch, "COPIED", {"cpu": 2**8, "cuda": 2**8})


# the loops --------------------------------------------------------------------------------------


def seen(loop, case, k: int):
    """The images on which a step updates, and the gradients that its optimiser is given."""
    inputs, gradients = [], {}

    def watch(module, given):
        if isinstance(module, Classifier):
            inputs.append((module, given[0].detach().clone()))

    def take(optimizer, *_):
        model, _ = inputs[-1]
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})

    hooks = [register_module_forward_pre_hook(watch),
             register_optimizer_step_pre_hook(take)]  # fmt: skip
    try:
        loop.step(k, *case.images())
    finally:
        for hook in hooks:
            hook.remove()
    return inputs[-1][1], gradients


def plain(*words: str):
    """Ours without a trick, and the case."""
    case = case_of([*FIXED, *words])
    return steps.ours(case, "ours", precision="fp32", **dict.fromkeys(steps.TRICKS, False)), case


def assert_same(one, other):
    (x, gradients), (x_other, others) = one, other
    # the sign of a gradient of about 0 may differ
    assert ((x - x_other).abs() > 1e-6).float().mean() < 0.01
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 0.02 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_published_loop_does_what_ours_does(k):
    ours, case = plain("attack.batch_norm=train")
    published = steps.published(case)
    assert_same(seen(ours, case, k), seen(published, case, k))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_torchattacks_does_what_ours_does(torchattacks, k):
    ours, case = plain()
    assert_same(seen(ours, case, k), seen(steps.torchattacks(case), case, k))


def test_another_attack_is_seen():
    """The comparison can fail: other statistics, and another number of steps."""
    ours, case = plain()
    with pytest.raises(AssertionError):
        assert_same(seen(ours, case, 3), seen(steps.published(case), case, 3))
    with pytest.raises(AssertionError):
        assert_same(seen(ours, case, 1), seen(ours, case, 2))


def test_work_is_counted_as_torch_counts_it(torchattacks):
    """2k + 3 units with gradients of the images alone, 3k + 3 with those of the weights as well; of
    the first layer an update needs no gradient of the images."""
    ours, case = plain()
    images = case.images()
    first = 2 * 3 * 3 * 1 * 4 * 8 * 8 * case.batch
    unit = case.unit
    assert unit == 2 * case.cost.multiply_adds * case.batch
    for k in (0, 1, 2):
        counted = {}
        for loop in (ours, steps.published(case), steps.torchattacks(case)):
            with counting.Counted() as found:
                loop.step(k, *images)
            counted[loop.name] = found.flop
        assert units(k) == 2 * k + 3
        assert counted["ours"] == counted["torchattacks"] == units(k) * unit - first
        assert counted["published"] == (3 * k + 3) * unit - first


def test_what_can_be_compared_here(torchattacks, monkeypatch):
    case = case_of(TINY)
    monkeypatch.setattr(steps, "try_out", lambda loop, case: None)  # compiles nothing
    names = ["sat", "sat, compiled", "sat, no trick", "published", "torchattacks"]
    found, notes = steps.loops_of(case, compiled=True)
    assert [loop.name for loop in found] == names and not notes
    assert [loop.choices["compile"] for loop in found] == [name == names[1] for name in names]
    assert found[0].choices["precision"] == case.choices["precision"]
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    found, (note,) = steps.loops_of(case, compiled=False)
    assert "torchattacks is left out" in note and len(found) == 3


def test_a_loop_that_fails_is_told_and_memory_that_runs_out_is_not_hidden():
    assert book.left_out("graphs", RuntimeError("no capture\nsecond line")) == (
        "graphs is left out: it failed (RuntimeError: no capture)"
    )
    with pytest.raises(torch.OutOfMemoryError):
        book.left_out("graphs", torch.OutOfMemoryError("CUDA out of memory"))


def test_a_compilation_that_fails_does_not_pass_for_one(monkeypatch):
    """Where it is on by itself torch goes on without it: that is no time of a compiled network."""
    case = case_of(TINY)

    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    found, (told, _) = steps.loops_of(case, compiled=True)
    assert told.startswith("sat, compiled ")
    assert [loop.name for loop in found] == ["sat", "sat, no trick", "published"]


def test_a_graph_that_gave_up_does_not_pass_for_one():
    """On a CPU none can be captured: the steps would go on eagerly."""
    case = case_of(TINY)
    with pytest.raises(RuntimeError, match="a step is no CUDA graph"):
        steps.try_out(steps.ours(case, "sat, one graph", graph=True), case)


def test_an_attack_of_its_own_begins_a_graph_anew(monkeypatch):
    forgotten = []
    monkeypatch.setattr(steps, "update", lambda state, x, y: None)
    loop = steps.ours(case_of(TINY), "sat")
    monkeypatch.setattr(Graph, "forget", lambda self: forgotten.append(self))
    for k in (1, 1, 2, 1):
        loop.step(k, None, None)
    assert len(forgotten) == 3


# time -------------------------------------------------------------------------------------------


class Clock:
    """Time that passes in calls alone, at a pace that may change."""

    def __init__(self, monkeypatch, stopwatch):
        self.now, self.pace, self.calls = 0.0, 1.0, []
        monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: self.now)

    def call(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * self.pace

        return run


def test_each_round_times_each_call_in_blocks_that_are_long_enough(monkeypatch):
    clock, entered = Clock(monkeypatch, stopwatch), []
    calls = {name: stopwatch.Timed(clock.call(name, seconds)) for name, seconds in
             (("long", 1.0), ("short", 0.06))}  # fmt: skip

    class Within:
        def __enter__(self):
            clock.now += 100  # is no part of the call

        def __exit__(self, *_):
            entered.append(1)

    calls["within"] = stopwatch.Timed(clock.call("within", 0.3), (Within,))
    times = stopwatch.Stopwatch(torch.device("cpu"), 12).times(calls)
    assert {name: len(rounds) for name, rounds in times.items()} == dict.fromkeys(calls, 12)
    assert times["long"] == pytest.approx([1.0] * 12)
    assert times["short"] == pytest.approx([0.06] * 12)
    assert times["within"] == pytest.approx([0.3] * 12) and len(entered) == 13
    # a call to warm up, 1 and 2 to find the block, and blocks of 5, which take 0.3 seconds
    assert clock.calls.count("long") == 13 and clock.calls.count("short") == 4 + 12 * 5
    firsts = {[c for c in clock.calls if c != "short"][k] for k in range(2, 26, 2)}
    assert firsts == {"long", "within"}, "the order is always the same"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_how_much_of_the_time_it_works():
    a, watch = torch.randn(4096, 4096, device="cuda"), stopwatch.Stopwatch(torch.device("cuda"), 1)
    idle = stopwatch.Timed(lambda: (a[:64] @ a, time.sleep(0.01)))
    assert 80 < watch.busy(stopwatch.Timed(lambda: a @ a)) < 102 and 0 < watch.busy(idle) < 50


def test_ratios_are_those_of_a_round(monkeypatch):
    """A machine that grows slower from round to round changes no ratio."""
    clock = Clock(monkeypatch, stopwatch)
    calls = {name: stopwatch.Timed(clock.call(name, s)) for name, s in (("a", 1.0), ("b", 2.0))}

    def shuffle(order):  # begins a round
        clock.pace *= 3 if clock.calls[2:] else 1

    monkeypatch.setattr(stopwatch.random.Random, "shuffle", lambda self, order: shuffle(order))
    times = stopwatch.Stopwatch(torch.device("cpu"), 4).times(calls)
    assert times["a"] == pytest.approx([1, 3, 9, 27])
    ratio = stopwatch.spread(times["b"] / times["a"])
    assert [*ratio.values()] == pytest.approx([2, 2, 2])
    found = stopwatch.spread(np.array([4.0, 1.0, 2.0, 3.0, 100.0]))
    assert found == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert stopwatch.spread(np.array([5.0])) == {"median": 5.0, "low": 5.0, "high": 5.0}


@pytest.mark.parametrize("tf32", [True, False, None])
def test_a_call_has_the_settings_of_its_loop(tf32):
    def now():
        matmul = torch.get_float32_matmul_precision()
        return torch.get_num_threads(), matmul, torch.backends.cudnn.allow_tf32

    call = stopwatch.Timed(now, choices={"threads": 3, "tf32": tf32})
    with call.entered():
        assert call.run() == (3, "high" if tf32 else "highest", tf32 is not False)
    with stopwatch.Timed(now).entered():
        assert now() == (auto.THREADS, "highest", True), "as torch has it"


def test_a_product_has_2n3_operations(quick):
    device = torch.device("cpu")
    tops = stopwatch.ceilings(device)
    copy = tops.pop(stopwatch.COPY)
    for product in tops.values():
        ((flop, moved),) = product.counted().each
        assert flop == product.work == 2 * 16**3
        assert moved in (4 * 4 * 16**2, 2 * 4 * 16**2)  # two factors, a result and its place
    assert copy.counted().each == [(0, 3 * 2**8 // 2)]  # as torch tells it, the target twice
    assert copy.work == 2**8


def test_the_peak_is_the_fastest_product_of_the_same_rounds():
    rates = {"a": [1.0, 5.0], "b": [4.0, 4.0], stopwatch.COPY: [9.0, 8.0]}
    best = stopwatch.peak({name: np.array(values) for name, values in rates.items()})
    assert best.tolist() == [1.0, 5.0]


def test_operations_and_bytes_are_counted_and_the_slower_binds():
    a, b, layer = torch.ones(8, 4), torch.ones(8, 4), nn.Linear(4, 2)
    calls = lambda: layer(a + b).t().relu_()  # noqa: E731  # a view moves nothing
    added, multiplied, cut = stopwatch.Timed(calls).counted().each
    assert added == (0, 3 * 4 * 32) and cut == (0, 2 * 4 * 16)
    assert multiplied == (2 * 8 * 4 * 2, 4 * (32 + 8 + 2 + 16))
    work = [(100, 10), (0, 30), (10, 40)]
    assert counting.limits(work, product=10, memory=2) == {
        "limit": (10 + 15 + 20, 35 / 45), "limit, fused": (30, 20 / 30)
    }  # fmt: skip
    assert counting.size_of(torch.ones(1, 5).expand(9, 5)) == 20


def test_a_fused_step_moves_what_its_products_do_and_ours_moves_more():
    """Batch norms, activations and the update are the rest; more steps of the attack are more."""
    case = case_of(TINY)
    loop = steps.ours(case, "sat")
    loop.step(1, *case.images())  # folds for the first time, which is tried
    found = {}
    for k in (1, 2):
        work = stopwatch.Timed(partial(loop.step, k, *case.images())).counted().each
        limit = counting.limits(work, 1e12, 1e9)
        found[k] = limit["limit"][0], limit["limit, fused"][0]
        assert limit["limit"][0] > 2 * limit["limit, fused"][0] > 0
        assert limit["limit, fused"][1] > 0.9, "at these rates memory binds"
    assert found[2][0] > 1.2 * found[1][0] and found[2][1] > 1.2 * found[1][1]


def test_stages_add_up_to_the_step():
    calls = ["attack forward", "attack gradient", "attack", "forward", "gradients", "step"]
    times = {call: 1.7**k for k, call in enumerate(calls)}
    for k in (0, 1, 3):
        times["attack"] = 1.7**2 if k else 0.0
        for found in (parts.stages_of(k, times), parts.stages_of(k, parts.units_of(k))):
            whole = found.pop("all")
            assert sum(found.values()) == pytest.approx(whole)
        assert whole == units(k) and min(found.values()) == 0


# memory -----------------------------------------------------------------------------------------


def test_memory_that_is_known():

    def three_megabytes() -> None:
        a = torch.ones(250_000)
        b = a + 1  # two are alive
        del a
        c = torch.cat([b, b])  # three are
        del b, c
        torch.ones(500_000)

    assert stopwatch.Timed(three_megabytes).counted().most == 3_000_000
    held = torch.ones(250_000)
    with counting.Counted([held]) as live:
        three_megabytes()
        held.add_(1)
        held.view(5, -1)
    assert (live.most, live.now) == (3_000_000, 0)


# the command ------------------------------------------------------------------------------------


@pytest.fixture
def bench(quick, tmp_path, monkeypatch, capfd):
    """`bench("--steps", "0,1")` in this process, on tiny networks: code, output, errors."""
    monkeypatch.chdir(tmp_path)
    few = lambda: {"activation": ["gelu", "relu"]}  # noqa: E731
    monkeypatch.setattr(parts, "options", few)
    monkeypatch.setattr(parts, "FIRST", ("relu",))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
        capfd.readouterr()
        try:
            code = benchmark.main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


def kept(folder) -> dict:
    return json.loads((folder / "benchmark.json").read_text())


def is_spread(found: dict) -> bool:
    return found.keys() == {"median", "low", "high"} and found["low"] <= found["high"]


def test_the_command_from_end_to_end(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    code, out, err = bench(*TINY, "--steps", "1,0", "--rounds", "2", "--out", "kept")
    assert code == 0, err
    found = kept(tmp_path / "kept")
    assert found.keys() == {"about", "steps", "stages", "activations", "left"}
    about = found["about"]
    assert about["command"].startswith("python benchmark.py dataset=digits")
    assert {"torch", "timm", "python", "device", "threads", "isa", "time", "words"} <= about.keys()
    assert about["batch"] == 8 and about["shape"] == "1x8x8"
    note, *rows = found["steps"]
    assert "torchattacks" in note["note"] and note["note"] in out
    timed = [row for row in rows if "TFLOP/s" in row and "images/s" in row]
    assert [(row["name"], row["k"]) for row in timed] == [
        (name, k) for k in (1, 0) for name in ("sat", "sat, no trick", "published")
    ]
    for row in timed:
        assert len(row["about"]["seconds"]) == 2 and is_spread(row["% of peak"])
        assert is_spread(row["ms"])
        (peer,) = [each for each in timed if (each["name"], each["k"]) == ("published", row["k"])]
        ratio = np.array(peer["about"]["seconds"]) / row["about"]["seconds"]
        assert row["times published"] == stopwatch.spread(ratio), "not within a round"
        assert "times torchattacks" not in row and ("MiB an image" in row) == (row["k"] == 1)
    assert {row["k"] for row in rows if row["name"].endswith("product")} == {0, 1}
    limits = [row for row in rows if row.get("binds")]
    assert [row["name"] for row in limits] == ["limit", "limit, fused"] * 2
    for whole, fused in zip(limits[::2], limits[1::2], strict=True):
        assert whole["ms"] > fused["ms"] > 0
    assert sum("GB/s" in row for row in rows) == 2
    *staged, whole = found["stages"]
    assert whole["name"] == "PGD-1: all" and sum(row["units"] for row in staged) == 5
    assert {row["binds"] for row in staged} <= {"memory", "product"}
    rest = next(row for row in staged if "optimizer" in row["name"])
    assert rest["binds"] == "memory" and is_spread(rest["% of memory"])
    relu, gelu = found["activations"]
    assert (relu["name"], gelu["name"]) == ("relu", "gelu") and is_spread(gelu["update"])
    assert gelu["saved, MiB an image"] > relu["saved, MiB an image"]
    for name in ("steps.png", "benchmark.md"):
        assert (tmp_path / "kept" / name).stat().st_size > 500
    assert (tmp_path / "kept/benchmark.md").read_text() == out


def counting_rows(log: list[str], seconds: float = 0.0, keys=("a", "b", "c")):
    """As many rows, each of which says that it was measured; at `stop` it is killed."""

    def measure(key: str) -> list[dict]:
        if key == "stop":
            raise KeyboardInterrupt
        log.append(key)
        time.sleep(seconds)
        return [{"name": key, "value": 1}]

    return ((key, 1, lambda key=key: measure(key)) for key in keys)


def test_a_row_is_kept_when_it_is_measured_and_measured_once(tmp_path, capsys):
    log: list[str] = []
    about = {"device": "x", "time": "now"}
    first = book.Book(tmp_path, about)
    with pytest.raises(KeyboardInterrupt):
        first.measure("count", "", counting_rows(log, keys=("a", "stop", "c")))
    assert [row["name"] for row in kept(tmp_path)["count"]] == ["a"]
    assert "| a " in (tmp_path / "benchmark.md").read_text() and "| a " in capsys.readouterr().out
    again = book.Book(tmp_path, about | {"time": "later"})
    again.measure("count", "", counting_rows(log))
    assert not again.left and log == ["a", "b", "c"]
    assert (tmp_path / "benchmark.md").read_text().count("| a ") == 1
    other = book.Book(tmp_path, about | {"device": "y"})
    other.measure("count", "", counting_rows(log))
    assert log[3:] == ["a", "b", "c"], "another machine's rows are none of these"
    assert other.close() == 0
    book.Book(tmp_path, about | {"device": "y"}).measure("count", "", counting_rows(log))
    assert log[6:] == ["a", "b", "c"], "what came to its end is measured anew"


def test_rows_are_told_as_they_are_kept(tmp_path, capsys):
    ratio = {"median": 2.0, "low": 1.5, "high": 1234.0}
    rows = [{"name": "a", "ms": ratio, "about": 1}, {"note": "a line"}, {"name": "b", "ms": None}]
    book.Book(tmp_path, {}).measure("count", "what it is", iter([("all", 1, lambda: rows)]))
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line] == [
        "# Benchmark", "## Count", "what it is", "| name | ms |", "| --- | ---: |",
        "| a | 2 (1.5 to 1,234) |", "a line", "| b | - |",
    ]  # fmt: skip


def named(name: str, part):
    part.__name__ = name
    return part


def test_a_budget_ends_between_rows_and_says_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log: list[str] = []
    short = book.Book(tmp_path, {}, time.monotonic() + 0.15)
    short.measure("count", "", counting_rows(log, seconds=0.1))
    assert log == ["a"] and short.left == ["count b", "count c"]
    monkeypatch.setattr(parts, "stages", named("stages", lambda *_: counting_rows(log, 0.1)))
    assert benchmark.main([*TINY, "--parts", "stages", "--budget", "0.001s", "--out", "o"]) == 143
    assert capsys.readouterr().out.endswith("same command again: stages a, stages b, stages c\n")
    assert benchmark.main([*TINY, "--parts", "stages", "--out", "o"]) == 0
    assert [seconds_of(text) for text in ("90s", "10m", "1.5h")] == [90, 600, 5400]


def test_a_row_that_would_take_too_long_is_left_for_a_cheaper_one(tmp_path, monkeypatch):
    """Ten times the work takes ten times as long; the clock is the test's."""
    now, log = [0.0], []
    monkeypatch.setattr(book.time, "monotonic", lambda: now[0])

    def work(key: str, seconds: float) -> list[dict]:
        now[0] += seconds
        return log.append(key) or [{"name": key}]

    rows = (("a", 1, 10), ("dear", 10, 100), ("b", 1, 10))
    keep = book.Book(tmp_path, {}, until=60.0)
    given = ((key, cost, lambda key=key, s=s: work(key, s)) for key, cost, s in rows)
    keep.measure("count", "", given)
    assert keep.left == ["count dear"] and log == ["a", "b"]


def test_rounds_end_with_the_time_but_for_the_first(monkeypatch):
    clock = Clock(monkeypatch, stopwatch)
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: clock.now)
    calls = {"a": stopwatch.Timed(clock.call("a", 1.0))}
    for until, rounds in ((0.0, 1), (3.5, 3), (99.0, 5)):
        clock.now = 0.0
        times = stopwatch.Stopwatch(torch.device("cpu"), 5, until).times(calls)
        assert len(times["a"]) == rounds


@pytest.fixture
def photographs(tmp_path):
    for part in ("train", "val"):
        for number in range(8):
            place = tmp_path / "photographs" / part / "ab"[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), (number, 0, 0)).save(place)
    root = f"dataset.root={tmp_path / 'photographs'}"
    return ["dataset=imagefolder", root, "dataset.image_size=32", "dataset.workers=1",
            "dataset.holdout=2", *TINY[1:-1]]  # fmt: skip


def test_a_folder_is_read_beside_the_step(bench, tmp_path, photographs):
    own = ["--parts", "stages", "--steps", "1", "--rounds", "2", "--batch", "4"]
    code, out, err = bench(*photographs, *own)
    assert code == 0, err
    *_, whole, files = kept(tmp_path / "outputs/benchmark")["stages"]
    assert whole["name"] == "PGD-1: all", "reading is no part of it"
    assert files["name"] == "the files alone, 1 readers" and files["images/s"] > 0
    assert not active_children()


def test_readers_end_with_the_call_that_fails(photographs, monkeypatch):
    case = case_of([*photographs, "schedule.batch_size=4"])
    clock = iter([1.0])
    monkeypatch.setattr(parts.time, "perf_counter", lambda: next(clock))  # it stops
    with pytest.raises(StopIteration):
        parts.files(case, stopwatch.Stopwatch(case.device, 1))
    assert not active_children()


def test_images_that_are_not_here_are_not_read():
    case = case_of(["dataset=imagenet", "dataset.image_size=16", *TINY[1:]])
    own = types.SimpleNamespace(steps=(1,), compilations=(False,))
    assert [key for key, *_ in parts.stages(case, own, None)] == ["PGD-1"]


def test_a_compiler_that_fails_costs_no_eager_number(bench, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    own = ["--parts", "stages,activations", "--steps", "1", "--rounds", "1", "--compile"]
    code, out, err = bench(*TINY, *own)
    assert code == 0, err
    found = kept(tmp_path / "outputs/benchmark")
    assert [row for row in found["stages"] if row.get("name") == "PGD-1: all"]
    eager = [row["name"] for row in found["activations"] if "note" not in row]
    assert eager == ["relu", "gelu"] and out.count(" is left out: it failed (") == 3


# refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--steps", "one"], "--steps: invalid steps value: 'one'"),
        (["--steps", "-1"], "-1: must be 0 or above"),
        (["--rounds", "0"], "--rounds: 0: must be 1 or above"),
        (["--parts", "step"], "step: is none of steps, stages, activations"),
        (["--budget", "10"], "--budget: 10: write a time"),
        (["--batch", "1"], "schedule.batch_size=1"),
        (["device=tpu"], "device=tpu"),
        (["relu"], "relu: is no override; write group=option or key=value"),
        (["model.depht=18"], "model.depht"),
        (["dataset=nothing"], "dataset=nothing"),
        (["attack=none"], "attack: only PGD"),
        (["attack.norm=l2", "attack.eps=128"], "attack: only PGD"),
        (["schedule.grad_checkpointing=true", "model=timm", "model.name=vgg11_bn",
          "model.stem=large", "--parts", "stages"], "schedule.grad_checkpointing=true"),
    ],
)  # fmt: skip
def test_bad_arguments_are_answered_in_a_line(bench, given, told):
    code, out, err = bench(*given, "--rounds", "1") if "--rounds" not in given else bench(*given)
    assert code == 2 and told in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if not line.startswith("usage:")]) == 1


def test_memory_that_runs_out_is_told_in_a_line(bench, monkeypatch):
    def greedy(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(parts, "each_stage", greedy)
    code, out, err = bench(*TINY, "--parts", "stages")
    assert (code, err) == (1, "! out of memory at batch 8; --batch takes fewer images\n")


def test_only_what_can_be_timed_is_a_case():
    with pytest.raises(Refused, match="model.depth"):
        case_of(["model.depth=19"])
    case = case_of([])
    assert case.batch == 128 and case.sizes.shape == (3, 32, 32)
    assert case.cost.parameters == 11_173_962, "ResNet-18 of 32x32 images"
    assert case_of(["activation=elu", "activation.alpha=2", "seed=1"]).without("activation") == [
        "dataset=cifar10", "seed=1"
    ]  # fmt: skip
    assert case.pgd(10).step_size == 2 and case.pgd(1).step_size == 8


def test_methods_are_told_in_units_and_in_time(quick, monkeypatch, tmp_path, capfd):
    """Of what the command line says of methods nothing is left."""
    chosen = ("attack.steps=2", "objective=trades attack.steps=2", "attack=free attack.replays=4")
    monkeypatch.setattr(parts, "METHODS", chosen)
    given = [*FIXED, "regulariser=elle", "--parts=methods", "--rounds=1", f"--out={tmp_path}"]
    assert benchmark.main(given) == 0, capfd.readouterr().err
    rows = json.loads((tmp_path / "benchmark.json").read_text())["methods"]
    assert [(row["name"], row["units"]) for row in rows] == [*zip(chosen, (7, 11, 12), strict=True)]
    assert all(row["images/s"] > 0 for row in rows)
