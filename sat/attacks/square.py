"""The Square Attack (Andriushchenko et al. 2020): random search, without any gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sat.attacks.ball import Ball
from sat.attacks.bumps import bump_grid, bumps_at
from sat.attacks.network import Network, constant, margins
from sat.rng import RowRng

# The squares cover 0.8 of the image at first; beyond each of these queries, half of what they did.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square:
    """Changes one square a query and keeps what lowers the margin; `key` seeds its choices."""

    ball: Ball
    key: int
    rounds: int = 1
    iterations: int = 5000  # queries
    slowing: bool = True

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        return {
            "best": x, "short": torch.full(y.shape, torch.inf, device=x.device),
            "iteration": torch.zeros_like(y), "row": rng.rows,
        }  # fmt: skip

    def step(self, network: Network, state: dict[str, Tensor]):
        """Evaluates one proposal a row."""
        x, y, iteration = state["x"], state["y"], state["iteration"]
        rng = RowRng(self.key, state["row"] * (self.iterations + 1) + iteration)
        propose = self._stripes_or_squares if self.ball.norm == "linf" else self._bumps
        point = propose(x, state["best"], iteration, rng)
        logits = network.logits(point)
        margin = margins(logits, y)
        better = margin < state["short"]
        state["best"] = torch.where(better.view(-1, 1, 1, 1), point, state["best"])
        state["short"] = torch.where(better, margin, state["short"])
        state["iteration"] = iteration + 1
        return point, network.may_fall(logits, y), iteration == self.iterations

    def _sides(self, iteration: Tensor, size: torch.Size) -> Tensor:
        """Side of the square in pixels [B]: odd and 3 at least for L2, as published."""
        height, width = size[-2:]
        ends = constant(_HALVED_AFTER, iteration.device)
        share = 0.8 / 2 ** torch.bucketize(iteration - 1, ends)
        side = (share * height * width).sqrt().round().long()
        if self.ball.norm == "l2":
            side = side.clamp(min=3) // 2 * 2 + 1
        return side.clamp(1, min(height, width))

    def _stripes_or_squares(self, x, best, iteration, rng):
        """Linf: vertical stripes of +-eps at first; then a square of one sign a channel."""
        eps, (channels, _, width) = self.ball.eps, x.shape[1:]
        first = iteration == 0
        change = 2 * eps * signs(rng, "colour", channels, 1, 1)
        sides = self._sides(iteration, x.shape)
        point = best + change * windows(corners(rng, "corner", sides, x.shape), sides, x.shape)
        if first.any():
            stripes = x + eps * signs(rng, "stripes", channels, 1, width)
            point = torch.where(first.view(-1, 1, 1, 1), stripes, point)
        return self.ball.project(point, x)

    def _bumps(self, x, best, iteration, rng):
        """L2: a grid of bumps at first; then the length of one window goes into another."""
        eps, channels = self.ball.eps, x.shape[1]
        first, delta = iteration == 0, best - x
        sides = self._sides(iteration, x.shape)
        here = corners(rng, "corner", sides, x.shape)
        target = windows(here, sides, x.shape)
        source = windows(corners(rng, "other", sides, x.shape), sides, x.shape)
        old = delta * target
        new = bumps_at(here, sides, x.shape, rng) * signs(rng, "colour", channels, 1, 1)
        new = new + old / length(old)
        spare = (eps**2 - self.ball.size(delta) ** 2).clamp_(min=0) / channels
        either = torch.maximum(target, source)
        new = new / length(new) * (spare + length(delta * either) ** 2).sqrt()
        moved = delta * (1 - either) + new * target
        if first.any():
            moved = torch.where(first.view(-1, 1, 1, 1), bump_grid(x.shape, rng), moved)
        return (x + eps * moved / self.ball.size(moved)).clamp_(0, 1)


def signs(rng: RowRng, name: str, *shape: int) -> Tensor:
    """-1 or 1, as likely [B, *shape]."""
    return 1 - 2 * (rng.uniform(name, *shape) < 0.5).float()


def corners(rng: RowRng, name: str, sides: Tensor, shape: torch.Size) -> Tensor:
    """The upper left pixel [B, 2] of a square anywhere in an image."""
    room = constant(tuple(shape[-2:]), sides.device) - sides[:, None] + 1
    return (rng.uniform(name, 2) * room).long()


def windows(corner: Tensor, sides: Tensor, shape: torch.Size) -> Tensor:
    """1 in the square at `corner`, 0 elsewhere [B, 1, H, W]."""
    rows, columns = (
        ((at := torch.arange(size, device=sides.device)) >= low) & (at < low + sides[:, None])
        for size, low in zip(shape[-2:], corner.split(1, dim=1), strict=True)
    )
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def length(d: Tensor) -> Tensor:
    """The L2 norm of each channel [B, C, 1, 1], kept off 0."""
    return d.flatten(2).norm(dim=2).clamp_min_(1e-12)[..., None, None]
