"""Which images stand, under attacks that come one after the other; what a killed one leaves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

STANDS, WRONG = -1, -2  # no attack felled it so far; wrong before any attack


@dataclass
class AttackOutcomes:
    """For each of N images, on the CPU: `fell` int8, the attack that felled it (or STANDS, WRONG),
    and `passed` int8, how many attacks it has been through. An image falls once.

    `seconds` float64 [attacks] adds up over restarts. `begin(attack, images)` is told of each
    attack that starts, `changed(images)` of images decided in it.
    """

    names: tuple[str, ...]
    fell: Tensor
    passed: Tensor
    seconds: Tensor
    begin: Callable[[str, int], object] = lambda name, images: None
    changed: Callable[[int], object] = lambda images: None
    _since: float = field(default=0.0, repr=False)
    _attack: int = field(default=0, repr=False)

    @classmethod
    def new(cls, names: tuple[str, ...], images: int) -> "AttackOutcomes":
        """Nothing is known yet: all stand."""
        none = torch.zeros(images, dtype=torch.int8)
        return cls(names, none + STANDS, none, torch.zeros(len(names), dtype=torch.float64))

    def part(self, rows: slice) -> "AttackOutcomes":
        """Some of the images; what is decided there is decided here."""
        return AttackOutcomes(
            self.names, self.fell[rows], self.passed[rows], self.seconds, self.begin, self.changed
        )

    def joined(self, other: "AttackOutcomes") -> "AttackOutcomes":
        """What either of two parts of one measurement knows of the same images."""
        fell = torch.where(self.fell == STANDS, other.fell, self.fell)
        passed = torch.maximum(self.passed, other.passed)
        return AttackOutcomes(self.names, fell, passed, self.seconds + other.seconds)

    @contextmanager
    def attack(self, k: int) -> Iterator[Tensor]:
        """Runs attack `k`; yields the images [M] that it still has to decide, ascending."""
        left = ((self.fell == STANDS) & (self.passed <= k)).nonzero()[:, 0]
        self._attack, self._since = k, time.monotonic()
        if len(left):
            self.begin(self.names[k], len(left))
        yield left
        self._tick()

    def entered(self, k: int) -> Tensor:
        """All images [M] that attack `k` has to deal with, those it has decided included."""
        return ((self.fell == STANDS) | (self.fell >= k)).nonzero()[:, 0]

    def decide(self, images: Tensor, stand: Tensor) -> None:
        """Of the attack that runs: whether each of `images` withstood it (both [M])."""
        images, stand = images.cpu(), stand.cpu()
        self.fell[images[~stand]] = self._attack
        self.passed[images[stand]] = self._attack + 1
        self._tick()
        self.changed(len(images))

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds[self._attack] += now - self._since
        self._since = now

    @property
    def clean(self) -> Tensor:
        """Right before any attack, bool [N]."""
        return self.fell != WRONG

    @property
    def robust(self) -> Tensor:
        """Right before and under every attack, bool [N]."""
        return self.fell == STANDS

    def left_by(self, k: int) -> Tensor:
        """Right after attacks 0 to k, bool [N]."""
        return self.robust | (self.fell > k)


@torch.no_grad()
def is_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images [B] are classified as their labels say; logits that are not finite are wrong."""
    logits = model(x)
    return (logits.argmax(1) == y) & torch.isfinite(logits).all(1)


class Ensemble(Protocol):
    """A sequence of attacks that decides for each image whether it stands."""

    names: tuple[str, ...]

    def judge(self, model, x, y, rng, outcomes: AttackOutcomes) -> None:
        """Puts images x [N, C, H, W] with labels y [N], which the model gets right unless the tally
        says WRONG, through what they have not been through. The model is in eval mode."""
        ...
