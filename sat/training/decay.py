"""Shapes of the learning rate: `shape(progress) -> factor` of its peak, after the warm-up.

A new shape is one class here and one YAML file in `conf/schedule/decay`. `schedule.decay` names a
shape of this file (`one_cycle` is `OneCycle`); one with settings, or of another package, is chosen
by `schedule/decay=<file>`.
"""

import math
import re
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Progress:
    """Where a training stands: update `step` (from 0) of `steps`, of which `warmup` rise."""

    step: int
    steps: int
    warmup: float
    milestones: tuple[float, ...] = ()

    @property
    def left(self) -> float:
        """The share of the updates after the warm-up that is still to come, 1 at its end."""
        rising = min(self.warmup, self.steps - 1)
        return min(1.0, (self.steps - self.step) / (self.steps - rising))

    @property
    def passed(self) -> int:
        """How many milestones (shares of the training) lie behind."""
        return sum(self.step >= milestone * self.steps for milestone in self.milestones)


class Decay:
    """A shape; the warm-up before it rises in a straight line."""

    rise: ClassVar[float | None] = None  # the share of the training that rises, whatever is asked

    def __call__(self, progress: Progress) -> float:
        """The factor, usually from 0 to 1."""
        raise NotImplementedError

    def warmup(self, asked: float, steps: int) -> float:
        """Updates that rise: what is asked, but for a fifth of the training at most."""
        return min(asked, 0.2 * steps) if self.rise is None else self.rise * steps


@dataclass(frozen=True)
class Constant(Decay):
    """Stays at the peak."""

    def __call__(self, progress: Progress) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(Decay):
    """Is divided by ten at each of `schedule.milestones`."""

    def __call__(self, progress: Progress) -> float:
        return 0.1**progress.passed


@dataclass(frozen=True)
class Cosine(Decay):
    """Falls to 0 along half a cosine."""

    def __call__(self, progress: Progress) -> float:
        return 0.5 * (1 - math.cos(math.pi * progress.left))


@dataclass(frozen=True)
class OneCycle(Decay):
    """Rises for 0.3 of the training, then falls to 0 in a straight line."""

    rise: ClassVar[float | None] = 0.3

    def __call__(self, progress: Progress) -> float:
        return progress.left


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
