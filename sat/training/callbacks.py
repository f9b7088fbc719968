"""Looks on while a run trains: metrics, validation, checkpoints, and the wish to stop."""

import hashlib
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from sat.acceleration.auto import THREADS
from sat.acceleration.precision import float32
from sat.attacks import Clean
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import ensemble_of
from sat.config import Spec
from sat.data import Data, chunks
from sat.data.choice import split_part
from sat.distributed import ALONE, World
from sat.errors import SIGNALS, Diverged, Fault, Lost, Refused, Stopped, is_out_of_memory
from sat.evaluation.alarm import Alarm
from sat.evaluation.settings import joined, measure, share
from sat.loggers.screen import Progress
from sat.loggers.tensorboard import Dashboard
from sat.models.weights import shape_of
from sat.rng import seed_of
from sat.rundir import checkpoint
from sat.rundir.record import Run, environment
from sat.training.loop import Trainer
from sat.training.overfitting import Overfitting, Probe
from sat.training.skips import Relapse, starved

log = logging.getLogger("sat")
ONE_WISH = 1.0  # seconds: a terminal and the command line of a sweep may both tell a worker process


class Callbacks:
    """The watcher of `fit`: what it writes is cut back to the last checkpoint on a resume.

    Of several processes each has one, and they do the same at the same steps; those whose run is
    a `Bystander` write nothing.
    """

    def __init__(self, spec: Spec, run: Run, data: Data, world: World = ALONE):
        self.spec, self.run, self.data, self.world = spec, run, data, world
        self.record, self.validation = spec.record, spec.validation
        self.facts = {"hash": spec.hash, "dataset": facts_of(data), "shape": shape_of(data)}
        self.best: dict[str, Any] | None = None
        # Without adversarial training the most robust weights are those that learned nothing.
        self.selects = "clean" if isinstance(spec.attack, Clean) else "robust"
        self.overfitting = Overfitting(chance_of(data.held_out.labels, len(data.classes)))
        self.alarms: list[dict[str, Any]] = []
        self.seconds = self.training_seconds = 0.0
        self.asked_to_stop, self.asked = 0, 0.0

    def resume(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Puts the trainer where the checkpoint stood, and forgets all that came later."""
        if state is not None:
            same_facts(state["facts"], self.facts)
            trainer.load({**state, **self._generators(trainer, state)})
            self.best = state["best"]
            if "overfitting" in state:  # not in checkpoints of before
                self.overfitting.load(state["overfitting"])
                self.alarms = state["alarms"]
            self._write_best()  # a run killed after a later `best` must find it anew
            self.seconds, self.training_seconds = state["seconds"]
            log.info("resumed at step %d of %d", trainer.step, trainer.plan.steps)
        self.run.rewind(state["lengths"] if state else {})

    def _generators(self, trainer: Trainer, state: dict[str, Any]) -> dict[str, Any]:
        """Those of this process; of another number of processes the first one's are taken on."""
        kept = state.get("processes", [state])
        if len(kept) == self.world.size:
            return kept[self.world.rank]
        if not self.world.first:
            key = seed_of(self.spec.seed, "process", self.world.rank, state["step"])
            torch.manual_seed(key)
        return {} if self.world.first else trainer.generators()

    @contextmanager
    def open(self, trainer: Trainer, summary: str) -> Iterator[None]:
        """Clocks, bar and signal handlers for the time of the training, and a last checkpoint."""
        self.saved_step = trainer.step or None
        plan, batch = trainer.plan, trainer.plan.schedule.batch_size
        self.began = self.saved = self.ticked = time.monotonic()
        self.progress = Progress("training", plan.steps * batch, trainer.step * batch)
        self.last_images, self.last_training = trainer.step * batch, self.training_seconds
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            self.dashboard = Dashboard(self.run.directory if self.world.first else None)
            if trainer.step == 0:
                self.dashboard.introduce(self.spec.config, self.spec.yaml(), summary)
            self._warn(trainer, self._apart(trainer))
            with self._saving(trainer):
                yield
            if self.saved_step != trainer.step:
                self.save(trainer)
            (stop,) = self.world.all_max(self.asked_to_stop)
            if stop:
                raise Stopped(stop)
            self.dashboard.close()
        except BaseException:
            with suppress(OSError, AttributeError):  # of a full disk, say, that has been told
                self.dashboard.close()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.seconds += time.monotonic() - self.began
            self.progress.close()

    @contextmanager
    def _saving(self, trainer: Trainer) -> Iterator[None]:
        """A last checkpoint after a fault that spared the trainer."""
        try:
            yield
        except Diverged as error:
            self._keep_batch(trainer, error)
            raise
        except (checkpoint.Unwritable, Lost):  # nor would this one be
            raise
        except Fault:
            self._save_after_fault(trainer)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            schedule, size = trainer.plan.schedule, self.validation.batch_size
            fault = Fault(
                f"out of memory in validation; try validation.batch_size={size // 2 or 1}"
            )
            if trainer.updating:
                fault = starved(schedule.batch_size, trainer.parts)
            self._save_after_fault(trainer)
            raise fault from error

    def _save_after_fault(self, trainer: Trainer) -> None:
        if self.world.size > 1 or not trainer.recover():  # the others are at another step
            return
        try:
            self.save(trainer)
        except Relapse:  # it stands at an earlier step now, where all was finite
            self.save(trainer)

    def _keep_batch(self, trainer: Trainer, error: Diverged) -> None:
        """The batch of the last skipped step, for inspection, and the weights if nothing else is
        kept of them: skipped steps have not touched them."""
        if (batch := trainer.skips.batch) is None:
            return
        name = f"step-{batch['step']}" + f"-process-{self.world.rank}" * (self.world.size > 1)
        path = self.run.directory / "faults" / f"{name}.pt"
        last = self.run.checkpoints / "last.pt"
        if self.world.on_rank0(lambda: not last.exists()):
            with suppress(Diverged, Relapse):
                self.save(trainer)
        checkpoint.save(path, batch)
        log.warning("the batch of step %d is kept in %s", batch["step"], path)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked_to_stop:
            if time.monotonic() - self.asked < ONE_WISH:
                return
            raise SystemExit(128 + number)
        self.asked_to_stop, self.asked = number, time.monotonic()
        log.warning("stopping after this step, with a checkpoint; once more stops at once")

    # what `fit` calls ---------------------------------------------------------------------------

    def log(self, trainer: Trainer) -> None:
        """The training's own numbers since the last log."""
        values = trainer.progress()
        self._tick()
        images = trainer.step * trainer.plan.schedule.batch_size
        spent = self.training_seconds - self.last_training
        values["train/images_per_second"] = (images - self.last_images) / max(spent, 1e-9)
        self.last_images, self.last_training = images, self.training_seconds
        self.write(trainer, values)

    def validate(self, trainer: Trainer) -> None:
        """Clean and robust accuracy of the held-out images; the most robust weights are kept."""
        self._tick()
        split, plan = self.data.held_out, trainer.plan
        chosen = split_part(split, self.validation.limit)
        attack, probe = self.validation.attack, None
        if attack.eps:
            attack = probe = Probe(attack, self.spec.attack, chosen)
        judge = ensemble_of(attack, 1, self.validation.batch_size)
        own = share(self.world, judge)
        images = chunks(split, chosen[own], self.validation.batch_size)
        outcomes = AttackOutcomes.new(judge.names, len(chosen))
        # An ensemble decides in float32, so its points must be judged in it.
        exact, model = hasattr(self.validation.attack, "judge"), trainer.evaluated
        with float32(model) if exact else nullcontext():
            seed = seed_of(plan.seed, "validation")
            measure(model, images, judge, seed, outcomes.part(own))
        flags = joined(self.world, outcomes, own)
        if probe:
            probe.join(self.world)
        clean, robust = (float(f.float().mean()) for f in (flags.clean, flags.robust))
        epoch = round(trainer.plan.epoch(trainer.step), 4)
        masking_checks = probe.numbers(flags) if probe else {}
        self.write(trainer, {"val/clean": clean, "val/robust": robust, **masking_checks})
        note = f", {masking_checks['diagnostics/single_step']:.1%} single-step" if probe else ""
        self.progress.say(
            f"epoch {epoch:.2f}: held-out {clean:.1%} clean, {robust:.1%} robust{note}"
        )
        if probe and self.selects == "robust":
            self._warn(trainer, self.overfitting.check(*probe.counts(flags)))
        score = (clean, robust) if self.selects == "clean" else (robust, clean)
        if self.best is None or score > tuple(self.best["score"]):
            trainer.check_finite()
            self.best = {"step": trainer.step, "epoch": epoch, "clean": clean, "robust": robust}
            self.best["score"] = list(score)
            self.best["model"] = {
                name: value.detach().cpu().clone() for name, value in model.state_dict().items()
            }
            self._write_best()
        self.ticked = time.monotonic()  # no training time

    def _apart(self, trainer: Trainer) -> Alarm | None:
        """Several processes whose batch norms don't see each other's images: once a run."""
        name, size = "separate_batch_norm", self.world.size
        if size == 1 or not trainer.statistics or any(a["name"] == name for a in self.alarms):
            return None
        message = (
            f"each of {size} processes normalises its own images of a batch: other weights than one"
            " process would train, under the same name"
        )
        return Alarm(name, message, {"processes": size})

    def _warn(self, trainer: Trainer, alarm: Alarm | None) -> None:
        """An alarm goes to the log, the dashboard and, in the end, the result."""
        if alarm is None:
            return
        epoch = round(trainer.plan.epoch(trainer.step), 4)
        self.alarms.append(alarm.as_json(step=trainer.step, epoch=epoch))
        log.warning("epoch %.2f: %s", epoch, alarm.message)
        images = trainer.step * trainer.plan.schedule.batch_size
        self.dashboard.alarm(f"**{alarm.name}**: {alarm.message}", images)

    def _write_best(self) -> None:
        if self.best is not None:
            self.run.save_best({"facts": self.facts, **self.best})

    def look(self, trainer: Trainer) -> None:
        """After every step: is it time to save, or to stop?"""
        self.progress.advance(trainer.plan.schedule.batch_size)
        for line in trainer.skips.news:
            log.warning("%s", line)
        trainer.skips.news.clear()
        trainer.skips.check()
        overdue = time.monotonic() - self.saved > 60 * self.record.checkpoint_minutes
        stop, overdue = self.world.all_max(self.asked_to_stop, overdue and self.world.first)
        if stop:
            self.save(trainer)
            raise Stopped(stop)
        if overdue:
            self.save(trainer)

    # ---------------------------------------------------------------------------------------------

    def write(self, trainer: Trainer, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and a point of each curve."""
        images = trainer.step * trainer.plan.schedule.batch_size
        seconds = self.seconds + time.monotonic() - self.began
        row = {"step": trainer.step, "epoch": round(trainer.plan.epoch(trainer.step), 4)}
        self.run.write_metrics({**row, "images": images, "seconds": round(seconds, 3), **values})
        with checkpoint.naming(self.run.directory / "events.out.tfevents.*"):
            self.dashboard.scalars(values, images)

    def save(self, trainer: Trainer) -> None:
        """A checkpoint from which the run goes on as if never stopped."""
        trainer.check_finite()
        self._tick()
        with checkpoint.naming(self.run.directory / "events.out.tfevents.*"):
            self.dashboard.flush()
        now = time.monotonic()
        state = {
            **trainer.state(),
            "processes": self.world.gather(trainer.generators()),
            "facts": self.facts,
            "best": self.best,
            "overfitting": self.overfitting.state(),
            "alarms": self.alarms,
            "seconds": [self.seconds + now - self.began, self.training_seconds],
            "lengths": self.run.lengths(),
        }
        self.run.save_last(state)
        self.world.all_max(0)  # others wait here for a slow disk, and not in a GPU's collective
        self.saved = self.ticked = time.monotonic()
        self.saved_step = trainer.step

    def result(self, trainer: Trainer, status: str, **more: Any) -> dict[str, Any]:
        """All of `result.json` that is known before the test set is touched."""
        config, images = self.spec.config, trainer.step * trainer.plan.schedule.batch_size
        return {
            **self.untrained(trainer.model),
            "status": status,
            **more,
            "attack": {"option": config["choices"].get("attack"), **config["attack"]},
            "choices": trainer.plan.choices,
            "steps": trainer.step,
            **trainer.skips.result(),
            "multiply_adds": trainer.plan.image_cost,
            "images": images,
            "wall_seconds": round(self.seconds, 3),
            "images_per_second": round(images / max(self.training_seconds, 1e-9), 1),
            "best": self.best and {
                "step": self.best["step"],
                "epoch": self.best["epoch"],
                "selected_by": f"{self.selects} accuracy on held-out training images",
                "held_out": {key: self.best[key] for key in ("clean", "robust")},
            },
            "last": {"step": trainer.step, "epoch": round(trainer.plan.epoch(trainer.step), 4)},
            "alarms": self.alarms,
        }  # fmt: skip

    def untrained(self, model: Any) -> dict[str, Any]:
        """The same for weights of a file, of whose training nothing is known."""
        config = self.spec.config
        return {
            "name": self.spec.name,
            "hash": self.spec.hash,
            "configuration": self.spec.configuration,
            "status": "trained",
            "seed": self.spec.seed,
            "environment": environment(model.mean.device),
            "dataset": self.facts["dataset"],
            "test_images": len(self.data.test),
            "parameters": sum(p.numel() for p in model.parameters()),
            "activation": {"option": config["choices"].get("activation"), **config["activation"],
                           "swapped": model.swap.swapped, "gates": list(model.swap.gates)},
            "attack": None,
            "choices": {"threads": THREADS},
            "steps": 0,
            "images": 0,
            "wall_seconds": 0.0,
            "images_per_second": None,
            "best": None,
            "last": {"step": 0, "epoch": 0.0},
            "alarms": [],
        }  # fmt: skip

    def _tick(self) -> None:
        """Adds what has passed since the last tick to the training's time."""
        now = time.monotonic()
        self.training_seconds += now - self.ticked
        self.ticked = now


def chance_of(labels: Tensor, classes: int) -> float:
    """The accuracy of a constant answer: the share of the largest class, where labels are known."""
    known = labels[labels >= 0]
    return int(known.bincount().max()) / len(known) if len(known) else 1 / classes


def facts_of(data: Data) -> dict[str, Any]:
    """What tells two image sets of the same name apart."""
    splits = {name: getattr(data, name) for name in ("train", "held_out", "test")}
    names = hashlib.sha256("\n".join(data.classes).encode())
    digest, test = names, names.copy()
    for name, split in splits.items():
        for told in (digest, test) if name == "test" else (digest,):
            told.update(split.labels.numpy().tobytes())
            told.update(split.sample())
    counts = {name: len(split) for name, split in splits.items()}
    facts = {"name": data.name, "classes": len(data.classes), **counts}
    return {**facts, "content": digest.hexdigest()[:8], "test_content": test.hexdigest()[:8]}


def same_facts(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Refused when a run's config or images are not those it was begun with."""
    if before.get("hash") != now["hash"]:
        raise Refused(
            f"checkpoint: was made by another config ({before.get('hash')} instead of"
            f" {now['hash']}); move it away, or start over with record.fresh=true"
        )
    for key, value in now["dataset"].items():
        if (was := before["dataset"].get(key, value)) != value:
            raise Refused(
                f"dataset.name={now['dataset']['name']}: the run of this name was begun with other"
                f" images ({key}: {was}, now {value}); give this set another dataset.name"
            )
