"""Measures the checkpoints of a run on the test set; what was measured once is kept."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat import checkpoint
from sat.attacks import PGD
from sat.attacks.series import Series, judge_of
from sat.console import Progress
from sat.curves import entry_of
from sat.dashboard import Dashboard
from sat.data import Data, chunks, indexed
from sat.diagnostics import doubts, square_alarm
from sat.draws import Draws, seed_of
from sat.errors import Refused
from sat.evaluate import Evaluation, accuracy, float32, measure, robustness
from sat.record import Run
from sat.tally import STANDS, WRONG, Tally

WORST = "worst_case"  # over all attacks of an evaluation, image by image
# Whose weights a checkpoint's file holds: see `weights_in`.
FILES = {"last": "last.pt", "best": "best.pt", "last_raw": "last.pt"}
KEEP_EVERY = 20.0  # seconds; what a killed evaluation loses at most, beside the batch at hand


class Examination:
    """Measures the checkpoints of one run on the test set, attack by attack.

    What was measured before, by this process or by one that was killed, is read from the flags.
    """

    def __init__(self, run: Run, model: nn.Module, data: Data, evaluation: Evaluation, seed: int):
        self.run, self.model, self.data = run, model, data
        self.evaluation, self.seed = evaluation, seed
        self.indices = data.test_subset(evaluation.limit, evaluation.subset_seed)
        self.doubted: dict[str | None, dict[str, Any]] = {}

    def check_names(self) -> None:
        """Raises Refused when a name of an attack is taken by one with other settings."""
        for which in self.evaluation.checkpoints:
            for name in self.evaluation.judges:
                self.run.read_flags(f"{which}-{name}", self.evaluation.settings(name))

    def of(self, which: str, twin: str | None = None) -> dict[str, Any] | None:
        """One checkpoint's part of `result.json`; None where the checkpoint is gone.

        `twin` names a checkpoint with the same weights, whose flags serve as well.
        """
        files = [self.run.checkpoints / FILES[name] for name in (which, twin or which)]
        if (path := next((file for file in files if file.exists()), None)) is None:
            return None
        self.model.load_state_dict(weights_in(checkpoint.read(path), which))
        found = {name: self._tally(which, name, twin) for name in self.evaluation.judges}
        curves = {name: found.pop(name) for name in self.evaluation.curves}
        settings, attacks = self.evaluation.settings, self.evaluation.attacks
        robust = {
            name: robustness(tally, attacks[name], settings(name)) for name, tally in found.items()
        }
        any_tally = next(iter({**found, **curves}.values()), None)
        clean = (any_tally or self._measure(which, None)).clean
        part = {"clean": {**accuracy(clean), "subset": self.evaluation.subset}}
        if len(found) > 1:
            worst = torch.stack([tally.robust for tally in found.values()]).all(0)
            robust[WORST] = {**accuracy(worst), "attacks": list(found)}
        labels, classes = self.data.test.labels[self.indices], self.data.classes
        drawn = {
            name: entry_of(self.evaluation.curves[name], tally, labels, classes, settings(name))
            for name, tally in curves.items()
        }
        if self.evaluation.doubts:
            part["doubts"] = self.doubted.get(twin) or self._doubts(found)
            self.doubted[which] = part["doubts"]
        return {**part, "robust": robust, "curves": drawn}

    def _doubts(self, found: dict[str, Tally]) -> dict[str, Any]:
        """Asked of the attack that was measured last, which is the strongest where several are."""
        rows = torch.arange(0, len(self.indices), -(-len(self.indices) // self.evaluation.doubts))
        name, attack, robust, alarms = None, None, None, []
        if found:
            name = list(found)[-1]
            attack, robust = self.evaluation.attacks[name], found[name].robust[rows]
        for tally in found.values():
            counts = [int((tally.fell == k).sum()) for k in range(len(tally.names))]
            alarms.append(square_alarm(tally.names, counts, len(tally.fell)))
        (batch,) = indexed(self.data.test, self.indices[rows], len(rows))
        indices, x, y = batch
        known = (y >= 0).nonzero()[:, 0]
        draws = Draws(seed_of(self.seed, "evaluation", 0), indices.to(x.device)[known])
        robust = None if robust is None else robust.to(x.device)[known]
        self.model.eval()
        with float32(self.model):
            asked = doubts(self.model, x[known], y[known], attack, draws, robust)
        own = {alarm.name: alarm for alarm in [*asked.alarms, *filter(None, alarms)]}
        return {"attack": name, **asked.as_json(), "alarms": [a.as_json() for a in own.values()]}

    def _tally(self, which: str, name: str, twin: str | None) -> Tally:
        settings = self.evaluation.settings(name)
        for source in filter(None, (which, twin)):
            if (found := self.run.read_flags(f"{source}-{name}", settings)) is not None:
                if source == which:
                    return tally_of(found)
                tally = tally_of(found)
                break
        else:
            tally = self._measure(which, name)
        self.run.write_flags(
            f"{which}-{name}", settings, **arrays_of(tally), clean=tally.clean.numpy(),
            robust=tally.robust.numpy(), indices=self.indices.numpy(),
        )  # fmt: skip
        self.run.drop_partial(f"{which}-{name}", settings)
        return tally

    def _measure(self, which: str, name: str | None) -> Tally:
        evaluation = self.evaluation
        judge = Series((), (), evaluation.batch_size)
        if name is not None:
            attack = evaluation.judges[name]
            judge = judge_of(attack, evaluation.restarts, evaluation.batch_size)
        images = chunks(self.data.test, self.indices, evaluation.batch_size)
        with float32(self.model), self._tallied(which, name, judge.names) as tally:
            return measure(self.model, images, judge, self.seed, tally)

    @contextmanager
    def _tallied(self, which: str, name: str | None, names: tuple[str, ...]) -> Iterator[Tally]:
        """A tally that goes on where a killed evaluation was, shows progress, and is kept now and
        then until it is complete."""
        count = len(self.indices)
        if name is None:
            yield Tally.new(names, count)
            return
        settings, label = self.evaluation.settings(name), f"{which}-{name}"
        before = self.run.read_partial(label, settings)
        tally = Tally.new(names, count) if before is None else tally_of(before)
        bars, kept = [], time.monotonic()

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
                self.run.write_partial(label, settings, **arrays_of(tally))
                kept = time.monotonic()

        tally.begin, tally.changed = begin, changed
        try:
            yield tally
        finally:
            end()
            self.run.write_partial(label, settings, **arrays_of(tally))

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
                x_adv = attack(self.model, x, y.clamp_min(0), Draws(0, indices.to(x.device)))
            dashboard.pictures(x, x_adv, images)


def weights_in(state: dict[str, Any], which: str) -> dict[str, Tensor]:
    """What a checkpoint is measured with: the average of the weights, where there is one; for
    `last_raw` the weights themselves. Raises Refused where these are the same."""
    average = state.get("average")
    if which == "last_raw" and not average:
        raise Refused(
            "evaluation.checkpoints=[last_raw]: the run averaged no weights (schedule.ema=0);"
            " write last"
        )
    return average if average and which != "last_raw" else state["model"]


def arrays_of(tally: Tally) -> dict[str, np.ndarray]:
    """A tally as it is written to disk."""
    return {
        "attacks": np.array(tally.names), "fell": tally.fell.numpy(),
        "passed": tally.passed.numpy(), "attack_seconds": tally.seconds.numpy(),
        "seconds": np.array(float(tally.seconds.sum())),
    }  # fmt: skip


def tally_of(found: dict[str, np.ndarray]) -> Tally:
    """The reverse; flags of earlier versions, without `fell`, are those of a single attack."""
    if "fell" not in found:
        clean, robust = (torch.from_numpy(found[key]) for key in ("clean", "robust"))
        fell = torch.where(robust, STANDS, torch.where(clean, 0, WRONG)).to(torch.int8)
        seconds = torch.tensor([float(found["seconds"])], dtype=torch.float64)
        return Tally(("restart 1",), fell, robust.to(torch.int8), seconds)
    names = tuple(str(name) for name in found["attacks"])
    arrays = (torch.from_numpy(found[key]) for key in ("fell", "passed", "attack_seconds"))
    return Tally(names, *arrays)
