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
from test_run import FOLDER, metrics, photographs, same_outcome
from torch import nn

from sat.acceleration.precision import float32
from sat.attacks import PGD
from sat.objectives import Adversarial
from sat.training import skips
from sat.training.loop import Trainer, fit
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.skips import Relapse, starved

NAN = float("nan")


def trainer_of(precision: str = "fp32", objective=None, **schedule) -> Trainer:
    choices = {"precision": precision, "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=12, epochs=1, **schedule), 120, 0, choices)
    model = nn.Sequential(*small_network()[:-1], nn.Dropout(0.2), nn.Linear(256, 10))
    return Trainer(model, PGD(20, 2), objective or Adversarial(), plan)


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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lookahead_sgd"])
def test_a_copied_state_is_the_state_of_then_in_the_memory_of_before(optimizer):
    trainer, copies = trainer_of(optimizer=optimizer, ema=0.9), [None]
    for step in range(8):  # lookahead makes its slow weights at the sixth
        state = trainer._state()
        copies.append(skips.copied(state, copies[-1]))
        assert same(copies[-1], state)
        own = {leaf.data_ptr() for leaf in flat(state) if isinstance(leaf, torch.Tensor)}
        kept = [leaf for leaf in flat(copies[-1]) if isinstance(leaf, torch.Tensor)]
        assert not own & {leaf.data_ptr() for leaf in kept if leaf.numel()}
        trainer.update(*batch_of(step))
    memory = [[leaf.data_ptr() for leaf in flat(copy) if isinstance(leaf, torch.Tensor)]
              for copy in copies[-2:]]  # fmt: skip
    assert memory[0] == memory[1]


class FailsOnce:
    """Not finite at one step, in less than float32 alone if so wanted."""

    def __init__(self, step: int, half_only: bool = False):
        self.step, self.half_only, self.trainer = step, half_only, None

    def __call__(self, model, *given):
        loss, logits = Adversarial()(model, *given)
        half = model.autocast is not None
        if self.trainer.step == self.step and (half or not self.half_only):
            loss = loss * NAN
        return loss, logits


# a step that is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("parts, optimizer", [(1, "sgd"), (3, "adamw")])
def test_a_step_without_fault_is_the_plain_one_to_the_bit(parts, optimizer):
    """The guard changes no weight: an update written out without it gives the same bits."""
    from sat.rng import RowRng, seed_of

    given = {"accumulate": parts, "optimizer": optimizer, "clip": 0.5, "ema": 0.9}
    guarded, plain = trainer_of("bf16", **given), trainer_of("bf16", **given)
    for step in range(4):
        x, y = batch_of(step)
        torch.manual_seed(step)
        guarded.update(x, y)
        torch.manual_seed(step)
        for group in plain.optimizer.param_groups:
            group["lr"] = plain.plan.schedule.rate(step, 120)
        rng = RowRng(seed_of(0, "attack", step), torch.arange(12))
        plain.model.train()
        for rows in torch.arange(12).tensor_split(parts):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            x_adv = plain.attack(plain.model, x[part], y[part], rng[part])
            loss, _ = plain.objective(plain.model, x[part], x_adv, y[part], 0.0)
            (loss * (len(rows) / 12)).backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        plain.average.update(plain.model, step=step + 1)
    for part in ("model", "average", "optimizer"):
        assert same(guarded.state()[part], plain.state()[part]), part


@pytest.mark.parametrize("where", ["image", "loss", "gradient"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_broken_step_changes_nothing_and_is_counted(where, parts):
    objective = FailsOnce(2 if where == "loss" else -1)
    trainer = trainer_of("bf16", objective, ema=0.9, optimizer="adamw", accumulate=parts)
    objective.trainer = trainer
    for step in range(2):
        trainer.update(*batch_of(step))
    before = copy.deepcopy(trainer.state())
    x, y = batch_of(2)
    if where == "image":
        x[5, 0, 3, 3] = NAN
    last = trainer.model[-1].weight
    hook = last.register_hook(lambda g: g * float("inf")) if where == "gradient" else None
    trainer.update(x, y)
    if hook is not None:
        hook.remove()
    after = trainer.state()
    assert after.pop("step") == before.pop("step") + 1
    assert after.pop("skips") == {"skipped": 1, "repeated": 0, "running": 1}
    before.pop("skips")
    for group, as_before in zip(
        *(s["optimizer"]["param_groups"] for s in (after, before)), strict=True
    ):
        group["lr"] = as_before["lr"]  # set anew in each step
    assert same(before, after)
    assert all(p.grad is None for p in trainer.model.parameters())
    said = "the gradient of 7.weight" if where == "gradient" else "the loss"
    assert trainer.skips.news == [f"step 2: {said} is not finite; skipped (1 so far)"]
    trainer.update(*batch_of(3))
    assert trainer.skips.running == 0 and not same(before["model"], trainer.state()["model"])
    values = trainer.progress()
    assert values["train/skipped_steps"] == 1 and 0 < values["train/loss"] < 10


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_that_half_precision_breaks_is_taken_in_float32(precision):
    objective = FailsOnce(1, half_only=True)
    trainer = objective.trainer = trainer_of(precision, objective, ema=0.9)
    trainer.update(*batch_of(0))
    twin = trainer_of(precision, ema=0.9)
    twin.load(copy.deepcopy(trainer.state()))
    scale = trainer.scaler.get_scale()
    torch.manual_seed(1)
    trainer.update(*batch_of(1))
    torch.manual_seed(1)
    with float32(twin.model):
        twin.scaler = torch.amp.GradScaler("cpu", enabled=False)
        twin.update(*batch_of(1))
    for part in ("model", "average", "optimizer", "totals"):
        assert same(trainer.state()[part], twin.state()[part]), part
    assert trainer.skips.result() == {"skipped_steps": 0, "repeated_steps": 1}
    assert trainer.scaler.get_scale() == (scale / 2 if precision == "fp16" else scale)
    assert trainer.model.autocast is not None


def test_a_log_without_a_single_step_has_no_loss():
    trainer = trainer_of()
    x, y = batch_of(0)
    trainer.update(x * NAN, y)
    assert set(trainer.progress()) == {"train/learning_rate", "train/skipped_steps"}


class Watcher:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def log(self, trainer):
        self.told.append((trainer.step, trainer.progress()))

    def validate(self, trainer): ...

    def look(self, trainer): ...


@pytest.mark.parametrize("broken", [{4}, {0, 1, 8}, {9}, set(range(3, 7))])
def test_looking_at_each_step_and_going_back_give_the_same(broken, monkeypatch):
    """What a GPU does, on a CPU: no look at single steps until one is known to be broken."""
    monkeypatch.setattr(Plan, "log_every", 3)

    def trained(careful: bool) -> tuple[dict, list, list[int]]:
        trainer, watcher, begun = trainer_of(ema=0.9, clip=1.0), Watcher(), []
        torch.manual_seed(1)
        trainer._always_careful = careful

        def stream(step: int):
            begun.append(step)
            for at in range(step, 10):
                x, y = batch_of(at)
                yield x * NAN if at in broken else x, y

        fit(trainer, stream, watcher)
        return trainer.state(), watcher.told, begun

    state, told, begun = trained(careful=True)
    late, late_told, late_begun = trained(careful=False)
    assert begun == [0] and len(late_begun) > 1
    assert same(state, late) and told == late_told
    assert state["skips"]["skipped"] == len(broken)


def test_steps_without_fault_are_never_looked_at_on_a_gpu(monkeypatch):
    trainer = trainer_of()
    trainer._always_careful = False
    monkeypatch.setattr(trainer, "_broken", lambda: pytest.fail("asked the device"))
    trainer.update(*batch_of(0))
    monkeypatch.undo()
    trainer.settle()
    trainer.update(batch_of(1)[0] * NAN, batch_of(1)[1])
    with pytest.raises(Relapse):
        trainer.settle()
    assert trainer.step == 1 and trainer.careful


@pytest.fixture
def poisoned(monkeypatch):
    """Names steps whose images are not numbers."""
    steps, update = set(), Trainer.update

    def poison(trainer, x, y):
        update(trainer, x * NAN if trainer.step in steps else x, y)

    monkeypatch.setattr(Trainer, "update", poison)
    return steps


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, action)`: before the look after step n, once."""
    from sat.training.callbacks import Callbacks

    actions, look = {}, Callbacks.look

    def then(journal, trainer):
        if trainer.step in actions:
            actions.pop(trainer.step)(journal)
        look(journal, trainer)

    monkeypatch.setattr(Callbacks, "look", then)
    return actions.__setitem__


def test_stopped_around_a_skipped_step_equals_never_stopped(sat, tmp_path, poisoned, at_step):
    poisoned |= {3, 4, 8}
    whole = sat("schedule.ema=0.9", root=tmp_path / "whole")
    assert whole.code == 0 and whole.result["skipped_steps"] == 3
    assert whole.err.count("not finite; skipped") == 2  # the first, and the second
    assert [r.get("train/skipped_steps") for r in metrics(whole.run) if "train/learning_rate" in r][
        -1
    ] == 3
    at_step(4, lambda journal: setattr(journal, "asked_to_stop", 2))
    parts = tmp_path / "parts"
    assert sat("schedule.ema=0.9", root=parts).code == 130
    resumed = sat("schedule.ema=0.9", root=parts)
    assert resumed.code == 0 and "resumed at step" in resumed.out
    same_outcome(resumed.run, whole.run)


def test_too_many_broken_steps_in_a_row_end_the_run(sat, poisoned, monkeypatch):
    monkeypatch.setattr(skips, "RUNNING", 4)
    poisoned |= {3, *range(5, 12)}
    done = sat()
    assert done.code == 1 and "Traceback" not in done.err
    assert "not finite in 4 steps" in done.err and "schedule.learning_rate" in done.err
    assert done.result["status"] == "failed" and done.result["skipped_steps"] == 5
    batch = torch.load(done.run / "faults/step-8.pt", weights_only=True)
    assert batch["images"].isnan().all() and batch["labels"].shape == (32,)
    assert (batch["step"], batch["not_finite"]) == (8, "the loss is")
    weights = torch.load(done.run / "checkpoints/last.pt", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in weights.values())


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


@pytest.mark.parametrize("leave, names", [(20_000, "last.pt"), (0, "tfevents")])
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
    assert finished.code == 0 and "is finished" in finished.out


# processes, memory, clocks ------------------------------------------------------------------------


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
    assert "a process that reads images has died" in torn.err and "dataset.workers" in torn.err
    assert torch.load(torn.run / "checkpoints/last.pt", weights_only=True)["step"] >= 2
    arguments.append("dataset.workers=0")  # moves no number
    again = sat(*arguments, tiny=False)
    assert again.code == 0 and "resumed at step" in again.out, again.err
    whole = sat(*arguments, root=tmp_path / "whole", tiny=False)
    same_outcome(again.run, whole.run)


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


class Hungry:
    """From a step on no part of more than `most` images finds memory, after its forward."""

    def __init__(self, step: int, most: int):
        self.step, self.most, self.trainer = step, most, None

    def __call__(self, model, x, *given):
        loss = Adversarial()(model, x, *given)
        if self.trainer.step >= self.step and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss


@pytest.mark.parametrize("careful", [True, False])
@pytest.mark.parametrize("most, parts", [(6, 2), (4, 4)])
def test_a_batch_that_is_split_is_the_step_in_as_many_parts(most, parts, careful):
    trainer = trainer_of(objective=Hungry(2, most), accumulate="auto", ema=0.9)
    twin = trainer_of(accumulate="auto", ema=0.9)
    trainer.objective.trainer = trainer
    for each in (trainer, twin):
        each._always_careful = careful
        torch.manual_seed(1)
        for step in range(5):
            if step == 2 and each is twin:
                twin.plan.choices["accumulate"] = parts
            each.update(*batch_of(step))
    assert same(trainer.state(), twin.state())
    assert trainer.parts == parts and len(trainer.skips.news) == parts // 2
    assert f"step 2: out of memory; batches come in {parts} parts" in trainer.skips.news[-1]


def test_a_batch_is_not_split_beyond_two_images_nor_unasked():
    for given, most in (("auto", 2), (1, 6), (2, 3)):
        trainer = trainer_of(objective=Hungry(0, most), accumulate=given)
        trainer.objective.trainer = trainer
        with pytest.raises(torch.OutOfMemoryError):
            trainer.update(*batch_of(0))
        assert trainer.parts == (4 if given == "auto" else given)


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
    assert resumed.code == 0 and "out of memory" not in resumed.err, resumed.err
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

    monkeypatch.setattr(evaluator, "measure", hungry)
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


class BreaksInHalf(nn.Module):
    """Logits beyond bfloat16's steps: finite in float32, not a number in autocast."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
                                    nn.Linear(144, 10))  # fmt: skip
        self.attack_model: list[torch.dtype] = []

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast is not None):
            logits = self.layers(x)
        self.attack_model.append(logits.dtype)
        return logits.float() * (NAN if logits.dtype is torch.bfloat16 else 1)


@pytest.mark.parametrize("fold", [False, True])
def test_a_step_that_is_repeated_in_float32_is_attacked_in_float32(fold):
    choices = {"precision": "bf16", "channels_last": False, "compile": False, "fold": fold}
    torch.manual_seed(0)
    plan = Plan(Schedule(batch_size=12, epochs=1), 120, 0, choices)
    trainer = Trainer(BreaksInHalf(), PGD(128, 1, norm="l2"), Adversarial(), plan)
    trainer.update(*batch_of(0))
    assert trainer.skips.result() == {"skipped_steps": 0, "repeated_steps": 1}
    assert trainer.model.attack_model[-2:] == [torch.float32] * 2  # the attack, and the update
