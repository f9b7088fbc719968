"""Measures the checkpoints of a run on the test set; what was measured once is kept."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.precision import channels_last_pays, float32, lay_out
from sat.attacks import PGD
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import Series, ensemble_of
from sat.config import Spec
from sat.data import Data, chunks, indexed
from sat.distributed import World
from sat.errors import Refused
from sat.evaluation.curves import entry_of
from sat.evaluation.masking_checks import masking_checks, square_alarm
from sat.evaluation.settings import accuracy, joined, measure, robustness, share
from sat.evaluation.store import OutcomeStore, changes, digest_of, taken
from sat.loggers.screen import Progress
from sat.loggers.tensorboard import Dashboard
from sat.rng import RowRng, seed_of
from sat.rundir import checkpoint
from sat.rundir.record import Run, environment
from sat.training.callbacks import facts_of, same_facts

WORST = "worst_case"  # over all attacks of an evaluation, image by image
# Whose weights a checkpoint's file holds: see `weights_in`.
FILES = {"last": "last.pt", "best": "best.pt", "last_raw": "last.pt"}
CHECKED = 2**22  # values of the images that a CPU attacks at once: 27 of 3x224x224
KEEP_EVERY = 20.0  # seconds; what a killed evaluation loses at most, beside the batch at hand


class Evaluator:
    """Measures the checkpoints of one run on the test set, attack by attack.

    What was measured before, by this process or by one that was killed, is read from the flags.
    Of several processes the first one does all this, and the others `follow`.
    """

    def __init__(self, run: Run, model: nn.Module, data: Data, spec: Spec, world: World):
        self.run, self.model, self.data, self.world = run, model, data, world
        lay_out(model, channels_last_pays(model.mean.device.type, "fp32"))  # as verdicts like it
        self.facts = {"hash": spec.hash, "dataset": facts_of(data)}
        facts = self.facts
        self.evaluation, self.seed = spec.evaluation, spec.seed
        self.indices = data.test_subset(spec.evaluation.limit, spec.evaluation.subset_seed)
        self.shelf = OutcomeStore(
            run.directory / "flags", self.indices, facts["dataset"]["test_content"]
        )
        self.where = environment(model.mean.device)  # versions, commit, machine, command, time
        self.checked: dict[str | None, dict[str, Any]] = {}

    def check_names(self, result: dict[str, Any], twins: dict[str, str | None]) -> None:
        """For each checkpoint to measure, with its twin: raises Refused when a name of an attack is
        taken by one with other settings, or when the checkpoint is not of this run."""
        for which, twin in twins.items():
            part = result.get(which) or {}
            known = {**part.get("robust", {}), **part.get("curves", {})}
            for name in self.evaluation.measured_by:
                settings = self.evaluation.settings(name)
                before = known.get(name, {}).get("settings", settings)
                if changed := changes(before, settings):
                    raise Refused(taken(f"{which}-{name}", changed))
                for source in filter(None, (which, twin)):
                    self.shelf.read(f"{source}-{name}", settings, None)
            if (path := self.run.checkpoints / FILES[which]).exists():
                self._weights(path, which)

    def of(self, which: str, twin: str | None = None) -> dict[str, Any] | None:
        """One checkpoint's part of `result.json`; None where the checkpoint is gone.

        `twin` names a checkpoint with the same weights, whose flags serve as well.
        """
        files = [self.run.checkpoints / FILES[name] for name in (which, twin or which)]
        if (path := next((file for file in files if file.exists()), None)) is None:
            return None
        weights = self._weights(path, which)
        self.weights = digest_of(weights)
        found = {name: self._outcomes(which, name, twin) for name in self.evaluation.measured_by}
        curves = {name: found.pop(name) for name in self.evaluation.curves}
        settings, attacks = self.evaluation.settings, self.evaluation.attacks
        robust = {
            name: {**robustness(outcomes, attacks[name], settings(name)), "environment": self.where}
            for name, outcomes in found.items()
        }
        any_tally = next(iter({**found, **curves}.values()), None)
        clean = (any_tally or self._measure(which, None)).clean
        part = {"clean": {**accuracy(clean), "subset": self.evaluation.subset}}
        if len(found) > 1:
            worst = torch.stack([outcomes.robust for outcomes in found.values()]).all(0)
            robust[WORST] = {**accuracy(worst), "attacks": list(found)}
        labels, classes = self.data.test.labels[self.indices], self.data.classes
        drawn = {
            name: entry_of(self.evaluation.curves[name], outcomes, labels, classes, settings(name))
            for name, outcomes in curves.items()
        }
        if self.evaluation.masking_checks:
            if (asked := self.checked.get(twin) or self._masking_checks(found)) is not None:
                self.checked[which] = asked
                part["masking_checks"] = {asked["attack"]: asked}
        part["alarms"] = {name: self._square(outcomes) for name, outcomes in found.items()}
        return {**part, "robust": robust, "curves": drawn}

    def _weights(self, path: Path, which: str) -> dict[str, Tensor]:
        """What a checkpoint is measured with, put into the model; raises Refused where it is not of
        this run."""
        try:
            state = checkpoint.read(path)
            same_facts(state["facts"], self.facts)
            self.model.load_state_dict(weights := weights_in(state, which))
            return weights
        except Refused:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())[:300]
            text = text if text.startswith(str(path)) else f"{path}: is damaged ({text})"
            raise Refused(f"{text}; put a copy in its place, or train again") from None

    @staticmethod
    def _square(outcomes: AttackOutcomes) -> list[dict[str, Any]]:
        """What an ensemble's own numbers give away."""
        counts = [int((outcomes.fell == k).sum()) for k in range(len(outcomes.names))]
        alarm = square_alarm(outcomes.names, counts, len(outcomes.fell))
        return [] if alarm is None else [alarm.as_json()]

    def _masking_checks(self, found: dict[str, AttackOutcomes]) -> dict[str, Any] | None:
        """Asked of the attack that was measured last, which is the strongest where several are."""
        count = self.evaluation.masking_checks
        if self.model.mean.device.type == "cpu":  # all are attacked at once
            count = min(count, max(CHECKED // (self.data.channels * self.data.image_size**2), 16))
        rows = torch.arange(0, len(self.indices), -(-len(self.indices) // count))
        name, attack, robust = "clean", None, None
        if found:
            name = list(found)[-1]
            attack, robust = self.evaluation.attacks[name], found[name].robust[rows]
        (batch,) = indexed(self.data.test, self.indices[rows], len(rows))
        indices, x, y = batch
        known = (y >= 0).nonzero()[:, 0]
        if len(known) == 0:
            return None
        rng = RowRng(seed_of(self.seed, "evaluation", 0), indices.to(x.device)[known])
        robust = None if robust is None else robust.to(x.device)[known]
        self.model.eval()
        with float32(self.model):
            asked = masking_checks(self.model, x[known], y[known], attack, rng, robust)
        told = {
            "attack": name,
            "asked": self.evaluation.masking_checks,
            "subset": self.evaluation.subset,
        }
        alarms = [alarm.as_json() for alarm in asked.alarms]
        return {**told, **asked.as_json(), "alarms": alarms}

    def _outcomes(self, which: str, name: str, twin: str | None) -> AttackOutcomes:
        settings = self.evaluation.settings(name)
        for source in filter(None, (which, twin)):
            outcomes = self.shelf.read(f"{source}-{name}", settings, self.weights)
            if outcomes is not None and source == which:
                return outcomes
            if outcomes is not None:
                break
        else:
            outcomes = self._measure(which, name)
        self.shelf.write(f"{which}-{name}", settings, self.weights, outcomes)
        return outcomes

    def _measure(self, which: str, name: str | None) -> AttackOutcomes:
        self.world.on_rank0(lambda: (which, name, self.weights))  # `follow` waits for it
        return self._measure_together(which, name)

    def follow(self) -> None:
        """What the other processes do: their share of each measurement, until there is none."""
        while (task := self.world.on_rank0(None)) is not None:
            which, name, self.weights = task
            self._measure_together(which, name)

    def dismiss(self) -> None:
        """There is nothing left for the others."""
        self.world.on_rank0(lambda: None)

    def _measure_together(self, which: str, name: str | None) -> AttackOutcomes:
        evaluation = self.evaluation
        judge = Series((), (), evaluation.batch_size)
        if name is not None:
            attack = evaluation.measured_by[name]
            judge = ensemble_of(attack, evaluation.restarts, evaluation.batch_size)
        self.world.broadcast_(self.model)
        own = share(self.world, judge)
        images = chunks(self.data.test, self.indices[own], evaluation.batch_size)
        with float32(self.model), self._outcomes_kept(which, name, judge.names) as outcomes:
            measure(self.model, images, judge, self.seed, outcomes.part(own))
            return joined(self.world, outcomes, own)

    @contextmanager
    def _outcomes_kept(
        self, which: str, name: str | None, names: tuple[str, ...]
    ) -> Iterator[AttackOutcomes]:
        """A tally that goes on where a killed evaluation was, shows progress, and is kept now and
        then until it is complete."""
        count = len(self.indices)
        if name is None:
            yield AttackOutcomes.new(names, count)
            return
        settings, label = self.evaluation.settings(name), f"{which}-{name}"
        left = self.world.on_rank0(lambda: self.shelf.read_partial(label, settings, self.weights))
        outcomes = (
            AttackOutcomes.new(names, count) if left is None else AttackOutcomes(names, *left)
        )
        if not self.world.first:
            outcomes.seconds.zero_()  # they are added up
        bars, kept = [], time.monotonic()

        def keep() -> None:
            rank = self.world.rank
            self.shelf.write_partial(label, settings, self.weights, outcomes, rank)

        def begin(member: str, images: int) -> None:
            end()
            what = name if len(names) == 1 else f"{name}: {member}"
            bars.append(Progress(f"{which}: {what}", images))

        def end() -> None:
            while bars:
                bars.pop().close()

        def changed(images: int) -> None:
            nonlocal kept
            bars[0].advance(images)
            if time.monotonic() - kept > KEEP_EVERY:
                keep()
                kept = time.monotonic()

        outcomes.begin, outcomes.changed = begin, changed
        try:
            yield outcomes
        except BaseException:
            keep()
            raise
        finally:
            end()

    def show(self, dashboard: Dashboard, images: int) -> None:
        """Eight test images, clean and adversarial, on the dashboard."""
        attack = next(iter(self.evaluation.attacks.values()), None)
        if attack is None:
            return
        if hasattr(attack, "judge"):  # an ensemble takes minutes, and shows no more
            attack = PGD(attack.eps, 20, norm=attack.norm)
        self.model.eval()
        chosen = self.indices[:8]
        for indices, x, y in indexed(self.data.test, chosen, 8):
            with float32(self.model):
                x_adv = attack(self.model, x, y.clamp_min(0), RowRng(0, indices.to(x.device)))
            dashboard.pictures(x, x_adv, images)


def weights_in(state: dict[str, Any], which: str) -> dict[str, Tensor]:
    """What a checkpoint is measured with: the average of the weights, where there is one; for
    `last_raw` the weights themselves."""
    average = state.get("average") if which != "last_raw" else None
    return average or state["model"]
