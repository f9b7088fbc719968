"""Looks on while a run trains: metrics, validation, checkpoints, and the wish to stop."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from sat.config import Spec
from sat.data import Data, some_images
from sat.data.fingerprint import same_facts
from sat.distributed import ALONE, World
from sat.errors import Diverged, Fault, Lost, Stopped, is_out_of_memory, on_signals
from sat.evaluation.views import views
from sat.loggers.screen import Progress
from sat.rng import seed_of
from sat.rundir import checkpoint
from sat.rundir.record import Run
from sat.rundir.result import Alarm
from sat.training.alarms import no_curvature, separate_batch_norm, untrained_average
from sat.training.best import Best
from sat.training.loop import Stream
from sat.training.memory import starved
from sat.training.overfitting import Overfitting, chance_of, remedy_of
from sat.training.resume import facts_for
from sat.training.state import TrainState
from sat.training.swa import estimate
from sat.training.validation import Validated, validate

log = logging.getLogger("sat")
ONE_WISH = 1.0  # seconds: a terminal and the command line of a sweep may both tell a worker process


class Callbacks:
    """What looks on at `fit`: what it writes is cut back to the last checkpoint on a resume.

    Of several processes each has one, and they do the same at the same steps; those whose run is
    a `ReadOnlyRun` write nothing.
    """

    def __init__(self, spec: Spec, run: Run, data: Data, world: World = ALONE):
        self.spec, self.run, self.data, self.world = spec, run, data, world
        self.record, self.validation = spec.record, spec.validation
        self.facts, self.best = facts_for(spec, data), Best(spec)
        chance = chance_of(data.held_out.labels, len(data.classes))
        self.overfitting = Overfitting(chance, remedy_of(spec.attack, spec.regulariser))
        self.alarms: list[dict[str, Any]] = []
        self.seconds = self.training_seconds = 0.0
        self.asked_to_stop, self.asked = 0, 0.0
        self.held_out = ""  # what the last validation said, in a few characters
        self.loss: float | None = None  # as logged since the last line of an epoch
        self.owed: dict[str, Any] | None = None  # its state before a validation that has not ended

    def resume(self, state: TrainState, kept: dict[str, Any] | None) -> None:
        """Puts the training where a checkpoint stood, and forgets all that came later."""
        if kept is not None:
            same_facts(kept["facts"], self.facts)
            state.load_state_dict({**kept, "generators": self._generators(state, kept)})
            self.load_state_dict(kept["callbacks"])
            self._write_best()  # a run killed after a later `best` must find it anew
            log.info("resumed at step %d of %d", state.step, state.plan.steps)
        elif self.run.lengths():
            minutes = f"record.checkpoint_minutes={self.record.checkpoint_minutes:g}"
            log.warning("no checkpoint of an earlier try is there (%s): begins again", minutes)
        self.run.rewind(kept["callbacks"]["lengths"] if kept else {})

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, all written down and the clocks told. After a fault in a
        validation it is that from before, and says that the validation is owed."""
        if self.owed is not None:
            return self.owed
        return {
            "best": self.best.kept,
            "overfitting": self.overfitting.state_dict(),
            "alarms": [*self.alarms],
            "owed": False,
            "seconds": [self.seconds + time.monotonic() - self.began, self.training_seconds],
            "lengths": self.run.lengths(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.kept, self.alarms = state["best"], [*state["alarms"]]
        self.overfitting.load_state_dict(state["overfitting"])
        self.seconds, self.training_seconds = state["seconds"]
        self.owed = {**state} if state.get("owed") else None

    def _generators(self, state: TrainState, kept: dict[str, Any]) -> dict[str, Any]:
        """What this process draws from; of another number of processes the first one goes on."""
        generators = kept["generators"]
        if len(generators) == self.world.size:
            return generators[self.world.rank]
        if self.world.first:
            return generators[0]
        torch.manual_seed(seed_of(self.spec.seed, "process", self.world.rank, kept["step"]))
        return state.generators()

    @contextmanager
    def open(self, state: TrainState, summary: str, stream: Stream) -> Iterator[None]:
        """Clocks, bar and signal handlers for the time of the training, and a last checkpoint."""
        self.saved_step, self.stream = state.step or None, stream
        plan, batch = state.plan, state.plan.schedule.batch_size
        self.began = self.saved = self.ticked = time.monotonic()
        self.progress = Progress(self._words(state), plan.steps * batch, state.step * batch)
        self.last_images, self.last_training = state.step * batch, self.training_seconds
        before = on_signals(self._ask)
        try:
            if state.step == 0:
                self.run.loggers.introduce(self.spec.compared, self.spec.yaml(), summary)
            self._say_once(state)
            with self._saving(state):
                if self.owed is not None:
                    self.validate(state)
                    self.saved_step = None
                yield
            if self.saved_step != state.step:
                self.save(state)
            (stop,) = self.world.all_max(self.asked_to_stop)
            if stop:
                raise Stopped(stop)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.seconds += time.monotonic() - self.began
            self.progress.close()

    @contextmanager
    def _saving(self, state: TrainState) -> Iterator[None]:
        """A last checkpoint after a fault that spared the training."""
        try:
            yield
        except Diverged:
            self._keep_batch(state)
            raise
        except (checkpoint.Unwritable, Lost):  # nor would this one be
            raise
        except Fault:
            self._save_after_fault(state)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if state.updating:
                fault = starved(state.plan.schedule.batch_size, state.parts.count)
            elif self.owed is not None:
                size = self.validation.batch_size // 2 or 1
                fault = Fault(f"out of memory in validation; try validation.batch_size={size}")
            else:
                fault = Fault(
                    "out of memory beside the steps, where batches are read and augmented and"
                    " checkpoints written; with some of it free the same command goes on"
                )
            self._save_after_fault(state)
            raise fault from error

    def _save_after_fault(self, state: TrainState) -> None:
        if self.world.size == 1 and not state.applying:  # else the others are at another step
            self.save(state)

    def _keep_batch(self, state: TrainState) -> None:
        """The batch of the last skipped step, drawn again, for inspection; and the weights if
        nothing else is kept of them: skipped steps have not touched them."""
        if not state.skips.skipped:
            return
        step = state.skips.last
        name = f"step-{step}" + f"-process-{self.world.rank}" * (self.world.size > 1)
        path = self.run.directory / "faults" / f"{name}.pt"
        last = self.run.checkpoints / "last.pt"
        if self.world.on_rank0(lambda: not last.exists()):
            with suppress(Diverged):
                self.save(state)
        x, y = next(iter(self.stream(step)))
        checkpoint.save(path, {"step": step, "images": x.cpu().clone(), "labels": y.cpu().clone()})
        log.warning("the batch of step %d is kept in %s", step, path)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked_to_stop:
            if time.monotonic() - self.asked < ONE_WISH:
                return
            raise SystemExit(128 + number)
        self.asked_to_stop, self.asked = number, time.monotonic()
        log.warning("stopping after this step, with a checkpoint; again: at once, without")

    # what `fit` calls ---------------------------------------------------------------------------

    def log(self, state: TrainState) -> None:
        """The training's own numbers since the last log."""
        values = state.read()
        self._tick()
        images = state.step * state.plan.schedule.batch_size
        spent = self.training_seconds - self.last_training
        values["train/images_per_second"] = (images - self.last_images) / max(spent, 1e-9)
        self.last_images, self.last_training = images, self.training_seconds
        self.loss = values.get("train/loss")
        self.write(state, values)

    def validate(self, state: TrainState) -> None:
        """Clean and robust accuracy of the held-out images; the most robust weights are kept. Where
        nothing is held out, the average is made ready at the end."""
        self._tick()
        self.owed = {**self.state_dict(), "owed": True}
        estimate(state, self.data.train)
        if len(self.data.held_out):
            self._validate(state)
        self.owed = None

    def _validate(self, state: TrainState) -> None:
        self.progress.say(f"{self._words(state, state.step - 1)}, validating")
        self.progress.show()
        found = self._validated(state, "average" if state.average else "weights")
        accuracies = {"val/clean": found.clean, "val/robust": found.robust}
        accuracies |= found.diagnostics
        accuracy = f"{100 * found.clean:.1f}/{100 * found.robust:.1f}"
        self.held_out = f" val {accuracy} best {self.best.percent:.1f}"
        if found.counts and self.best.selects == "robust":
            self._warn(state, self.overfitting.check(*found.counts))
        if self.validation.weights == "either":
            raw = self._validated(state, "weights")
            accuracies |= {"val/weights_clean": raw.clean, "val/weights_robust": raw.robust}
        self.write(state, accuracies)
        self._show_images(state)
        self.ticked = time.monotonic()  # no training time

    def _show_images(self, state: TrainState) -> None:
        """Eight held-out images under the validation's attack, for the trackers: after the first
        validation, the 4th, the 16th, the 64th ... All processes look, the first one shows."""
        number = round(state.plan.epoch(state.step) / (self.validation.every or 1))
        if not self.spec.logger or number & (number - 1) or number % 3 != 1:
            return
        x, y = some_images(self.data.held_out, 8)
        seen = views(state.measured, x, y, torch.arange(len(x)), self.validation.attack,
                     self.data.classes)  # fmt: skip
        images = state.step * state.plan.schedule.batch_size
        self.run.loggers.pictures("held-out", seen, images)

    def _validated(self, state: TrainState, of: str) -> Validated:
        """What the held-out images say of the average or of the weights, kept if it is `best`."""
        given = (self.data.held_out, self.validation, self.spec.attack, state.plan.seed, self.world)
        net = state.measured if of == "average" else state.replicas.measured(state.model)
        found = validate(net, *given)
        if self.best.offer(state, found, net, of):
            self._write_best()
        return found

    def _words(self, state: TrainState, step: int | None = None) -> str:
        """Where a training stands, as its bar says it: the epoch of its next step, or of another;
        accuracies as `validation_line` explains them."""
        at, total = state.plan.epoch(state.step if step is None else step), state.plan.epochs
        return f"ep {min(int(at) + 1, total)}/{total}{self.held_out}"

    def _say_epoch(self, state: TrainState) -> None:
        """A line for each epoch that has ended."""
        plan, step = state.plan, state.step
        at: float = int(plan.epoch(step))
        if at == int(plan.epoch(step - 1)) and step < plan.steps:
            return
        loss = "" if self.loss is None else f" loss {self.loss:.3f}"
        held_out = self.held_out if plan.validates(step) else ""
        at = plan.epochs if step == plan.steps else at
        self.progress.line(f"epoch {at}/{plan.epochs}{held_out}{loss}")
        self.loss = None

    def _say_once(self, state: TrainState) -> None:
        """What a run is told of its set-up: once, however often it is resumed."""
        if not state.skips_on_device and state.step == 0:
            log.info(
                "schedule.optimizer=%s: can't skip a step that is not finite by itself, so the host"
                " waits for each, to look", state.plan.schedule.optimizer,
            )  # fmt: skip
        for alarm in (
            separate_batch_norm(state),
            no_curvature(state, self.spec.activation()),
            untrained_average(state),
        ):
            self._warn_once(state, alarm)

    def check_taken(self, state: TrainState) -> None:
        """Warns of steps that were skipped; raises Diverged where no other was taken."""
        self._warn_once(state, state.skips.check_taken(state.step))

    def _warn_once(self, state: TrainState, alarm: Alarm | None) -> None:
        if alarm and alarm.name not in {told["name"] for told in self.alarms}:
            self._warn(state, alarm)

    def _warn(self, state: TrainState, alarm: Alarm | None) -> None:
        """An alarm goes to the log, `metrics.jsonl`, the trackers and, in the end, the result."""
        if alarm is None:
            return
        epoch = state.plan.told_epoch(state.step)
        self.alarms.append(replace(alarm, step=state.step, epoch=epoch).as_json())
        log.warning("epoch %.2f: %s", epoch, alarm.message)
        self.run.told.add(alarm.message)
        images = self._note(state, {"alarm": alarm.name})
        self.run.loggers.alarm(f"**{alarm.name}**: {alarm.message}", images)

    def _write_best(self) -> None:
        if self.best.kept is not None:
            self.run.save_best({"facts": self.facts, **self.best.kept})

    def look(self, state: TrainState) -> None:
        """Asks after every step: is there something to tell, is it time to save, or to stop?"""
        self.progress.say(self._words(state))
        self.progress.advance(state.plan.schedule.batch_size)
        self._say_epoch(state)
        for line in state.news:
            log.warning("%s", line)
        state.news.clear()
        overdue = time.monotonic() - self.saved > 60 * self.record.checkpoint_minutes
        stop, overdue = self.world.all_max(self.asked_to_stop, overdue and self.world.first)
        if stop:
            self.save(state)
            raise Stopped(stop)
        if overdue:
            self.save(state)

    # ---------------------------------------------------------------------------------------------

    def write(self, state: TrainState, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and a point of each curve."""
        self.run.loggers.scalars(values, self._note(state, values))

    def _note(self, state: TrainState, values: Mapping[str, Any]) -> int:
        """One line of metrics.jsonl; gives the images seen so far."""
        images = state.step * state.plan.schedule.batch_size
        seconds = self.seconds + time.monotonic() - self.began
        row = {"step": state.step, "epoch": state.plan.told_epoch(state.step)}
        self.run.write_metrics({**row, "images": images, "seconds": round(seconds, 3), **values})
        return images

    def save(self, state: TrainState) -> None:
        """A checkpoint from which the run goes on as if never stopped."""
        state.check_finite()
        self._tick()
        self.run.loggers.flush()
        kept = {**state.state_dict(), "generators": self.world.gather(state.generators())}
        self.run.save_last({**kept, "facts": self.facts, "callbacks": self.state_dict()})
        self.world.all_max(0)  # others wait here for a slow disk, and not in a GPU's collective
        self.saved = self.ticked = time.monotonic()
        self.saved_step = state.step

    def _tick(self) -> None:
        """Adds what has passed since the last tick to the training's time."""
        now = time.monotonic()
        self.training_seconds += now - self.ticked
        self.ticked = now
