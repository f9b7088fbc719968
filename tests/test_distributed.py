"""Several processes of one run give what one gives; what one of them meets, all do."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import warm
from conftest import ROOT, TINY, command, small_network
from messages import RESUMED
from processes import CASES, STEPS

from sat.acceleration.device import find_device
from sat.attacks import PGD
from sat.attacks.outcomes import AttackOutcomes
from sat.config import composed
from sat.data import Batch, epoch_batches
from sat.data.memory import MemorySplit
from sat.distributed import ALONE, World
from sat.errors import Diverged, Fault, Refused
from sat.evaluation.store import Measurement, OutcomeStore
from sat.identity import Settings
from sat.objectives import Adversarial, Method
from sat.training.plan import Plan
from sat.training.preflight import check_processes
from sat.training.schedule import Schedule
from sat.training.state import TrainState

# Layer norm instead of batch norm, which on a CPU sees the images of one process alone.
NETWORK = ["model=timm", "model.name=test_convnext", "model.width=null", "dataset.image_size=32"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def torchrun(count: int, *words: str, looks: float = 0.1) -> list[str]:
    """The command line; torchrun looks at its processes every so many seconds."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}",
            "--standalone", f"--monitor-interval={looks}", *words]  # fmt: skip


def started(cwd: Path, count: int, *arguments: str, looks: float = 0.1) -> warm.Command:
    """The tiny run in so many processes, results in cwd/outputs."""
    words = torchrun(count, *command(*TINY, *NETWORK, *arguments)[1:], looks=looks)
    words = [word for word in words if not word.startswith("model.width")]
    return warm.Command(words, cwd, ENVIRONMENT)


def finished(process: warm.Command) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_row_is_one_processs_and_stays_in_its_part(size, parts):
    alone = ALONE.rows(32, parts)
    shares = [World(rank, size).rows(32, parts) for rank in range(size)]
    for k, whole in enumerate(alone):
        assert torch.equal(torch.cat([rows[k] for rows in shares]), whole)
        assert max(len(rows[k]) for rows in shares) - min(len(rows[k]) for rows in shares) <= 1
    places = [torch.arange(37)[World(rank, size).own] for rank in range(size)]
    assert torch.equal(torch.cat(places).sort().values, torch.arange(37))


@pytest.mark.parametrize("kept", [2, 0], ids=["some", "all"])
def test_a_process_may_hold_no_part_of_some_weights(kept, monkeypatch):
    """torch shares out ten classes over six processes as 2, 2, 2, 2, 2 and none."""
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6), 6, 0, choices)
    state = TrainState(small_network(), Method(PGD(8, 1), Adversarial()), plan)
    parts = lambda weights: [*weights[:kept], *(w[:0] for w in weights[kept:])]  # noqa: E731
    monkeypatch.setattr(state.replicas, "local", parts)
    state.check_finite()
    state.parameters[0].data.fill_(torch.nan)
    with pytest.raises(Diverged) if kept else nullcontext():
        state.check_finite()


def test_a_share_is_augmented_as_in_the_whole_batch():
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    split = MemorySplit(images, torch.arange(20), crop=2, flip=True)
    (batch,) = epoch_batches(20, 12, 0, 1, 2)
    ((x, y),) = split.stream([batch])
    for rank in range(3):
        rows = torch.cat(World(rank, 3).rows(12, 2))
        ((own_x, own_y),) = split.stream([batch.part(rows)])
        assert torch.equal(own_x, x[rows]) and torch.equal(own_y, y[rows])
    assert torch.equal(Batch(torch.arange(3), None).rows, torch.arange(3))


def spec_of(**schedule):
    return composed([]).bringing(schedule=Schedule(**schedule))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sync_batch_norm": True}, "sync_batch_norm=true: torch has none for a CPU"),
        ({"shard": True, "compile": True}, "shard=true: goes with fp32 and bf16, uncompiled"),
        ({"shard": True, "precision": "fp16"}, "shard=true: goes with fp32 and bf16"),
        ({"shard": True, "fold": True}, r"fold=true: is for whole weights \(shard=false\)"),
        ({"shard": True, "fused": True}, r"fused=true: is for whole weights \(shard=false\)"),
        ({"accumulate": "auto"}, "accumulate=auto: is for one process"),
        ({"batch_size": 8, "accumulate": 2}, "batch_size=8: .* 3 processes in each of 2 parts"),
    ],
)
def test_what_can_not_be_shared_is_refused(given, says):
    with pytest.raises(Refused, match=says):
        check_processes(spec_of(**given), False, 3)
    check_processes(spec_of(batch_size=12, accumulate=2), False, 3)


def test_what_one_process_can_not_do_either_is_refused():
    with pytest.raises(Refused, match="shard=true: .*, and there is one; start them with torchrun"):
        check_processes(spec_of(shard=True), True, 1)
    with pytest.raises(Refused, match="sync_batch_norm=true: with attack.batch_norm=train"):
        spec = spec_of(sync_batch_norm=True).bringing(attack=PGD(8, 1, batch_norm="train"))
        check_processes(spec, True, 2)
    check_processes(spec_of(accumulate="auto"), False, 1)


@pytest.mark.parametrize("kind", [Refused, Fault])
def test_what_the_first_meets_is_told_by_the_first_alone(kind, monkeypatch):
    """Of its Fault the others make a Refused, which only the first tells."""
    box = [None, (kind, "the disk is full")]
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda given, *a, **k: given.__setitem__(slice(2), box)
    )

    def ask():
        raise kind("the disk is full")

    with pytest.raises(kind, match="full"):
        World(0, 2).on_rank0(ask)
    with pytest.raises(Refused, match="full"):
        World(1, 2).on_rank0(ask)


@pytest.mark.parametrize("ranks", [range(3), range(1, 3)], ids=["all", "without the first"])
def test_what_several_left_of_an_evaluation_is_put_together(ranks, tmp_path):
    store = OutcomeStore(tmp_path, torch.arange(10), "images")
    of = Measurement("last", "pgd", Settings({"attack": "PGD"}), "weights")
    for rank in ranks:
        outcomes = AttackOutcomes.new(("restart 1",), 10)
        part = outcomes.part(World(rank, 3).own)
        part.fell[0], part.passed[1] = 0, 1
        outcomes.seconds += 1
        store.write_partial(of, outcomes, rank)
    whole = AttackOutcomes(outcomes.names, **store.read_partial(of))
    assert whole.fell.tolist() == [0 if rank in ranks else -1 for rank in range(3)] + [-1] * 7
    assert whole.passed.tolist() == [0] * 3 + [int(rank in ranks) for rank in range(3)] + [0] * 4
    assert whole.seconds.tolist() == [len(ranks)] and len([*tmp_path.glob("partial/*")]) == 1
    store.write(of, whole)
    assert not (tmp_path / "partial").exists()
    same = Measurement("best", "pgd", Settings({"attack": "PGD"}), "weights")  # of the same weights
    assert torch.equal(store.read(same).fell, whole.fell)
    assert store.read(Measurement("best", "pgd", Settings({"attack": "PGD"}), "others")) is None


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(find_device("auto", seat)) for seat in range(4)] == [
        "cuda:0",
        "cuda:1",
    ] * 2
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(key, value)
    assert str(find_device("auto", 1)) == str(find_device("cuda", 1)) == "cuda:1"
    assert find_device("cpu", 1).type == "cpu"
    with pytest.raises(ValueError, match="=cuda:1: is one GPU for all processes"):
        find_device("cuda:1", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="2 GPU here for 4 processes"):
        find_device("auto", 1)


def test_one_of_several_ends_without_taking_python_apart():
    """Else gloo's threads abort a process now and then, and torchrun a run that is done."""
    program = """
import atexit
from sat.launch import end
class Held:
    def __del__(self): print("taken apart")
held = Held()
atexit.register(print, "at exit")
print("told", end=" ")
end(3)
"""
    several = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}
    for more, out in ((several, "told at exit"), ({}, "told at exit\ntaken apart")):
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, env=ENVIRONMENT | more, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (3, out, "")


# --- processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 3])
def answer(request):
    """What so many processes found: see processes.py."""
    cases = [case for case in CASES if case != "compiled" or request.param == 2]
    return {**answered(request.param, "cpu", *cases), "size": request.param}


def answered(count: int, *words: str) -> dict:
    words = torchrun(count, str(Path(__file__).with_name("processes.py")), *words)
    code, out, err = finished(warm.Command(words, ROOT, ENVIRONMENT))
    assert code == 0, err
    return json.loads(out)


def test_the_same_batches_give_the_same_weights(answer):
    exact = {"plain", "accumulate", "average", "compiled", "sharded"}
    exact |= {"perturbed weights", "two views", "learned weight", "gradients of gradients"}
    exact |= {"several balls"}
    for case, found in answer["training"].items():
        if case in ("broken", "batch norm"):
            continue
        most = 1e-6 if case in exact else 1e-3  # what the optimiser remembers included
        assert max(found[what] for what in ("weights", "measured", "logs")) < most, (case, found)
    assert {*answer["training"]} >= exact - ({"compiled"} if answer["size"] == 3 else set())


def test_all_processes_hold_the_same_weights_and_statistics(answer):
    for case, found in answer["training"].items():
        if case != "broken":
            assert found["same on all"] and found["loaded"] == 0, case
    assert 1e-6 < answer["training"]["batch norm"]["weights"] < 0.1  # its own images' statistics


def test_an_update_is_one_collective_and_an_attack_is_none(answer):
    for case, found in answer["training"].items():
        if case not in ("broken", "sharded"):  # there the weights must be gathered
            twice = case in ("perturbed weights", "several balls")  # which counts what stood
            once = STEPS * (1 + twice)
            assert (found["collectives"], found["in attacks"]) == (once, 0), case
    if sharded := answer["training"].get("sharded"):
        assert sharded["in attacks"] > 0  # the count can count


def test_what_is_not_finite_in_one_process_is_skipped_by_all(answer):
    broken = answer["training"]["broken"]
    assert broken == {"skipped": [1] * answer["size"], "finite": True}


@pytest.mark.parametrize("kind", ["evaluation", "quick evaluation"])
def test_an_evaluation_counts_each_image_once(answer, kind):
    assert answer[kind]["same"] and answer[kind]["images"] == [*range(37)]
    assert 0 < answer[kind]["robust"] < 37


def test_hosts_agree(answer):
    size = answer["size"]
    assert answer["told"] == ["by the first"] * size
    assert answer["most"] == [size - 1, 5] and answer["counted"] == 1  # the count can count


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gpus_share_batch_norm():
    for case, found in answered(2, "auto", "plain", "batch norm", "sharded")["training"].items():
        if case != "broken":
            assert found["same on all"] and max(found["weights"], found["measured"]) < 1e-4, case


# --- the command ---------------------------------------------------------------------------------


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)["model"]


def wait_for(path: Path, process: warm.Command, newer: float = 0.0) -> None:
    until = time.monotonic() + 240
    while not path.exists() or path.stat().st_mtime <= newer:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, path
        time.sleep(0.01)


def test_stopped_killed_and_resumed_by_other_numbers_of_processes(sat, tmp_path):
    """3 processes, asked to stop; 2 with shared out weights, of which one is killed; 1 to the end:
    as one, never stopped."""
    options = ["schedule.epochs=8", "record.checkpoint_minutes=0"]
    words = [word for word in [*TINY, *NETWORK, *options] if "width" not in word]
    ended = sat(*words, tiny=False, root=tmp_path / "alone")
    assert ended.code == 0, ended.err
    (run,) = [tmp_path / "outputs" / ended.run.name]
    last = run / "checkpoints" / "last.pt"

    process = started(tmp_path, 3, *options)
    wait_for(last, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finished(process)
    assert code and "stopping after this step" in err and "3 processes" in out, (out, err)
    assert "SIGTERM" in err

    saved = last.stat().st_mtime
    # so seldom that the other process finds out by itself, before it is stopped for the first
    process = started(tmp_path, 2, *options, "schedule.shard=true", looks=5)
    wait_for(last, process, saved)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    begun = time.monotonic()
    code, out, err = finished(process)
    assert code and time.monotonic() - begun < 60 and RESUMED in out
    assert "! another process of this run has ended" in err, err

    done = sat(*words, tiny=False)
    assert done.code == 0 and done.run == run, done.err
    alone, result = ended.result, json.loads((run / "result.json").read_text())
    assert result["environment"]["processes"] == alone["environment"]["processes"] == 1
    mine, one = weights(run), weights(ended.run)
    assert max(float((mine[key] - one[key]).abs().max()) for key in one) < 1e-3
    assert abs(result["last"]["clean"]["accuracy"] - alone["last"]["clean"]["accuracy"]) <= 0.04
    steps, expected = (
        [json.loads(line)["step"] for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (run, ended.run)
    )
    assert steps == expected
    assert not list((run / "flags").glob("partial/*"))


def test_refusals_come_once(tmp_path):
    words = torchrun(2, *command("schedule.sync_batch_norm=true")[1:])
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("! schedule.sync_batch_norm=true: ") == 1
