"""Shapes of the learning rate: `shape(progress) -> factor` of its peak, after the warm-up.

A new shape is one class here and one YAML file in `conf/schedule/decay`. `schedule.decay` names a
shape of this file (`one_cycle` is `OneCycle`); one with settings, or of another package, is chosen
by `schedule/decay=<file>`.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from sat.arguments import check_choices, check_range

ROUNDING = 1e-3  # updates: 0.07 * 100 is above 7, and so is 0.0700000001 * 100


@dataclass(frozen=True)
class Progress:
    """Where a training stands: update `step` (from 0) of `steps`, of which `warmup` rise and
    `updates` make an epoch."""

    step: int
    steps: int
    warmup: float
    milestones: tuple[float, ...] = ()
    updates: float = 1.0

    @property
    def left(self) -> float:
        """The share of the updates after the warm-up that is still to come, 1 at its end."""
        rising = min(self.warmup, self.steps - 1)
        return min(1.0, (self.steps - self.step) / (self.steps - rising))

    @property
    def passed(self) -> int:
        """How many milestones (shares of the training) lie behind."""
        return sum(self.step >= m * self.steps - ROUNDING for m in self.milestones)

    @property
    def epoch(self) -> int:
        """Whole epochs that lie behind."""
        return int((self.step + ROUNDING) / self.updates)

    @property
    def epochs(self) -> int:
        """How many epochs there are, the last one perhaps in part."""
        return max(1, math.ceil((self.steps - ROUNDING) / self.updates))


class Decay:
    """A shape; the warm-up before it rises in a straight line."""

    def __call__(self, progress: Progress) -> float:
        """The factor, usually from 0 to 1."""
        raise NotImplementedError

    def warmup(self, asked: float, steps: int) -> float:
        """Updates that rise: what is asked, but for a fifth of the training at most."""
        return min(asked, 0.2 * steps)

    def momentum_at(self, progress: Progress) -> float | None:
        """The optimiser's momentum, where the shape moves it."""
        return None


@dataclass(frozen=True)
class Constant(Decay):
    """Stays at the peak."""

    def __call__(self, progress: Progress) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(Decay):
    """Is divided by ten at each of `schedule.milestones`, `lead` updates before it: 1 is what code
    does that tells the time by an update's end (Rice et al. 2020)."""

    lead: int = 0

    def __post_init__(self) -> None:
        check_range("lead", self.lead, 0, 10_000, "is a number of updates, 0 or more")

    def __call__(self, progress: Progress) -> float:
        return 0.1 ** replace(progress, step=progress.step + self.lead).passed


@dataclass(frozen=True)
class Cosine(Decay):
    """Falls to `end`, a share of the peak, along half a cosine."""

    end: float = 0.0

    def __post_init__(self) -> None:
        _check_shares(self, "end")

    def __call__(self, progress: Progress) -> float:
        return self.end + (1 - self.end) * (0.5 * (1 - math.cos(math.pi * progress.left)))


@dataclass(frozen=True)
class OneCycle(Decay):
    """Rises for a share `rise` of the training, whatever warm-up is asked, and falls again (Smith
    and Topin, 2019), in a straight line or along a cosine.

    `start` and `end` are shares of the peak; the first update has `start`, without one its own
    share of the rise. `momentum` is that of the ends and that of the peak, between which it moves
    as the rate does. With `by=epoch` the rate stays for an epoch, and both ends are reached:
    torch's OneCycleLR stepped once an epoch is `rise=0.3 anneal=cosine start=0.04 end=4e-6
    momentum=[0.95,0.85] by=epoch`; its CyclicLR is `rise=0.5 start=0 momentum=[0.9,0.8]`.
    """

    rise: float = 0.3
    anneal: Literal["linear", "cosine"] = "linear"
    start: float | None = None
    end: float = 0.0
    momentum: tuple[float, float] | None = None
    by: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.rise < 1:
            raise ValueError(f"rise={self.rise}: is a share of the training between 0 and 1")
        _check_shares(self, "start", "end")
        if self.momentum and not all(0 <= value < 1 for value in self.momentum):
            raise ValueError(f"momentum={list(self.momentum)}: from 0 to below 1, each")

    def __call__(self, progress: Progress) -> float:
        rising, height = self._height(progress)
        low = (self.start or 0.0) if rising else self.end
        return low + (1 - low) * height

    def warmup(self, asked: float, steps: int) -> float:
        """Rises by itself."""
        return 0.0

    def momentum_at(self, progress: Progress) -> float | None:
        if self.momentum is None:
            return None
        (ends, peak), (_, height) = self.momentum, self._height(progress)
        return ends + (peak - ends) * height

    def _height(self, progress: Progress) -> tuple[bool, float]:
        """Whether the peak is still to come, and the height from 0 at the ends to 1 there."""
        at, end, top = float(progress.step), float(progress.steps), self.rise * progress.steps
        if self.by == "epoch":
            epochs = progress.epochs
            at, end, top = float(progress.epoch), epochs - 1.0, max(0.0, self.rise * epochs - 1)
        elif self.start is None and at < top:
            at = min(at + 1, top)  # as the warm-up of other shapes
        rising = at < top
        height = at / top if rising else (end - at) / (end - top) if end > top else 1.0
        return rising, height if self.anneal == "linear" else 0.5 * (1 - math.cos(math.pi * height))


def _check_shares(shape: Decay, *keys: str) -> None:
    for key in keys:
        if (value := getattr(shape, key)) is not None and not 0 <= value <= 1:
            raise ValueError(f"{key}={value}: is a share of the peak, from 0 to 1")


def word_of(shape: type) -> str:
    """What `schedule.decay` calls a class of this file: `one_cycle` for OneCycle."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", shape.__name__).lower()


def named(word: str) -> Decay:
    """The shape of this file that a word names. Raises ValueError where none does."""
    shapes = {word_of(c): c for c in Decay.__subclasses__() if c.__module__ == __name__}
    if word not in shapes:
        known = " or ".join(sorted(shapes))
        raise ValueError(
            f"decay={word}: must be {known}; a shape of another package is chosen by schedule/decay"
        )
    return shapes[word]()
