"""Which images stand, under attacks that come one after the other; what a killed one leaves.

The rule of every verdict, on every device, in a batch and alone: an image is right where its
label's logit is above each other class's and no logit is NaN; it falls at a point that is finite,
in [0, 1] and in its ball, and wrong there. So a tie is wrong. `argmax` may say otherwise: which of
two equal logits it takes is the backend's choice.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sat.attacks.ball import Ball
from sat.rng import RowRng

STANDS, WRONG = -1, -2  # no attack felled it so far; wrong before any attack
ROUNDING = 1e-5  # of the logits at stake: no more than this moves with the size of a batch


@dataclass
class AttackOutcomes:
    """What became of each of N images, on the CPU: `fell` int16, the attack that felled it (or
    STANDS, WRONG), and `passed` int16, how many attacks it has been through, one that comes a
    second time included. An image falls once.

    `tied` bool: it is wrong, or fell, by a tie that `argmax` takes for right. `seconds` float64
    [attacks] adds up over restarts. `begin(attack, images)` is told of each attack that starts,
    `changed(images)` of how many were decided in it, `fallen(images, points)` of which [M] fell,
    and where [M, C, H, W].
    """

    names: tuple[str, ...]
    fell: Tensor
    passed: Tensor
    seconds: Tensor
    tied: Tensor = None  # none, where it is not given
    begin: Callable[[str, int], object] = lambda name, images: None
    changed: Callable[[int], object] = lambda images: None
    fallen: Callable[[Tensor, Tensor], object] = lambda images, points: None
    _since: float = field(default=0.0, repr=False)
    _attack: int = field(default=0, repr=False)
    _turn: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.tied is None:
            self.tied = torch.zeros(len(self.fell), dtype=torch.bool)

    @classmethod
    def new(cls, names: tuple[str, ...], images: int) -> "AttackOutcomes":
        """Nothing is known yet: all stand."""
        none = torch.zeros(images, dtype=torch.int16)
        return cls(names, none + STANDS, none, torch.zeros(len(names), dtype=torch.float64))

    def part(self, rows: slice) -> "AttackOutcomes":
        """Some of the images; what is decided there is decided here."""
        first = rows.start or 0
        return AttackOutcomes(
            self.names, self.fell[rows], self.passed[rows], self.seconds, self.tied[rows],
            self.begin, self.changed, lambda images, points: self.fallen(first + images, points),
        )  # fmt: skip

    def joined(self, other: "AttackOutcomes") -> "AttackOutcomes":
        """What either of two parts of one measurement knows of the same images."""
        fell = torch.where(self.fell == STANDS, other.fell, self.fell)
        passed = torch.maximum(self.passed, other.passed)
        seconds, tied = self.seconds + other.seconds, self.tied | other.tied
        return AttackOutcomes(self.names, fell, passed, seconds, tied)

    @contextmanager
    def attack(self, k: int, turn: int | None = None) -> Iterator[Tensor]:
        """Runs attack `k`; yields the images [M] that it still has to decide, ascending. `turn`
        counts what comes before it, where that is not `k`: it comes a second time."""
        self._attack, self._turn, self._since = k, k if turn is None else turn, time.monotonic()
        left = ((self.fell == STANDS) & (self.passed <= self._turn)).nonzero()[:, 0]
        if len(left):
            self.begin(self.names[k], len(left))
        yield left
        self._tick()

    def entered(self, k: int) -> Tensor:
        """All images [M] that attack `k` has to deal with, those it has decided included."""
        return ((self.fell == STANDS) | (self.fell >= k)).nonzero()[:, 0]

    def decide(
        self, images: Tensor, stand: Tensor, points: Tensor, tied: Tensor | None = None
    ) -> None:
        """Notes of the attack that runs: whether each of `images` withstood it, where it was led
        [M, C, H, W] (where none fell, that may be empty), and whether it fell by a tie alone."""
        if not stand.all():
            fell = ~stand
            self.fallen(images[fell.to(images.device)].cpu(), points[fell.to(points.device)])
        images, stand = images.cpu(), stand.cpu()
        self.fell[images[~stand]] = self._attack
        self.passed[images[stand]] = self._turn + 1
        if tied is not None:
            self.tied[images] = tied.cpu() & ~stand
        self._tick()
        self.changed(len(images))

    def leave(
        self, images: Tensor, points: Tensor | None = None, tied: Tensor | None = None
    ) -> None:
        """Decides images that left a pool: where they fell [M, C, H, W], or that they stand."""
        stand = torch.full((len(images),), points is None)
        self.decide(images, stand, torch.empty(0) if points is None else points, tied)

    def survey(
        self, model: nn.Module, x: Tensor, y: Tensor, device: torch.device | None = None,
        batch_size: int = 256,
    ) -> None:  # fmt: skip
        """Finds before any attack which of images [N, C, H, W] are wrong when clean. What is known
        already stays. The model is in eval mode, on `device` (the images', unless given)."""
        device = device or x.device
        for fell, tied, *images in zip(
            *(rows.split(batch_size) for rows in (self.fell, self.tied, x, y)), strict=True
        ):
            verdict = verdicts(model, *(part.to(device) for part in images))
            wrong = (fell == STANDS) & ~verdict.right.cpu()
            fell[wrong] = WRONG
            tied[wrong] = verdict.tied.cpu()[wrong]

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

    @property
    def ties(self) -> dict[str, int]:
        """How many images are wrong where `argmax` says right: when clean, and under attack."""
        clean = int((self.tied & ~self.clean).sum())
        return {"clean": clean, "attacked": int(self.tied.sum()) - clean}

    def left_by(self, k: int) -> Tensor:
        """Right after attacks 0 to k, bool [N]."""
        return self.robust | (self.fell > k)


@dataclass(frozen=True)
class Verdicts:
    """Verdicts by the rule above on B images: `right`; and `tied`, wrong where `argmax` says
    right."""

    right: Tensor
    tied: Tensor


def of_logits(logits: Tensor, y: Tensor) -> Verdicts:
    """The rule, of logits [B, K] and labels y [B]; -1, unknown, is never right."""
    label, known = y.clamp_min(0)[:, None], y >= 0
    own = logits.gather(1, label)
    others = logits.scatter(1, label, -torch.inf)
    sound = known & ~logits.isnan().any(1)
    right = sound & (own > others).all(1)
    return Verdicts(right, sound & ~right & (logits.argmax(1) == y))


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """How far the label's logit is above the best other [B]; wrong from 0 down."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def at_stake(logits: Tensor, among: int) -> Tensor:
    """How large the finite ones are among the `among` largest logits of an image [B], or how far
    apart: whatever the others are, which may be far off."""
    top = logits.topk(min(among, logits.shape[1])).values
    low = torch.where(top.isfinite(), top, torch.inf).amin(1)
    high = torch.where(top.isfinite(), top, -torch.inf).amax(1)
    return torch.maximum(high.abs(), high - low).nan_to_num(0.0, posinf=0.0)


@torch.no_grad()
def verdicts(model: nn.Module, x: Tensor, y: Tensor) -> Verdicts:
    """The rule, of images x [B, C, H, W]. Where label and best other class are level but for
    rounding, sums of a batch of another size may say otherwise: the image alone decides."""
    logits = model(x)
    verdict = of_logits(logits, y)
    close = margins(logits, y.clamp_min(0)).abs() <= ROUNDING * at_stake(logits, 3)
    for row in close.nonzero()[:, 0].tolist() if len(y) > 1 else ():
        alone = of_logits(model(x[row : row + 1]), y[row : row + 1])
        verdict.right[row], verdict.tied[row] = alone.right[0], alone.tied[0]
    return verdict


def under_attack(model: nn.Module, points: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Verdicts:
    """The rule, of points [B, C, H, W] that an attack found around x; `right` also where a point is
    none that an attack may take: nothing follows from it."""
    verdict, holds = verdicts(model, points, y), ball.holds(points, x)
    return Verdicts(verdict.right | ~holds, verdict.tied & holds)


def is_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images [B] are classified as their labels say."""
    return verdicts(model, x, y).right


First = tuple[Tensor, RowRng]  # the first images of a set [N, C, H, W], and their random numbers


class Ensemble:
    """A sequence of attacks that decides for each image whether it stands."""

    if TYPE_CHECKING:  # else dataclasses would take it for the default of a field

        @property
        def names(self) -> tuple[str, ...]: ...

    by_batch = False  # a verdict depends on the images beside it, so that one process takes all

    @property
    def fewest_classes(self) -> int:
        """How many classes a network must tell apart."""
        return 2

    def of_set(self, first: Callable[[], First]) -> "Ensemble":
        """The ensemble for parts of one set, whose `first` images tell what holds for the network
        in all of them."""
        return self

    def passes(self, outcomes: AttackOutcomes) -> Iterator["Ensemble"]:
        """What each part of a set is put through; the next is asked for when all parts have been,
        with `outcomes` of them all."""
        yield self

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Puts images x [N, C, H, W] with labels y [N], which the model gets right unless
        `outcomes` says WRONG, through what they have not been through. The model is in eval
        mode."""
        raise NotImplementedError
