"""Faults, injected for real: what is said, what is kept, and that the same command goes on."""

import copy
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import small_network
from messages import FINISHED, RESUMED
from test_run import FOLDER, metrics, photographs, same_outcome
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat.attacks import PGD
from sat.errors import Diverged, Fault
from sat.objectives import Adversarial, Method
from sat.rng import RowRng, seed_of
from sat.training import memory, skips
from sat.training.memory import attempt, starved
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

NAN = float("nan")


def state_of(precision: str = "fp32", objective=None, fused: bool = True, **schedule) -> TrainState:
    choices = {"precision": precision, "channels_last": False, "compile": False, "fused": fused}
    plan = Plan(Schedule(batch_size=12, epochs=1, **schedule), 120, 0, choices)
    model = nn.Sequential(*small_network()[:-1], nn.Dropout(0.2), nn.Linear(256, 10))
    return TrainState(model, Method(PGD(20, 2), objective or Adversarial()), plan)


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 10


def flat(tree) -> list:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in flat(tree[key])]
    if isinstance(tree, list):
        return [leaf for item in tree for leaf in flat(item)]
    return [tree]


def same(one, two) -> bool:
    pairs = zip(flat(one), flat(two), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


class FailsOnce(Adversarial):
    """Not finite at one step; `alone`, with gradients that are."""

    def __init__(self, step: int, alone: bool = False):
        super().__init__()
        object.__setattr__(self, "at", step)
        object.__setattr__(self, "alone", alone)
        object.__setattr__(self, "state", None)

    def __call__(self, *given):
        loss, logits = super().__call__(*given)
        if self.state.step == self.at:
            loss = loss + NAN if self.alone else loss * NAN
        return loss, logits

    def watch(self, state: TrainState) -> TrainState:
        object.__setattr__(state.objective, "state", state)  # a copy of this one
        return state


# a step that is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("parts, optimizer", [(1, "sgd"), (3, "adamw"), (1, "lamb")])
def test_a_step_without_fault_is_the_plain_one_to_the_bit(parts, optimizer):
    """The guard changes no weight: an update written out without it gives the same bits."""
    fused = optimizer != "lamb"
    given = {"accumulate": parts, "optimizer": optimizer, "clip": 0.5, "ema": 0.9, "fused": fused}
    guarded, plain = state_of("bf16", **given), state_of("bf16", **given)
    model, average = plain.model, copy.deepcopy(plain.model)
    groups = param_groups_weight_decay(model, plain.plan.schedule.weight_decay)
    more = {"fused": True} if fused else {}
    own = create_optimizer_v2(groups, opt=optimizer, lr=0.1, weight_decay=0.0, **more)
    for step in range(4):
        x, y = batch_of(step)
        torch.manual_seed(step)
        update(guarded, x, y)
        torch.manual_seed(step)
        for group in own.param_groups:
            group["lr"] = plain.plan.rate(step)
        rng = RowRng(seed_of(0, "attack", step), torch.arange(12))
        model.train()
        all_rows = torch.arange(12).tensor_split(parts)
        x_advs = [plain.attack(model, x[rows], y[rows], rng[rows]) for rows in all_rows]
        for rows, x_adv in zip(all_rows, x_advs, strict=True):
            loss, _ = plain.objective(model, x[rows], x_adv, y[rows])
            (loss * (len(rows) / 12)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        own.step()
        own.zero_grad()
        pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for mean, new in pairs:
            mean.copy_(new if not mean.is_floating_point() or step == 0 else mean.lerp(new, 0.1))
    assert same(guarded.model.state_dict(), model.state_dict())
    assert same(guarded.average.state_dict(), average.state_dict())
    assert same(guarded.optimizer.state_dict()["state"], own.state_dict()["state"])


class AsksTheHost(TorchDispatchMode):
    """Refuses what waits for a device."""

    ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if (
            name in self.ASKING
            or name == "index"
            and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            raise AssertionError(f"asks the host: {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [{}, {"clip": 0.5, "ema": 0.9, "accumulate": 3},
                                   {"optimizer": "adamw"}, {"precision": "fp16"}])  # fmt: skip
def test_a_step_asks_nothing_of_the_host(given):
    state = state_of(**given)
    with AsksTheHost():
        for step in range(2):
            update(state, *batch_of(step))
    unfused = state_of(fused=False)
    with AsksTheHost(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        update(unfused, *batch_of(0))


@pytest.mark.parametrize("where", ["image", "loss", "loss alone", "gradient"])
@pytest.mark.parametrize(
    "given",
    [{"optimizer": "adamw"}, {"accumulate": 3}, {"optimizer": "lamb", "fused": False},
     {"optimizer": "adagrad"}, {"fused": False}, {"precision": "bf16", "clip": 1.0}],
    ids=str,
)  # fmt: skip
def test_a_broken_step_changes_nothing_and_is_counted(where, given):
    objective = FailsOnce(2 if where.startswith("loss") else -1, where == "loss alone")
    state = objective.watch(state_of(objective=objective, ema=0.9, **given))
    for step in range(2):
        update(state, *batch_of(step))
    before = copy.deepcopy(state.state_dict())
    x, y = batch_of(2)
    if where == "image":
        x[5, 0, 3, 3] = NAN
    last = state.model[-1].weight
    hook = last.register_hook(lambda g: g * float("inf")) if where == "gradient" else None
    generators = state.generators()
    update(state, x, y)
    torch.set_rng_state(generators["rng"])
    if hook is not None:
        hook.remove()
    after = state.state_dict()
    assert after.pop("step") == before.pop("step") + 1
    assert after.pop("skips")["counts"].tolist() == [3, 1, 1, 1, 2]
    before.pop("skips")
    rates = [group.pop("lr") for s in (after, before) for group in s["optimizer"]["param_groups"]]
    assert rates  # set anew in each step
    assert same({**before, "generators": 0}, {**after, "generators": 0})
    assert all(p.grad is None for p in state.model.parameters())
    update(state, *batch_of(3))
    assert not same(before["model"], state.state_dict()["model"])
    values = state.read()
    said = "step 2: the loss or a gradient is not finite; skipped (1 so far)"
    assert state.news == [said]
    assert values["train/skipped_steps"] == 1 and 0 < values["train/loss"] < 10


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "adagrad"])
def test_a_first_step_may_be_the_broken_one(optimizer):
    """Fused SGD would keep a momentum that nobody has written."""
    broken, fresh = (state_of(optimizer=optimizer, learning_rate=0.01, ema=0.9) for _ in range(2))
    x, y = batch_of(0)
    update(broken, x * NAN, y)
    fresh.step = 1
    for state in (broken, fresh):
        torch.manual_seed(1)
        for step in (1, 2):
            update(state, *batch_of(step))
    for part in ("model", "average", "metrics"):
        assert same(broken.state_dict()[part], fresh.state_dict()[part]), part
    kept = [state.optimizer.state_dict()["state"] for state in (broken, fresh)]
    assert same(*kept) and all(leaf.isfinite().all() for leaf in flat(kept[0]))


def test_a_state_that_is_loaded_goes_on_to_the_bit():
    """Dropout draws what it would have drawn; the same where the state is another object's."""
    whole, again = state_of(ema=0.5), state_of(ema=0.5)
    for step in range(2):
        update(whole, *batch_of(step))
    kept = copy.deepcopy(whole.state_dict())
    update(whole, *batch_of(2))
    torch.rand(7)  # somebody else draws meanwhile
    again.load_state_dict(kept)
    update(again, *batch_of(2))
    assert same(whole.state_dict(), again.state_dict())


def test_a_log_without_a_single_step_has_no_loss():
    state = state_of()
    x, y = batch_of(0)
    update(state, x * NAN, y)
    assert set(state.read()) == {"train/learning_rate", "train/skipped_steps"}


def test_scales_of_half_precision_are_found_by_skipping():
    state = state_of("fp16")
    scale = state.scaler.get_scale()
    x, y = batch_of(0)
    update(state, x * NAN, y)
    assert state.scaler.get_scale() == scale / 2 and state.skips.counts[1] == 1
    update(state, *batch_of(1))
    assert state.scaler.get_scale() == scale / 2 and state.skips.counts[1] == 1


def test_ten_in_a_row_end_a_training_wherever_they_lie_between_two_logs():
    state = state_of()
    for step in range(16):
        x, y = batch_of(step)
        update(state, x * NAN if 2 <= step < 12 else x, y)
    with pytest.raises(Diverged, match="in 10 steps, one after the other, up to step 11; try"):
        state.read()
    calm = state_of()
    for step in range(24):
        x, y = batch_of(step)
        update(calm, x * NAN if step % 10 else x, y)
    assert calm.read()["train/skipped_steps"] == 21


@pytest.fixture
def poisoned(monkeypatch):
    """Names steps whose images are not numbers."""
    steps = set()
    poison = lambda state, x, y: update(state, x * NAN if state.step in steps else x, y)  # noqa: E731
    monkeypatch.setattr(memory, "update", poison)
    return steps


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, action)`: before the look after step n, once."""
    from sat.training.callbacks import Callbacks

    actions, look = {}, Callbacks.look

    def then(callbacks, state):
        if state.step in actions:
            actions.pop(state.step)(callbacks)
        look(callbacks, state)

    monkeypatch.setattr(Callbacks, "look", then)
    return actions.__setitem__


def test_stopped_around_a_skipped_step_equals_never_stopped(sat, tmp_path, poisoned, at_step):
    poisoned |= {3, 4, 8}
    whole = sat("schedule.ema=0.9", root=tmp_path / "whole")
    assert whole.code == 0 and whole.result["skipped_steps"] == 3
    assert 1 <= whole.err.count("not finite; skipped") <= 2  # the first, and twice as many
    assert [r.get("train/skipped_steps") for r in metrics(whole.run) if "train/learning_rate" in r][
        -1
    ] == 3
    at_step(4, lambda journal: setattr(journal, "asked_to_stop", 2))
    parts = tmp_path / "parts"
    assert sat("schedule.ema=0.9", root=parts).code == 130
    resumed = sat("schedule.ema=0.9", root=parts)
    assert resumed.code == 0 and RESUMED in resumed.out
    same_outcome(resumed.run, whole.run)


def test_a_share_of_skipped_steps_is_an_alarm_and_none_taken_a_failure(sat, poisoned):
    poisoned |= {1, 3, 5}
    some = sat("schedule.epochs=3")
    run, said = some.run, "3 of 12 steps changed nothing"
    assert some.code == 0 and some.err.count(said) == 1  # of the training; of the result its name
    assert [said in alarm["message"] for alarm in some.result["alarms"]].count(True) == 1
    poisoned |= {*range(12)}
    none = sat("schedule.epochs=2", "schedule.learning_rate=0.01")
    (other,) = {*none.runs} - {run}
    assert none.code == 1 and "no step was taken" in none.err and "Traceback" not in none.err
    assert '"status": "failed"' in (other / "result.json").read_text()


def test_too_many_broken_steps_in_a_row_end_the_run(sat, poisoned, monkeypatch):
    monkeypatch.setattr(skips, "RUNNING", 4)
    poisoned |= {3, *range(5, 12)}
    done = sat()
    assert done.code == 1 and "Traceback" not in done.err
    assert "not finite in 4 steps" in done.err and "schedule.learning_rate" in done.err
    assert done.result["status"] == "failed" and done.result["skipped_steps"] == 5
    batch = torch.load(done.run / "faults/step-8.pt", weights_only=True)
    assert batch["step"] == 8 and batch["labels"].shape == (32,)
    weights = torch.load(done.run / "checkpoints/last.pt", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in weights.values())
    # it is the batch that the step saw, drawn again
    seen = []
    monkeypatch.setattr(memory, "update", lambda state, x, y: seen.append(x) or update(state, x, y))
    sat(root=done.run.parent.parent / "again")
    assert torch.equal(seen[8], batch["images"])


OFTEN = ["record.checkpoint_minutes=0"]


@pytest.fixture
def whole(sat, tmp_path_factory, _cache={}) -> Path:  # noqa: B006
    """The tiny run, without a fault; made once."""
    if not _cache:
        _cache["run"] = sat(root=tmp_path_factory.mktemp("whole")).run
    return _cache["run"]


# disks --------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of a set size takes the right to mount one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    free = shutil.disk_usage(disk).free - leave
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free)


def mended(sat, disk, whole, torn, names: str) -> None:
    """One line, nothing half-written, and the same command goes on as if nothing had been."""
    lines = [line for line in torn.err.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("! logger=")]  # ends no training
    assert torn.code == 1 and len(lines) == 1 and names in lines[0], torn.err
    assert "Traceback" not in torn.out + torn.err
    assert not list(torn.run.rglob("*.tmp"))
    for path in torn.run.rglob("*.pt"):
        torch.load(path, weights_only=True)
    for line in metrics(torn.run):
        assert "step" in line
    (disk / "filler").unlink(missing_ok=True)
    again = sat(*OFTEN, root=disk / "outputs")
    assert again.code == 0, again.err
    same_outcome(again.run, whole)


@pytest.mark.parametrize("leave, names", [(20_000, "last.pt"), (0, "last.pt")])
def test_a_disk_that_fills_while_training(sat, disk, whole, at_step, leave, names):
    def then(journal) -> None:
        fill(disk, leave)
        if not leave:  # no checkpoint now: the next log is the first to write
            journal.saved = time.monotonic() + 60

    at_step(6, then)
    torn = sat(*OFTEN, root=disk / "outputs")
    mended(sat, disk, whole, torn, names)


def test_a_disk_that_fills_before_the_result(sat, disk, whole, monkeypatch):
    from sat.rundir.record import Run

    write = Run.write_result
    monkeypatch.setattr(Run, "write_result", lambda *given: (fill(disk), write(*given)))
    torn = sat(*OFTEN, root=disk / "outputs")
    monkeypatch.undo()
    assert not (torn.run / "result.json").exists()
    mended(sat, disk, whole, torn, "result.json")


def test_no_half_a_line_of_metrics(disk):
    from sat.rundir.checkpoint import Unwritable
    from sat.rundir.record import Run

    fill(disk, 50_000)
    with pytest.raises(Unwritable, match="metrics.jsonl: can't be written .* make room"):
        for step in range(1000):
            Run(disk).write_metrics({"step": step, "padding": "x" * 100})
    assert [row["step"] for row in metrics(disk)] == list(range(step))
    assert step > 100


def test_a_log_that_finds_no_room_is_silent(disk, capfd):
    from sat.rundir import record

    with record.claim(record.Record(root=str(disk)), "run", "seed: 0\n") as run:
        fill(disk)
        for _ in range(100):
            record.log.warning("%s", "x" * 100)
    assert (run.directory / "log.txt").stat().st_size < 100 * 100
    assert "Logging error" not in capfd.readouterr().err


def test_outputs_that_become_read_only(sat, disk, whole, at_step):
    def close(journal) -> None:
        place = str(journal.run.checkpoints)
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)

    at_step(6, close)
    torn = sat(*OFTEN, root=disk / "outputs")
    subprocess.run(["umount", str(torn.run / "checkpoints")], check=True)
    assert "make it writable" in torn.err
    mended(sat, disk, whole, torn, "checkpoints/previous.pt: can't be written (Read-only")


def test_outputs_that_are_read_only(sat, disk, whole):
    shutil.copytree(whole, disk / "outputs" / whole.name)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    begun = sat("seed=1", root=disk / "outputs")
    lines = begun.err.splitlines()
    assert begun.code == 2 and len(lines) == 1 and "record.root" in lines[0], begun.err
    assert "Read-only" in lines[0]
    finished = sat(root=disk / "outputs")  # is read as ever
    assert finished.code == 0 and FINISHED in finished.out


# processes, memory, clocks ------------------------------------------------------------------------


@pytest.mark.usefixtures("watched_workers")
def test_a_worker_that_dies_is_a_fault_with_a_checkpoint(sat, tmp_path, at_step):
    root = photographs(tmp_path / "photos")
    arguments = [*FOLDER, f"dataset.root={root}", "schedule.epochs=1", "validation.every=9"]

    def kill(journal) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        mine = Path("/proc/self/cmdline").read_text()  # a forked worker's too
        workers = [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_text() == mine]
        assert workers
        for pid in map(int, workers):
            os.kill(pid, signal.SIGKILL)
            # On a busy machine it may live on for a while, and hand over the last batch.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    at_step(2, kill)
    torn = sat(*arguments, tiny=False)
    assert torn.code == 1 and "Traceback" not in torn.err
    assert "dataset.workers" in torn.err
    assert torch.load(torn.run / "checkpoints/last.pt", weights_only=True)["step"] >= 2
    arguments.append("dataset.workers=0")  # moves no number
    again = sat(*arguments, tiny=False)
    assert again.code == 0 and RESUMED in again.out, again.err
    whole = sat(*arguments, root=tmp_path / "whole", tiny=False)
    same_outcome(again.run, whole.run)


@pytest.mark.parametrize("time", [1, 2])  # on the way, and after the last step
def test_a_validation_that_fails_is_made_up_for(sat, tmp_path, monkeypatch, whole, time):
    from sat.training import callbacks

    validate, calls = callbacks.validate, []

    def fails(*given):
        found = validate(*given)
        calls.append(1)
        if len(calls) == time:
            raise Fault("a process that reads images has died")
        return found

    monkeypatch.setattr(callbacks, "validate", fails)
    torn = sat(root=tmp_path / "torn")
    assert torn.code == 1 and "has died" in torn.err and len(calls) == time
    again = sat(root=tmp_path / "torn")
    assert again.code == 0 and RESUMED in again.out
    same_outcome(again.run, whole)


@pytest.mark.parametrize("kind", ["device", "host"])
def test_memory_that_runs_out_names_the_next_accumulation(sat, tmp_path, monkeypatch, whole, kind):
    forwards, call = [], Adversarial.__call__

    def hungry(objective, *given):
        loss, logits = call(objective, *given)  # batch norm has seen the batch by now
        forwards.append(1)
        if len(forwards) == 5:
            if kind == "device":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            torch.empty(2**60, dtype=torch.uint8)
        return loss, logits

    monkeypatch.setattr(Adversarial, "__call__", hungry)
    torn = sat(root=tmp_path / "torn")
    lines = [line for line in torn.err.splitlines() if line.strip()]
    assert torn.code == 1 and len(lines) == 1, torn.err
    assert "out of memory" in lines[0] and "schedule.accumulate=2" in lines[0]
    assert torch.load(torn.run / "checkpoints/last.pt", weights_only=True)["step"] == 4
    same_outcome(sat(root=tmp_path / "torn").run, whole)


def test_memory_that_runs_out_beside_the_steps_is_told_as_such(sat, tmp_path, whole, at_step):
    """As where a batch is read: no smaller validation would help."""

    def hungry(journal) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    at_step(4, hungry)
    torn = sat(root=tmp_path / "torn")
    assert torn.code == 1 and "out of memory beside the steps" in torn.err, torn.err
    assert torn.err.count("\n") == 1 and "validation" not in torn.err
    same_outcome(sat(root=tmp_path / "torn").run, whole)


class Hungry(Adversarial):
    """From a step on no part of more than `most` images finds memory, after its forward."""

    def __init__(self, step: int, most: int):
        super().__init__()
        for key, value in {"at": step, "most": most, "state": None}.items():
            object.__setattr__(self, key, value)

    def __call__(self, model, x, *given):
        found = super().__call__(model, x, *given)
        if self.state.step >= self.at and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    def watch(self, state: TrainState) -> TrainState:
        object.__setattr__(state.objective, "state", state)  # a copy of this one
        return state


@pytest.mark.parametrize("most, parts", [(6, 2), (4, 4)])
def test_a_batch_that_is_split_is_the_step_in_as_many_parts(most, parts):
    objective = Hungry(2, most)
    state = objective.watch(state_of(objective=objective, accumulate="auto", ema=0.9))
    other = state_of(accumulate="auto", ema=0.9)
    for each in (state, other):
        torch.manual_seed(1)
        for step in range(5):
            if step == 2 and each is other:
                other.split(parts)
            attempt(each, *batch_of(step))
    assert same(state.state_dict(), other.state_dict())
    assert state.parts.count == parts and len(state.news) == parts // 2
    assert f"step 2: out of memory; batches come in {parts} parts" in state.news[-1]


def test_a_batch_is_not_split_beyond_two_images_nor_unasked():
    for given, most in (("auto", 2), (1, 6), (2, 3)):
        objective = Hungry(0, most)
        state = objective.watch(state_of(objective=objective, accumulate=given))
        with pytest.raises(torch.OutOfMemoryError):
            attempt(state, *batch_of(0))
        assert state.parts.count == (4 if given == "auto" else given)


@pytest.mark.parametrize("late", [False, True], ids=["backward", "clipping"])
def test_what_breaks_a_step_leaves_the_one_before(late, monkeypatch):
    """Statistics, generators, gradients and figures, whatever the exception is and wherever."""
    state, other = state_of(ema=0.9, clip=1.0), state_of(ema=0.9, clip=1.0)
    for each in (state, other):
        torch.manual_seed(0)
        attempt(each, *batch_of(0))
    generators = torch.get_rng_state()
    before = copy.deepcopy(state.state_dict())
    with monkeypatch.context() as patch:
        if late:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: 1 / 0)
        else:
            handle = state.model[-1].weight.register_hook(lambda g: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            attempt(state, *batch_of(1))
    assert torch.equal(torch.get_rng_state(), generators) and not state.applying
    after = state.state_dict()
    rates = [group.pop("lr") for s in (after, before) for group in s["optimizer"]["param_groups"]]
    assert rates and same(before, after)
    if not late:
        handle.remove()
    attempt(state, *batch_of(1))
    torch.set_rng_state(generators)
    attempt(other, *batch_of(1))
    assert same(state.state_dict()["model"], other.state_dict()["model"])


def test_split_batches_are_said_recorded_and_resumed(sat, tmp_path, monkeypatch, at_step):
    call = Adversarial.__call__

    def hungry(objective, model, x, *given):
        if len(x) > 16 and len(forwards) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        forwards.append(1)
        return call(objective, model, x, *given)

    monkeypatch.setattr(Adversarial, "__call__", hungry)
    forwards: list[int] = []
    whole = sat("schedule.accumulate=auto", root=tmp_path / "whole")
    assert whole.code == 0 and whole.err.count("batches come in 2 parts") == 1, whole.err
    assert whole.result["choices"]["accumulate"] == 2 and "accumulate=auto" in whole.out
    forwards.clear()
    at_step(8, lambda journal: setattr(journal, "asked_to_stop", 2))
    assert sat("schedule.accumulate=auto", root=tmp_path / "parts").code == 130
    resumed = sat("schedule.accumulate=auto", root=tmp_path / "parts")
    assert (resumed.code, resumed.err) == (0, "")
    same_outcome(resumed.run, whole.run)


def test_advice_for_memory_keeps_two_images_a_part():
    assert "schedule.accumulate=2 keeps the batch of 64 images and computes 32" in str(
        starved(64, 1)
    )
    assert "leaves no smaller parts" in str(starved(64, 17))


def test_memory_that_runs_out_in_the_evaluation_is_one_line(sat, monkeypatch):
    from sat.evaluation import evaluator

    def hungry(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluator, "measure_together", hungry)
    torn = sat("schedule.epochs=1")
    assert torn.code == 1 and "evaluation.batch_size" in torn.err
    assert "Traceback" not in torn.err
    monkeypatch.undo()
    assert sat("schedule.epochs=1").code == 0


def test_a_clock_that_goes_backwards_changes_nothing(sat, tmp_path, monkeypatch, whole, at_step):
    now, asked = time.time(), []
    monkeypatch.setattr(time, "time", lambda: now - 60.0 * (asked.append(1) or len(asked)))
    at_step(6, lambda journal: setattr(journal, "asked_to_stop", 2))
    assert sat(root=tmp_path / "parts").code == 130
    resumed = sat(root=tmp_path / "parts")
    assert resumed.code == 0 and asked
    same_outcome(resumed.run, whole)
    seconds = [row["seconds"] for row in metrics(resumed.run)]
    assert seconds == sorted(seconds) and 0 < resumed.result["wall_seconds"] < 60
