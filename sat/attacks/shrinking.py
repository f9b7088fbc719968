"""Auto-PGD in L1 as AutoAttack runs it (Croce and Hein 2021, "Mind the box"): through balls of
three and two times the size to the ball itself, each from the best point of the one before."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sat.attacks.apgd import SparseAPGDSearch, two_thirds
from sat.attacks.ball import onto_l1
from sat.attacks.network import Bare, Network, constant
from sat.rng import RowRng

# How many times eps a ball has, and its share of the iterations.
BALLS = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


@dataclass(frozen=True)
class ShrinkingAPGDSearch(SparseAPGDSearch):
    """Sparse APGD that begins at normal noise drawn into the largest ball; only points of the last
    ball are looked at for a fall.

    A target that is not even reached in the largest ball is given up at its end: the points of the
    others are among its own.
    """

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        """Iterations in each ball."""
        before = [math.ceil(share * self.iterations) for _, share in BALLS[:-1]]
        return (*before, self.iterations - sum(before))

    @cached_property
    def evaluations(self) -> int:
        return self.iterations + len(BALLS)  # the first of each ball is of no iteration

    @cached_property
    def windows(self) -> tuple[int, ...]:
        ends: list[int] = []
        for count in self._lengths:
            length = max(int(0.04 * count), 1)
            ends += [0, *(length * (k % length == 0) for k in range(1, count + 1))]
        return tuple(ends)

    @cached_property
    def _sizes(self) -> tuple[float, ...]:
        """How many times eps the ball of each evaluation has."""
        pairs = zip(BALLS, self._lengths, strict=True)
        return tuple(size for (size, _), count in pairs for _ in range(count + 1))

    def radius(self, state: dict[str, Tensor]) -> Tensor:
        times = constant(self._sizes, state["x"].device)[state["iteration"]]
        return (self.ball.eps * times).view(-1, 1, 1, 1)

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        state = super().begin(x, y, target, rng)
        return {**state, "best": x + rng.normal("start", *x.shape[1:])}

    def step(
        self, network: Network | Bare, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluates the row's point, which is drawn into a ball where it is the first of it."""
        sizes = constant((0.0, *self._sizes), state["x"].device)
        before, size = sizes[state["iteration"]], sizes[state["iteration"] + 1]
        if len(rows := (before != size).nonzero()[:, 0]):
            self._enter(state, rows)
        point, may_fall, over = super().step(network, state)
        return point, may_fall & (size == BALLS[-1][0]), over

    def _enter(self, state: dict[str, Tensor], rows: Tensor) -> None:
        """Begins anew in the ball of these rows, at their best point of the one before."""
        x, radius = state["x"][rows], self.radius(state)[rows]
        point = x + onto_l1(state["best"][rows] - x, x, radius.flatten(1))
        changed = (point != x).flatten(1).sum(1)
        new = {"point": point, "best": point, "step": radius, "changed": changed,
               "entries": two_thirds(changed),
               "best_loss": torch.full_like(radius.flatten(), -torch.inf)}  # fmt: skip
        for key, values in new.items():
            state[key] = state[key].index_copy(0, rows, values)

    def hopeless(self, state: dict[str, Tensor], patience: float) -> Tensor:
        at_end = state["iteration"] == self._lengths[0] + 1
        missed = state["short"].isfinite() & (state["short"] > 0)
        return at_end & missed & (patience < math.inf)
