"""The benchmark's loops do the same work, its counts are torch's, and its ratios survive noise.

No test looks at a time.
"""

import importlib
import json
import sys
import types
from multiprocessing import active_children

import pytest
import torch
import torch._inductor.compile_fx
from conftest import ROOT
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sat.errors import Fault, Refused
from sat.models import Classifier

TINY = ["dataset=digits", "model=resnet_cifar", "model.depth=8", "model.width=0.25",
        "schedule.batch_size=8"]  # fmt: skip
FIXED = [*TINY, "attack.start=none", "attack.eps=32"]


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' modules by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


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
def quick(scripts, monkeypatch):
    """Blocks of one call and small products: the numbers mean nothing."""
    stopwatch = scripts("stopwatch")
    monkeypatch.setattr(stopwatch, "SECONDS", 0.0)
    monkeypatch.setattr(stopwatch, "SIDE", {"cpu": 16, "cuda": 16})


class Flop(TorchDispatchMode):
    """By torch's own formulas. `FlopCounterMode` can't watch gradients of the images alone: its
    hooks on modules want those of leaves."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


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


def plain(scripts, *words: str):
    """Ours without a trick, and the case."""
    case = scripts("cases").case_of([*FIXED, *words])
    loops = scripts("loops")
    return loops.ours(case, "ours", precision="fp32", **dict.fromkeys(loops.TRICKS, False)), case


def assert_same(one, other):
    (x, gradients), (x_other, others) = one, other
    # the sign of a gradient of about 0 may differ
    assert ((x - x_other).abs() > 1e-6).float().mean() < 0.01
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 0.02 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_published_loop_does_what_ours_does(scripts, k):
    ours, case = plain(scripts, "attack.batch_norm=train")
    published = scripts("loops").published(case)
    assert_same(seen(ours, case, k), seen(published, case, k))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_torchattacks_does_what_ours_does(scripts, torchattacks, k):
    ours, case = plain(scripts)
    assert_same(seen(ours, case, k), seen(scripts("loops").torchattacks(case), case, k))


def test_another_attack_is_seen(scripts):
    """The comparison can fail: other statistics, and another number of steps."""
    ours, case = plain(scripts)
    with pytest.raises(AssertionError):
        assert_same(seen(ours, case, 3), seen(scripts("loops").published(case), case, 3))
    with pytest.raises(AssertionError):
        assert_same(seen(ours, case, 1), seen(ours, case, 2))


def test_work_is_counted_as_torch_counts_it(scripts, torchattacks):
    """2k + 3 units with gradients of the images alone, 3k + 3 with those of the weights as well; of
    the first layer an update needs no gradient of the images."""
    ours, case = plain(scripts)
    loops, images = scripts("loops"), case.images()
    first = 2 * 3 * 3 * 1 * 4 * 8 * 8 * case.batch
    unit = 2 * case.cost.multiply_adds * case.batch
    for k in (0, 1, 2):
        counted = {}
        for loop in (ours, loops.published(case), loops.torchattacks(case)):
            with Flop() as counter:
                loop.step(k, *images)
            counted[loop.name] = counter.total
        assert counted["ours"] == counted["torchattacks"] == case.flop(k) - first
        assert case.flop(k) == (2 * k + 3) * unit
        assert counted["published loop"] == (3 * k + 3) * unit - first


def test_what_can_be_compared_here(scripts, torchattacks, monkeypatch):
    case = scripts("cases").case_of(TINY)
    monkeypatch.setattr(scripts("loops"), "failing", lambda loop, case: [])  # compiles nothing
    names = ["sat", "sat, compiled", "sat, no trick", "published loop", "torchattacks"]
    loops, notes = scripts("loops").loops_of(case, compiled=True)
    assert [loop.name for loop in loops] == names and not notes
    assert [loop.choices["compile"] for loop in loops] == [name == names[1] for name in names]
    assert loops[0].choices["precision"] == case.choices["precision"]
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    loops, (note,) = scripts("loops").loops_of(case, compiled=False)
    assert "torchattacks is left out" in note and len(loops) == 3


def test_a_loop_that_fails_is_told_and_memory_that_runs_out_is_not_hidden(scripts):
    case, loops = scripts("cases").case_of(TINY), scripts("loops")

    def failing(error: Exception) -> list[str]:
        def step(k, x, y):
            raise error

        return loops.failing(loops.Loop("graphs", step, loops.plain()), case)

    assert failing(RuntimeError("no capture\nsecond line")) == [
        "graphs is left out: it failed (no capture)"
    ]
    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("CUDA out of memory"))
    assert loops.failing(loops.ours(case, "ours"), case) == []


def test_a_compilation_that_fails_does_not_pass_for_one(scripts, monkeypatch):
    """Where it is on by itself torch goes on without it: that is no time of a compiled network."""
    case, loops = scripts("cases").case_of(TINY), scripts("loops")

    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    (told,) = loops.failing(loops.ours(case, "sat, compiled", compile=True), case)
    assert told.startswith("sat, compiled is left out: it failed (")


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


def test_each_round_times_each_call_in_blocks_that_are_long_enough(scripts, monkeypatch):
    stopwatch = scripts("stopwatch")
    clock, entered = Clock(monkeypatch, stopwatch), []
    calls = {name: stopwatch.Timed(clock.call(name, seconds)) for name, seconds in
             (("long", 1.0), ("short", 0.06))}  # fmt: skip

    class Within:
        def __enter__(self):
            clock.now += 100  # is no part of the call

        def __exit__(self, *_):
            entered.append(1)

    calls["within"] = stopwatch.Timed(clock.call("within", 0.3), Within)
    times = stopwatch.interleaved(calls, torch.device("cpu"), 12)
    assert {name: len(rounds) for name, rounds in times.items()} == dict.fromkeys(calls, 12)
    assert times["long"] == pytest.approx([1.0] * 12)
    assert times["short"] == pytest.approx([0.06] * 12)
    assert times["within"] == pytest.approx([0.3] * 12) and len(entered) == 13
    # a call to warm up, one to find the block, and blocks of ceil(0.2 / 0.06)
    assert clock.calls.count("long") == 13 and clock.calls.count("short") == 2 + 12 * 4
    firsts = {[c for c in clock.calls if c != "short"][k] for k in range(2, 26, 2)}
    assert firsts == {"long", "within"}, "the order is always the same"


def test_ratios_are_those_of_a_round(scripts, monkeypatch):
    """A machine that grows slower from round to round changes no ratio."""
    stopwatch = scripts("stopwatch")
    clock = Clock(monkeypatch, stopwatch)
    calls = {name: stopwatch.Timed(clock.call(name, s)) for name, s in (("a", 1.0), ("b", 2.0))}

    def slower(line: str) -> None:
        clock.pace *= 3 if line.startswith("round") else 1

    times = stopwatch.interleaved(calls, torch.device("cpu"), 4, slower)
    assert times["a"] == pytest.approx([1, 3, 9, 27])
    ratio = stopwatch.paired(lambda b, a: b / a, times["b"], times["a"])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    found = stopwatch.spread([4.0, 1.0, 2.0, 3.0, 100.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    assert stopwatch.spread([5.0]).json() == {"median": 5.0, "low": 5.0, "high": 5.0}


@pytest.mark.parametrize("tf32", [True, False, None])
def test_settings_are_as_before(scripts, tf32):
    def now():
        matmul = torch.get_float32_matmul_precision()
        return torch.get_num_threads(), matmul, torch.backends.cudnn.allow_tf32

    before = now()
    choices = {"threads": before[0] + 1} | ({} if tf32 is None else {"tf32": tf32})
    with pytest.raises(ZeroDivisionError), scripts("stopwatch").settings(choices):
        kept = before[1:] if tf32 is None else ("high" if tf32 else "highest", tf32)
        assert now() == (before[0] + 1, *kept)
        raise ZeroDivisionError
    assert now() == before


def test_a_product_has_2n3_operations(scripts, quick):
    device = torch.device("cpu")
    for product in scripts("stopwatch").products(device):
        with Flop() as counter:
            product.call.run()
        assert counter.total == product.flop == 2 * 16**3


def test_stages_add_up_to_the_step(scripts):
    calls = ["attack forward", "attack gradient", "attack", "forward", "gradients", "optimizer",
             "step", "data", "log", "fold", "fed"]  # fmt: skip
    times = {call: 1.7**k for k, call in enumerate(calls)}
    for k in (0, 1, 3):
        times["attack"] = 1.7**2 if k else 0.0
        stages = scripts("stages").stages_of(k, log_every=50)
        whole = sum(stage.seconds(*(times[call] for call in stage.calls)) for stage in stages)
        assert whole == pytest.approx(times["step"] + times["data"] + times["log"] / 50)
        assert sum(stage.units for stage in stages) == 2 * k + 3
    beside = scripts("stages").stages_of(3, log_every=50, streamed=True)
    whole = sum(stage.seconds(*(times[call] for call in stage.calls)) for stage in beside)
    assert whole == pytest.approx(times["fed"] + times["log"] / 50)


def test_growth_that_is_linear_has_exponent_1(scripts):
    exponent = scripts("growth").exponent
    assert exponent([1, 2, 8], [3, 6, 24]) == pytest.approx(1)
    assert exponent([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
    case = scripts("cases").case_of(TINY)
    found = scripts("growth").variants(case)
    assert {name: [value for value, _, _ in cases] for name, cases in found.items()} == {
        "k": ["0", "1", "2", "4"], "batch": ["2", "4", "8"], "pixels": ["4", "8", "16"],
        "depth": ["20", "32", "56"],
    }  # fmt: skip
    work = {name: [c.flop(k) for _, c, k in cases] for name, cases in found.items()}
    assert all(flop == sorted(set(flop)) for flop in work.values())
    assert work["batch"][2] == 4 * work["batch"][0]


# memory -----------------------------------------------------------------------------------------


def test_memory_that_is_known(scripts):
    stopwatch, memory = scripts("stopwatch"), scripts("memory")

    def three_megabytes() -> None:
        a = torch.ones(250_000)
        b = a + 1  # two are alive
        del a
        c = torch.cat([b, b])  # three are
        del b, c
        torch.ones(500_000)

    assert 3e6 <= stopwatch.peak_bytes(three_megabytes, torch.device("cpu")) < 3.01e6
    held = torch.ones(250_000)
    with memory.Live([held]) as live:
        three_megabytes()
        held.add_(1)
        held.view(5, -1)
    assert (live.most, live.now) == (3_000_000, 0)


def test_counted_memory_is_that_of_a_real_step(scripts):
    memory, stopwatch = scripts("memory"), scripts("stopwatch")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(),
                        nn.Linear(512, 10))  # fmt: skip
    model = Classifier(net, [0.5], [0.25])
    x, y = torch.rand(256, 1, 8, 8), torch.arange(256) % 10
    for step in (memory.update, memory.attack):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        counted = memory.live_bytes(step, model, x, y)
        real = stopwatch.peak_bytes(lambda s=step: s(model, x, y), torch.device("cpu"))
        assert counted == pytest.approx(real, rel=0.1)


def test_large_networks_are_counted_without_memory(scripts):
    memory = scripts("memory")
    case = scripts("cases").case_of(["dataset=imagenet", "model.depth=50", "dataset.image_size=64",
                                     "schedule.optimizer=momentum"])  # fmt: skip
    plain, less = (memory.need_of(case, "fp32", checkpointed) for checkpointed in (False, True))
    half = memory.need_of(case, "bf16", False)
    alone = memory.need_of(case.varied("schedule.fold=false"), "fp32", False)
    copied = plain["update"].fixed - alone["update"].fixed
    assert copied == pytest.approx(4 * case.cost.parameters, rel=0.01)
    for step in ("attack", "update"):
        assert less[step].image < 0.6 * plain[step].image
        assert 0.4 < half[step].image / plain[step].image < 0.65
        assert plain[step].fixed >= 3 * 4 * case.cost.parameters  # weights, gradients, momentum
    # a convolution keeps its input, whether or not its weights are frozen
    assert plain["attack"].image == pytest.approx(plain["update"].image, rel=0.1)
    need = memory.Need(fixed=100.0, image=7.0)
    assert [need.largest(m) for m in (99, 106, 107, 170)] == [0, 0, 1, 10]


# the command ------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(scripts, quick, tmp_path, monkeypatch, capfd):
    """`benchmark("--steps", "0,1")` in this process, on tiny networks: code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
        capfd.readouterr()
        try:
            code = scripts("benchmark").main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


def is_spread(found: dict) -> bool:
    return found.keys() == {"median", "low", "high"} and found["low"] <= found["high"]


def test_the_command_from_end_to_end(benchmark, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    code, out, err = benchmark(*TINY, "--steps", "1,0", "--rounds", "2", "--out", "kept")
    assert code == 0, err
    found = json.loads((tmp_path / "kept/benchmark.json").read_text())
    assert found.keys() == {"about", "steps", "stages", "activations"}
    about = found["about"]
    assert about["command"].startswith("python benchmark.py dataset=digits")
    assert {"torch", "timm", "python", "device", "threads", "isa", "time", "words"} <= about.keys()
    assert about["batch"] == 8 and about["shape"] == [1, 8, 8]
    steps = found["steps"]
    assert [(row["loop"], row["k"]) for row in steps["rows"]] == [
        (name, k) for name in ("sat", "sat, no trick", "published loop") for k in (0, 1)
    ]
    for row in steps["rows"]:
        assert row["flop"] == 2 * steps["multiply_adds"] * 8 * (2 * row["k"] + 3)
        assert len(row["rounds"]) == 2 and is_spread(row["share_of_peak"])
        assert is_spread(row["seconds"]) and is_spread(row["times_published"])
        assert "times_torchattacks" not in row
    assert steps["memory"]["k"] == 1 and all(steps["memory"]["bytes"].values())
    assert "torchattacks is left out" in steps["notes"][0] and steps["notes"][0] in out
    (stages,) = found["stages"]
    assert stages["k"] == 1 and sum(row["units"] for row in stages["rows"]) == 5
    activations = found["activations"]["rows"]
    options = {file.stem for file in (ROOT / "conf/activation").glob("*.yaml")}
    assert {row["activation"] for row in activations} == options
    assert activations[0]["eager"]["update"]["to_relu"]["median"] == 1
    for name in ("steps.png", "steps.svg", "benchmark.md"):
        assert (tmp_path / "kept" / name).stat().st_size > 500
    assert (tmp_path / "kept/benchmark.md").read_text().strip() == out.strip()


def test_a_folder_is_read_beside_the_step(benchmark, tmp_path):
    folder = ["dataset=imagenet", "dataset.image_size=32", "dataset.workers=1", *TINY[1:-1]]
    own = ["--parts", "stages", "--steps", "1", "--rounds", "1", "--batch", "4"]
    code, out, err = benchmark(*folder, *own)
    assert code == 0, err
    (found,) = json.loads((tmp_path / "outputs/benchmark/benchmark.json").read_text())["stages"]
    assert [row["stage"] for row in found["rows"]][0] == "data: waited for"
    assert found["read"]["processes"] == 1 and found["read"]["images_per_second"]["median"] > 0
    assert "500x375" in found["read"]["files"] and "images/s are read" in out
    assert not active_children()


def test_readers_end_with_the_step_that_fails_and_are_used_up_before_the_clock_starts(
    scripts, tmp_path
):
    loading, words = scripts("loading"), ["dataset=tiny_imagenet", "dataset.workers=1"]
    case = scripts("cases").case_of([*words, *TINY[1:-1], "schedule.batch_size=4"])
    images = loading.training_images(case, tmp_path)
    assert "64x64" in loading.about(images, case)["files"]
    steps = []
    timed = loading.fed(case, images, lambda x, y: steps.append(len(x)))
    with timed.within():
        assert steps == [4, 4]
    broken = loading.fed(case, images, lambda x, y: 1 / 0)
    with pytest.raises(ZeroDivisionError), broken.within():
        pass
    assert not active_children()


def test_a_compiler_that_fails_costs_no_eager_number(benchmark, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    own = ["--parts", "stages,activations", "--steps", "1", "--rounds", "1", "--compile"]
    code, out, err = benchmark(*TINY, *own)
    assert code == 0, err
    found = json.loads((tmp_path / "outputs/benchmark/benchmark.json").read_text())
    assert len(found["stages"]) == 1 and "eager" in found["activations"]["rows"][0]
    assert out.count(" is left out: it failed (") == 2


def test_growth_and_memory_are_parts_of_their_own(benchmark, scripts, tmp_path, monkeypatch):
    small = {"digits": ("model=resnet", "model.depth=10", "dataset.image_size=32")}
    monkeypatch.setattr(scripts("memory"), "LARGE", small)
    code, out, err = benchmark(*TINY, "--parts", "memory,growth", "--rounds", "1", "--gib", "1")
    assert code == 0, err
    found = json.loads((tmp_path / "outputs/benchmark/benchmark.json").read_text())
    assert found.keys() == {"about", "growth", "memory"}
    assert all(isinstance(each["exponent"], float) for each in found["growth"].values())
    plain, less = found["memory"]["rows"]
    assert not plain["checkpointed"] and less["checkpointed"]
    assert plain["largest_batch"]["1"] < less["largest_batch"]["1"]
    assert "## Growth" in out and "## Memory" in out


# whole commands ---------------------------------------------------------------------------------


def assert_multiplied(program, made, folder):
    """The copies are named as the program would, and are what a report takes for finished."""
    runs, copies = (program.runs_in(place) for place in (made, folder))
    assert len(copies) == program.RESULTS > len(runs) > 2
    assert {run.name for run in runs} < {copy.name for copy in copies}
    for run in copies:
        spec = program.check(program.read_yaml(run / "config.yaml"))
        result = json.loads((run / "result.json").read_text())
        assert (run.name, spec.hash, spec.seed) == (spec.name, result["hash"], result["seed"])
        assert result["status"] == "finished" and result["alarms"]
        assert (run / "experiments.txt").read_text() == "equal_cost\n"
        assert (run / "flags").is_dir() and not (run / "checkpoints").exists()


def test_whole_commands_are_a_part_of_their_own(benchmark, scripts, tmp_path, monkeypatch):
    program, temporary = scripts("program"), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def multiply(made, folder, multiplied=program.multiply):
        multiplied(made, folder)
        assert_multiplied(program, made, folder)

    small = {"RUNS": 2, "RESULTS": 9, "EXPERIMENTS": ("equal_cost",), "multiply": multiply}
    for name, value in small.items():
        monkeypatch.setattr(program, name, value)
    code, out, err = benchmark(*TINY, "--device", "cpu", "--parts", "program", "--rounds", "1")
    assert code == 0, err
    found = json.loads((tmp_path / "outputs/benchmark/benchmark.json").read_text())
    assert found.keys() == {"about", "program"} and "program" not in scripts("benchmark").USUAL
    rows = {row["command"]: row for row in found["program"]["rows"]}
    assert {what: row["aim"] for what, row in rows.items()} == {
        "help": 2, "import sat.run": None, "first step": 8, "finished run again": None,
        "sweep again": 120, "report": 30,
    }  # fmt: skip
    assert all(is_spread(row["seconds"]) and len(row["rounds"]) == 1 for row in rows.values())
    assert "## Program" in out and "sweep again (2 finished runs)" in out
    assert "report (9 run directories)" in out
    assert not [*temporary.glob("sat-*")]


def test_the_first_step_is_seen_while_the_run_goes_on(scripts, tmp_path, monkeypatch):
    program, seen = scripts("program"), []

    def watch(root, has_logged=program.has_logged):
        if found := has_logged(root):
            lines = [file.read_text().splitlines()[0] for file in root.glob("*/metrics.jsonl")]
            seen.append((lines, [*root.glob("*/result.json")]))
        return found

    monkeypatch.setattr(program, "has_logged", watch)
    command = [sys.executable, "-m", "sat.run", *program.TINY, "device=cpu"]
    assert program.first_step(command, tmp_path, iter(["first"])) > 0
    ([line], results), ([_], [_]) = seen  # at the first step, and at the end
    assert json.loads(line)["step"] == 1 and "train/loss" in line and not results
    with pytest.raises(Fault, match=r"epohcs=3 device=cpu: ended with 2: .*epohcs"):
        wrong = [*command[:3], "schedule.epohcs=3", *command[-1:]]
        program.first_step(wrong, tmp_path, iter(["wrong"]))
    with pytest.raises(Fault, match="ended with 2: .*epohcs"):
        program.seconds(wrong, tmp_path)


# refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--steps", "one"], "--steps: one: write numbers"),
        (["--steps", "-1"], "-1: must be 0 or above"),
        (["--rounds", "0"], "--rounds: 0: must be 1 or above"),
        (["--parts", "step"], "step: is none of steps, stages"),
        (["--batch", "1"], "schedule.batch_size=1"),
        (["--device", "tpu"], "device=tpu"),
        (["relu"], "relu: is no key=value"),
        (["model.depht=18"], "model.depht"),
        (["dataset=nothing"], "dataset=nothing"),
        (["attack=none"], "attack: only PGD"),
        (["attack.norm=l2"], "attack: only PGD"),
        (["schedule.grad_checkpointing=true", "model=timm", "model.name=vgg11_bn",
          "model.stem=large", "--parts", "stages"], "schedule.grad_checkpointing=true"),
    ],
)  # fmt: skip
def test_bad_arguments_are_answered_in_a_line(benchmark, given, told):
    code, out, err = (
        benchmark(*given, "--rounds", "1") if "--rounds" not in given else benchmark(*given)
    )
    assert code == 2 and told in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if not line.startswith("usage:")]) == 1


def test_memory_that_runs_out_is_told_in_a_line(benchmark, scripts, monkeypatch):
    def greedy(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setitem(scripts("benchmark").MEASURE, "growth", greedy)
    code, out, err = benchmark(*TINY, "--parts", "growth")
    assert (code, err) == (1, "out of memory at batch 8; --batch takes fewer images\n")


def test_a_short_run_is_shorter_unless_it_is_told_otherwise(scripts):
    arguments = scripts("benchmark").arguments
    short, own = arguments(["--short"]), arguments(["--short", "--rounds", "9", "--batch", "64"])
    assert (short.steps, short.rounds) == ((0, 1, 2), 3)
    assert short.words == ["schedule.batch_size=32"] and own.words == ["schedule.batch_size=64"]
    assert own.rounds == 9 and arguments([]).steps == (0, 1, 2, 3, 10)


def test_what_a_processor_can_do(scripts, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name : X\nflags\t\t: fpu avx2 amx_bf16 amx_tile\nflags : fpu\n")
    assert scripts("benchmark").isa(file) == ["avx2", "amx_tile", "amx_bf16"]
    assert scripts("benchmark").isa(tmp_path / "missing") == []


def test_only_what_can_be_timed_is_a_case(scripts):
    case_of = scripts("cases").case_of
    with pytest.raises(Refused, match="model.depth"):
        case_of(["model.depth=19"])
    case = case_of([])
    assert case.batch == 128 and case.sizes.shape == (3, 32, 32)
    assert case.cost.parameters == 11_173_962, "ResNet-18 of 32x32 images"
    assert case.varied("dataset.image_size=16").sizes.pixels == 16
    assert case.attack(10).step_size == 2 and case.attack(1).step_size == 8
