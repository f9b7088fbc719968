"""An evaluation that goes on after a kill: its outcomes and adversarial points in one file."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sat.attacks.outcomes import AttackOutcomes
from sat.rundir.checkpoint import write_whole

KEEP_EVERY = 20.0  # seconds; what a killed evaluation loses at most, beside the batch at hand
_KEPT = ("fell", "passed", "seconds", "tied")


class State:
    """The `outcomes` of N images, the `points` where those fell that have, by image, and how many
    seconds were spent `before`."""

    def __init__(self, outcomes: AttackOutcomes) -> None:
        self.outcomes, self.points = outcomes, dict[int, Tensor]()
        self.path: Path | None = None
        self.of: Mapping[str, str] = {}
        self.before, self.begun = 0.0, time.monotonic()
        self._written, self._cost = self.begun, 0.0
        outcomes.fallen = self._fallen

    def follow(self, path: Path, of: Mapping[str, str]) -> None:
        """Keeps all in `path` from now on, and takes over what it has; `of` says what it is of.
        Raises ValueError for a file of something else."""
        self.path, self.of = path, of
        if not path.exists():
            return
        try:
            with np.load(path, allow_pickle=False) as file:
                found = dict(file)
            other = [key for key, value in of.items() if str(found[key]) != value]
            kept = [torch.from_numpy(found[key]) for key in _KEPT]
            fallen, points = found["fallen"].tolist(), torch.from_numpy(found["points"])
            self.before = float(found["wall"])
        except Exception as error:
            raise ValueError(f"state={path}: is no state of an evaluation ({error})") from None
        if other:
            raise ValueError(
                f"state={path}: is of another {' and '.join(other)}; name another file"
            )
        self.outcomes = AttackOutcomes(self.outcomes.names, *kept)
        self.outcomes.fallen = self._fallen
        self.points = dict(zip(fallen, points, strict=True))

    def images(self, clean: Tensor) -> Tensor:
        """The points where an image fell, and `clean` ones elsewhere; on the CPU."""
        images = clean.detach().cpu().clone()
        for image, point in self.points.items():
            images[image] = point.view(images.shape[1:])
        return images

    def _fallen(self, images: Tensor, points: Tensor) -> None:
        self.points |= dict(zip(images.tolist(), points.detach().cpu(), strict=True))

    def keep_now_and_then(self) -> None:
        """Writes what is known, if the last time is long ago, and writing is quick beside that."""
        if time.monotonic() - self._written > max(KEEP_EVERY, 20 * self._cost):
            self.keep()

    def keep(self) -> None:
        """Writes all that is known, where there is a file for it."""
        if self.path is None:
            return
        began = time.monotonic()
        arrays: dict[str, Any] = {key: getattr(self.outcomes, key).numpy() for key in _KEPT}
        points = torch.stack([*self.points.values()]) if self.points else torch.empty(0)
        arrays |= {"fallen": np.array([*self.points], dtype=np.int64), "points": points.numpy()}
        arrays |= {**self.of, "wall": self.before + began - self.begun}
        write_whole(self.path, lambda file: np.savez(file, **arrays))
        self._written = time.monotonic()
        self._cost = self._written - began
