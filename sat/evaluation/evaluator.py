"""A checkpoint of a run under an attack -> the outcome of every test image."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.precision import channels_last_pays, float32, lay_out
from sat.attacks.outcomes import STANDS, WRONG, AttackOutcomes, Ensemble
from sat.attacks.series import Series, ensemble_of
from sat.config import Spec
from sat.data import Data, chunks, indexed
from sat.data.corrupted import Corrupted, place_of
from sat.data.fingerprint import facts_of, same_facts
from sat.distributed import World
from sat.errors import Refused
from sat.evaluation import corruptions
from sat.evaluation.corruptions import CorruptionStore
from sat.evaluation.masking_checks import InParts, masking_checks
from sat.evaluation.measure import by_class, for_all, measure_together
from sat.evaluation.store import Measurement, OutcomeStore, digest_of
from sat.evaluation.views import Views, views
from sat.identity import Settings
from sat.loggers.screen import Progress
from sat.models.foreign import has_gradient
from sat.rng import RowRng, seed_of
from sat.rundir import checkpoint
from sat.rundir.environment import environment
from sat.rundir.record import Run
from sat.rundir.result import (
    CLEAN,
    CORRUPTIONS,
    LAST_RAW,
    WORST,
    ClassSpread,
    CorruptionResult,
    MaskingChecks,
)

CHECKED = 2**22  # values of the images that are checked on a CPU: 27 of 3x224x224
KEEP_EVERY = 20.0  # seconds; what a killed evaluation loses at most, beside the batch at hand


class Evaluator:
    """Measures checkpoints of one run on the test set: `evaluator("best", "pgd20")`.

    Beside the attacks and curves of the evaluation there are CLEAN, no attack, and WORST, any of
    its attacks. What was measured before, by this process or by one that was killed, is read from
    the store. Of several processes the first one does all this, and the others `follow`.
    """

    def __init__(self, spec: Spec, run: Run, model: nn.Module, data: Data, world: World):
        self.model, self.data, self.world = model, data, world
        self.evaluation, self.seed = spec.evaluation, spec.seed
        lay_out(model, channels_last_pays(model.mean.device.type, "fp32"))  # as verdicts like it
        dataset = facts_of(data)
        self.facts = {"hash": spec.hash, "dataset": dataset}
        self.indices = data.test_subset(spec.evaluation.limit, spec.evaluation.subset_seed)
        self.store = OutcomeStore(run.directory / "flags", self.indices, dataset["test_content"])
        self.corruptions = run.directory / "corruptions"
        self.environment = environment(model.mean.device)  # where it is measured, and when
        self.files: Mapping[str, Path] = {}
        self.loaded, self.weights = "", ""  # the checkpoint in the model; its digest
        self.checked: dict[str, MaskingChecks] = {}  # by the digest of the weights

    def open(self, files: Mapping[str, Path]) -> None:
        """Takes the files of the checkpoints. Raises Refused where one is not of this run, or where
        what is kept under the name of an attack is of something else."""
        self.files = files
        for which in files:
            self._measurement(which, CLEAN)
            for name in self.evaluation.measured_by:
                self.store.read(self._measurement(which, name))

    def __call__(self, which: str, attack: str) -> AttackOutcomes:
        """The outcomes of a checkpoint under that attack."""
        if attack == CLEAN and self.evaluation.measured_by:
            return self(which, next(iter(self.evaluation.measured_by)))  # which holds it as well
        if attack == WORST:
            return worst_of({name: self(which, name) for name in self.evaluation.worst_over})
        of = self._measurement(which, attack)
        if attack == CLEAN:
            return self._measure(of)
        if (outcomes := self.store.read(of)) is None:
            outcomes = self._measure(of)
        elif self.store.holds(of):  # these images, perhaps among more
            return outcomes
        self.store.write(of, outcomes)
        return outcomes

    def _measurement(self, which: str, attack: str) -> Measurement:
        """What is measured, with the checkpoint's weights in the model."""
        if which != self.loaded:
            weights = self._read(self.files[which], which)
            self.loaded, self.weights = which, digest_of(weights)
        settings = Settings({}) if attack == CLEAN else self.evaluation.settings(attack)
        return Measurement(which, attack, settings, self.weights)

    def _read(self, path: Path, which: str) -> dict[str, Tensor]:
        """What a checkpoint is measured with, put into the model: the average of the weights, where
        there is one, or the weights themselves. Raises Refused where it is not of this run."""
        try:
            state = checkpoint.read(path)
            same_facts(state["facts"], self.facts)
            average = None if which == LAST_RAW else state.get("average")
            self.model.load_state_dict(weights := average or state["model"])
            return weights
        except Refused:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())[:300]
            text = text if text.startswith(str(path)) else f"{path}: is damaged ({text})"
            raise Refused(f"{text}; put a copy in its place, or train again") from None

    # several processes --------------------------------------------------------------------------

    def _measure(self, of: Measurement) -> Any:
        self.world.on_rank0(lambda: of)  # `follow` waits for it
        return self._measure_together(of)

    def follow(self) -> None:
        """What the other processes do: their share of each measurement, until there is none."""
        while (of := self.world.on_rank0(lambda: None)) is not None:
            self._measure_together(of)

    def dismiss(self) -> None:
        """Ends `follow` in the other processes."""
        self.world.on_rank0(lambda: None)

    def corrupted(self, which: str) -> CorruptionResult:
        """What a checkpoint makes of the corrupted test images."""
        return self._measure(replace(self._measurement(which, CLEAN), attack=CORRUPTIONS))

    def _measure_together(self, of: Measurement) -> Any:
        self.world.broadcast_(self.model)
        if of.attack == CORRUPTIONS:
            return self._corrupted_together(of)
        evaluation = self.evaluation
        ensemble: Ensemble = Series((), (), evaluation.batch_size)
        if of.attack != CLEAN:
            attack, quick = evaluation.measured_by[of.attack], evaluation.search == "fast"
            ensemble = ensemble_of(attack, evaluation.restarts, evaluation.batch_size, quick)
            ensemble = for_all(ensemble, self.data.test, self.indices, self.seed)
        images = lambda own: chunks(self.data.test, self.indices[own], evaluation.batch_size)  # noqa: E731
        with float32(self.model), self._begun(of, ensemble.names) as outcomes:
            return measure_together(self.world, self.model, images, ensemble, self.seed, outcomes)

    def _corrupted_together(self, of: Measurement) -> CorruptionResult:
        root = place_of(str(self.evaluation.corruptions))
        images = Corrupted(root, self.data, self.evaluation.limit)
        store = CorruptionStore(self.corruptions / f"{of.checkpoint}-{root.name}", of.weights)
        size, what = self.evaluation.batch_size, f"{of.checkpoint}: {root.name}"
        self.model.eval()
        with float32(self.model):
            return corruptions.measure(self.model, images, store, size, self.world, what)

    @contextmanager
    def _begun(self, of: Measurement, names: tuple[str, ...]) -> Iterator[AttackOutcomes]:
        """Outcomes that go on where a killed evaluation was, show progress, and are kept now and
        then until they are complete."""
        outcomes = AttackOutcomes.new(names, len(self.indices))
        if of.attack == CLEAN:
            yield outcomes
            return
        if (left := self.world.on_rank0(lambda: self.store.read_partial(of))) is not None:
            outcomes = AttackOutcomes(names, **left)
        bars, kept = [], time.monotonic()

        def begin(member: str, images: int) -> None:
            end()
            what = of.attack if len(names) == 1 else f"{of.attack}: {member}"
            bars.append(Progress(f"{of.checkpoint}: {what}", images))
            bars[0].show()

        def end() -> None:
            while bars:
                bars.pop().close()

        def changed(images: int) -> None:
            nonlocal kept
            for bar in bars:
                bar.advance(images)
            if time.monotonic() - kept > KEEP_EVERY:
                self.store.write_partial(of, outcomes, self.world.rank)
                kept = time.monotonic()

        outcomes.begin, outcomes.changed = begin, changed
        try:
            yield outcomes
        except BaseException:
            self.store.write_partial(of, outcomes, self.world.rank)
            raise
        finally:
            end()

    def by_class(self, flags: Tensor) -> ClassSpread | None:
        """How unequal the classes are, of one flag per image of the evaluation [N]."""
        return by_class(flags, self.data.test.labels[self.indices], self.data.classes)

    # beside the outcomes ------------------------------------------------------------------------

    def check_masking(self, which: str) -> MaskingChecks | None:
        """Is the attack that was measured last, the strongest where several are, to be believed?
        None where no image's label is known."""
        evaluation, names = self.evaluation, list(self.evaluation.attacks)
        name = names[-1] if names else CLEAN
        outcomes = self(which, name) if names else None
        if self._measurement(which, name).weights in self.checked:
            return self.checked[self.weights]
        count = evaluation.masking_checks
        if self.model.mean.device.type == "cpu":  # each costs hundreds of forwards
            count = min(count, max(CHECKED // (self.data.channels * self.data.image_size**2), 16))
        rows = torch.arange(0, len(self.indices), -(-len(self.indices) // count))
        ((indices, x, y),) = indexed(self.data.test, self.indices[rows], len(rows))
        known = (y >= 0).nonzero()[:, 0]
        if len(known) == 0:
            return None
        rng = RowRng(seed_of(self.seed, "evaluation", 0), indices.to(x.device)[known])
        attack, robust = evaluation.attacks.get(name), None
        if outcomes is not None:
            robust = outcomes.robust[rows].to(x.device)[known]
        self.model.eval()
        with float32(self.model):
            model = InParts(self.model, evaluation.batch_size)
            found = masking_checks(model, x[known], y[known], attack, rng, robust)
        at = {"attack": name, "asked": evaluation.masking_checks, "subset": evaluation.subset}
        self.checked[self.weights] = found = replace(found, **at)
        return found

    def views(self) -> Views | None:
        """Eight test images, clean and adversarial; None without an attack, or a gradient."""
        attack = next(iter(self.evaluation.attacks.values()), None)
        ((indices, x, y),) = indexed(self.data.test, self.indices[:8], 8)
        with float32(self.model):
            if not has_gradient(self.model.eval(), x):
                return None
            return views(self.model, x, y, indices, attack, self.data.classes)


def worst_of(found: Mapping[str, AttackOutcomes]) -> AttackOutcomes:
    """Over several attacks on the same images: the first of them that fells an image counts."""
    worst = AttackOutcomes.new(tuple(found), len(next(iter(found.values())).fell))
    for k, outcomes in enumerate(found.values()):
        felled = (worst.fell == STANDS) & ~outcomes.robust
        worst.fell[felled], worst.tied[felled] = k, outcomes.tied[felled]
        worst.fell[~outcomes.clean] = WRONG
    return worst
