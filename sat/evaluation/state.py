"""An evaluation that goes on after a kill: its outcomes and adversarial points in one file."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sat.attacks.determinism import shift
from sat.attacks.outcomes import WRONG, AttackOutcomes
from sat.evaluation.store import why
from sat.rundir.checkpoint import Unwritable, write_whole
from sat.rundir.files import regular

log = logging.getLogger("sat")
# Seconds; what a killed evaluation loses at most, beside the batch at hand and the images that
# `strong` has yet to try again.
KEEP_EVERY = 20.0
SAME = 0.02  # of the logits that decide, the middle image: rounding moves them by less
_KEPT = ("fell", "passed", "seconds", "tied")


class State:
    """The `outcomes` of N images, the `points` where those fell that have, by image, and how many
    seconds were spent `before`."""

    def __init__(self, outcomes: AttackOutcomes) -> None:
        self.outcomes, self.points = outcomes, dict[int, Tensor]()
        self.path: Path | None = None
        self.of: Mapping[str, str] = {}
        self.answers = torch.empty(0)
        self.before, self.begun = 0.0, time.monotonic()
        self._written, self._cost = self.begun, 0.0
        outcomes.fallen = self._fallen

    def follow(self, path: Path, of: Mapping[str, str], answers: Tensor) -> None:
        """Keeps all in `path` from now on, and takes over what it has; `of` says what it is of, and
        `answers` are the model's logits of a few images. Raises ValueError for a file of something
        else, and for one that can't be written."""
        self.path, self.of, self.answers = path, of, answers
        if not path.exists():
            with writing(f"state={path}"):
                self._write(path)
            return
        try:
            with open(path, "rb", opener=regular) as opened, np.load(opened) as file:
                found = dict(file)
            other = [key for key, value in of.items() if str(found[key]) != value]
            if not other and not _alike(torch.from_numpy(found["answers"]), answers):
                other = ["model"]
            kept = [torch.from_numpy(found[key]) for key in _KEPT]
            fallen, points = found["fallen"].tolist(), torch.from_numpy(found["points"])
            self.before = float(found["wall"])
            if not other:
                self._check(kept, fallen, points)
        except Exception as error:
            raise ValueError(f"state={path}: is no state of an evaluation ({why(error)})") from None
        if other:
            raise ValueError(
                f"state={path}: is of another {' and '.join(other)}; name another file"
            )
        self.outcomes = AttackOutcomes(self.outcomes.names, *kept)
        self.outcomes.fallen = self._fallen
        self.points = dict(zip(fallen, points, strict=True))

    def _check(self, kept: list[Tensor], fallen: list[int], points: Tensor) -> None:
        """Raises ValueError for what is none of these images and attacks."""
        now = [getattr(self.outcomes, key) for key in _KEPT]
        alike = [(t.shape, t.dtype) for t in kept] == [(t.shape, t.dtype) for t in now]
        whole = alike and len(fallen) == len(points) and {*fallen} <= {*range(len(now[0]))}
        if not whole or not WRONG <= int(kept[0].min()) <= kept[0].max() < len(now[2]):
            raise ValueError("not one verdict for each image")

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
        """Writes all that is known, where there is a file for it; one that can't be written any
        more is said, and the evaluation goes on without."""
        if self.path is None:
            return
        try:
            with writing(f"state={self.path}"):
                self._write(self.path)
        except ValueError as error:
            log.warning("%s; the evaluation goes on, and keeps nothing of what follows", error)
            self.path = None

    def _write(self, path: Path) -> None:
        began = time.monotonic()
        arrays: dict[str, Any] = {key: getattr(self.outcomes, key).numpy() for key in _KEPT}
        points = torch.stack([*self.points.values()]) if self.points else torch.empty(0)
        arrays |= {"fallen": np.array([*self.points], dtype=np.int64), "points": points.numpy()}
        arrays |= {
            **self.of,
            "answers": self.answers.numpy(),
            "wall": self.before + began - self.begun,
        }
        write_whole(path, lambda file: np.savez(file, **arrays))
        self._written = time.monotonic()
        self._cost = self._written - began


def _alike(once: Tensor, now: Tensor) -> bool:
    """Whether the same network gave these logits, on this device or another."""
    return once.shape == now.shape and (not len(now) or shift(once, now) <= SAME)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Raises ValueError, which begins with `what`, for a file that can't be written."""
    try:
        yield
    except Unwritable as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise ValueError(f"{what}: can't be written ({reason})") from None
