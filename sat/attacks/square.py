"""The Square Attack (Andriushchenko et al. 2020): random search, without any gradient."""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import Size, check_ball, check_choices, check_range
from sat.attacks.ball import Ball, Norm
from sat.attacks.base import Attack, Mode, frozen, row_rng
from sat.attacks.losses import one_label
from sat.attacks.network import Bare, Network, constant
from sat.attacks.outcomes import margins
from sat.attacks.patience import AGAIN, NEAR, by_doublings
from sat.rng import Key, RowRng

# The squares cover 0.8 of the image at first; beyond each of these queries, half of what they did.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_POWER = {"l2": 2.0, "l1": 1.0}
SETTLED = 5  # times that each change of a pixel is asked for without a gain, on average
# Of its queries, after which the search is compared with an ascent. Of 1,252 images of thirteen
# networks (digits, CIFAR-10, photographs; L-inf and L2) that stood under attacks by gradients all
# queries felled 5; this gives up 990, and none of the 5.
ASKED = 0.03
SPARED = 0.002  # of all images it fells after attacks by gradients: AutoAttack's limit
AHEAD = 32  # queries whose random numbers are drawn at once, which costs hardly more than for one


@dataclass(frozen=True)
class Square(Attack):
    """Asks for `queries` answers and gives the point of the smallest margin. `eps` is in 1/255."""

    eps: Size = 8.0
    queries: int = 100
    norm: Norm = "linf"
    batch_norm: Mode = "eval"

    loss: ClassVar[str] = "margin"
    asks_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        check_range("queries", self.queries, 1, 10**6, "is more than anybody waits for")

    def gradients(self, classes: int) -> int:
        return self.queries // 2

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] in [0, 1] and y [B] or [B, K] -> adversarial images, detached, float32."""
        if not self.eps:
            return x.detach()
        rng = row_rng(rng, x)
        ball, label = Ball(float(self.eps) / 255, self.norm), one_label(y)
        search = SquareSearch(ball, rng.key, iterations=self.queries)
        with frozen(model, self.batch_norm):
            network = Bare(model)
            state = {"x": x.detach(), "y": label, **search.begin(x.detach(), label, label, rng)}
            for _ in range(self.queries):
                search.step(network, state)
        return state["best"]


@dataclass(frozen=True)
class Drawn:
    """Random numbers of B rows, of which those in `ahead` (by name, [B, n]) are drawn already."""

    rng: RowRng
    ahead: dict[str, Tensor]

    def __getitem__(self, rows: Tensor) -> "Drawn":
        return Drawn(self.rng[rows], {name: drawn[rows] for name, drawn in self.ahead.items()})

    def uniform(self, name: str, *shape: int) -> Tensor:
        """See `RowRng.uniform`."""
        if name in self.ahead:
            return self.ahead[name].view(-1, *shape)
        return self.rng.uniform(name, *shape)


@dataclass(frozen=True)
class SquareSearch:
    """Changes one square a query and keeps what lowers the margin; `key` seeds its choices.

    `reached` [N] are margins, by the number of the image, to which an ascent came; with patience it
    decides early which images are worth all queries.
    """

    ball: Ball
    key: Key
    rounds: int = 1
    iterations: int = 5000  # queries
    reached: Tensor | None = None

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        drawn = {
            name: torch.empty(len(x), AHEAD, count, device=x.device)
            for name, count in self._drawn(x).items()
        }
        return {
            "best": x, "short": torch.full(y.shape, torch.inf, device=x.device),
            "iteration": torch.zeros_like(y), "gained": torch.zeros_like(y), "row": rng.rows,
            "ahead": y != y,
            **drawn,
        }  # fmt: skip

    def _drawn(self, x: Tensor) -> dict[str, int]:
        """How many numbers a query takes, by their name."""
        one = {"colour": x.shape[1], "corner": 2}
        return one if self.ball.norm == "linf" else {**one, "other": 2, "turn": 1}

    def _draws(self, state: dict[str, Tensor]) -> "Drawn":
        """The random numbers of each row's query; now and then those of AHEAD queries are drawn."""
        iteration = state["iteration"]
        at, slot = state["row"] * (self.iterations + 1) + iteration, iteration % AHEAD
        names = self._drawn(state["x"])
        if len(rows := (slot == 0).nonzero()[:, 0]):
            coming = torch.arange(AHEAD, device=at.device)
            rng = RowRng(self.key, (at[rows, None] + coming).flatten())
            for name, count in names.items():
                state[name][rows] = rng.uniform(name, count).view(len(rows), AHEAD, count)
        own = torch.arange(len(at), device=at.device)
        return Drawn(RowRng(self.key, at), {name: state[name][own, slot] for name in names})

    def step(
        self, network: Network | Bare, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluates one proposal a row."""
        x, y, iteration = state["x"], state["y"], state["iteration"]
        propose = self._stripes_or_squares if self.ball.norm == "linf" else self._bumps
        point = propose(x, state["best"], iteration, self._draws(state))
        logits, basis = network.logits(point)
        margin = margins(basis, y)
        may_fall = network.may_fall(logits, y) if basis is not logits else ~(margin > 0)
        better = margin <= state["short"]  # on a plateau it wanders on
        moved = better & (point != state["best"]).flatten(1).any(1)
        state["gained"] = torch.where(moved, iteration, state["gained"])
        state["best"] = torch.where(better.view(-1, 1, 1, 1), point, state["best"])
        state["short"] = torch.where(better, margin, state["short"])
        state["iteration"] = iteration + 1
        return point, may_fall, iteration == self.iterations

    def hopeless(self, state: dict[str, Tensor], patience: float) -> Tensor:
        over = by_doublings(state, self.iterations, patience)
        if math.isinf(patience):
            return over
        if self.reached is not None:
            over = self._behind(state, self.reached) | over & ~state["ahead"]
        return over | self._settled(state)

    def _behind(self, state: dict[str, Tensor], reached: Tensor) -> Tensor:
        """Rows [B] that are asked now and are behind: an ascent came further, and not near a fall.
        Where it did not come as far, gradients lead astray, and a doubling without gain ends it no
        more."""
        short, first, reached = state["short"], state["first"], reached[state["image"]]
        far = (state["iteration"] == int(ASKED * self.iterations)) & (reached > AGAIN * first)
        state["ahead"] |= far & (short <= reached)
        return far & (short > reached + NEAR * first.clamp(min=0))

    def _settled(self, state: dict[str, Tensor]) -> Tensor:
        """Rows [B] in Linf that single pixels move no more: each of a pixel's changes (a sign a
        channel) was asked SETTLED times on average, and none was as good."""
        channels, height, width = state["x"].shape[1:]
        queries = SETTLED * height * width * 2**channels
        sides = ((0.8 / 2**k * height * width) ** 0.5 for k in range(1, len(_HALVED_AFTER) + 1))
        single = [n + 2 for n, side in zip(_HALVED_AFTER, sides, strict=True) if side < 1.5]
        if self.ball.norm != "linf" or not single or single[0] + queries > self.iterations:
            return torch.zeros_like(state["gained"], dtype=torch.bool)
        return state["iteration"] - state["gained"].clamp(min=single[0]) > queries

    def _sides(self, iteration: Tensor, size: torch.Size) -> Tensor:
        """Side of the square in pixels [B]: odd and 3 at least but for Linf, as published."""
        height, width = size[-2:]
        ends = constant(_HALVED_AFTER, iteration.device)
        share = 0.8 / 2 ** torch.bucketize(iteration - 1, ends)
        side = (share * height * width).sqrt().round().long()
        if self.ball.norm != "linf":
            side = side.clamp(min=3) // 2 * 2 + 1
        return side.clamp(1, min(height, width))

    def _stripes_or_squares(self, x: Tensor, best: Tensor, iteration: Tensor, rng: Drawn) -> Tensor:
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

    def _bumps(self, x: Tensor, best: Tensor, iteration: Tensor, rng: Drawn) -> Tensor:
        """L2 and L1: a grid of bumps at first; then the length of one window goes into another."""
        norm, channels = self.ball.norm, x.shape[1]
        first, delta = iteration == 0, best - x
        sides = self._sides(iteration, x.shape)
        here = corners(rng, "corner", sides, x.shape)
        target = windows(here, sides, x.shape)
        source = windows(corners(rng, "other", sides, x.shape), sides, x.shape)
        old = delta * target
        new = bumps_at(here, sides, x.shape, rng, norm) * signs(rng, "colour", channels, 1, 1)
        new = new + old / length(old, norm)
        either = length(delta * torch.maximum(target, source), norm)
        moved = delta * (1 - torch.maximum(target, source))
        moved = moved + new / length(new, norm) * self._due(delta, either) * target
        if first.any():
            moved = torch.where(first.view(-1, 1, 1, 1), bump_grid(x.shape, rng, norm), moved)
        if norm == "l1":
            return self.ball.project(x + moved, x)
        return (x + self.ball.eps * moved / self.ball.size(moved)).clamp_(0, 1)

    def _due(self, delta: Tensor, either: Tensor) -> Tensor:
        """The length [B, C, 1, 1] of a new bump, where two windows had the length `either`: theirs,
        and what the point [B, C, H, W] lacks of eps; in L1 for all channels, as published."""
        eps, size, channels = self.ball.eps, self.ball.size(delta), delta.shape[1]
        if self.ball.norm == "l1":
            return (eps - size).clamp_(min=0) + channels * either
        return ((eps**2 - size**2).clamp_(min=0) / channels + either**2).sqrt()


def signs(rng: RowRng | Drawn, name: str, *shape: int) -> Tensor:
    """-1 or 1, as likely [B, *shape]."""
    return 1 - 2 * (rng.uniform(name, *shape) < 0.5).float()


def corners(rng: RowRng | Drawn, name: str, sides: Tensor, shape: torch.Size) -> Tensor:
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


def length(d: Tensor, norm: str) -> Tensor:
    """The norm of each channel [B, C, 1, 1], kept off 0."""
    return d.flatten(2).norm(p=_POWER[norm], dim=2).clamp_min_(1e-12)[..., None, None]


@cache
def bump(side: int, norm: str) -> Tensor:
    """A hill in the upper half, a valley in the lower [side, side], of length 1."""
    top = side // 2
    shape = torch.cat([_hill(top, side, norm), -_hill(side - top, side, norm)])
    return shape / shape.norm(p=_POWER[norm])


def _hill(height: int, width: int, norm: str) -> Tensor:
    """Rings of 1 / (k + 1)^2 (in L1 to the 4th) for all k from the distance to the middle on; of
    length 1."""
    rows, columns = torch.arange(height), torch.arange(width)
    distance = torch.maximum((rows - height // 2).abs()[:, None], (columns - width // 2).abs())
    rings = 1 / torch.arange(1, max(height, width) // 2 + 2) ** (4 / _POWER[norm])
    hill = rings.flip(0).cumsum(0).flip(0)[distance]
    return hill / hill.norm(p=_POWER[norm]).clamp_min(1e-12)


def bumps_at(
    corner: Tensor, sides: Tensor, shape: torch.Size, rng: RowRng | Drawn, norm: str
) -> Tensor:
    """Makes for each image a bump in the square at `corner`, upright or on its side [B, 1, H,
    W]."""
    placed = torch.zeros(len(sides), 1, *shape[-2:], device=sides.device)
    for side in sides.unique().tolist():
        rows = (sides == side).nonzero()[:, 0]
        turned, shape_of = rng[rows].uniform("turn", 1, 1) < 0.5, bump(side, norm).to(placed)
        shapes = torch.where(turned, shape_of.T, shape_of)
        steps = torch.arange(side, device=sides.device)
        down, right = corner[rows, 0, None] + steps, corner[rows, 1, None] + steps
        placed[rows[:, None, None], 0, down[:, :, None], right[:, None, :]] = shapes
    return placed


def bump_grid(shape: torch.Size, rng: RowRng | Drawn, norm: str) -> Tensor:
    """Five times five bumps of random signs and turns over the whole image [B, C, H, W]."""
    batch, channels, height, width = shape
    side = max(min(height, width) // 5, 1)
    tiles = (height // side, width // side)
    sign = 1 - 2 * (rng.uniform("tile sign", channels, *tiles) < 0.5).float()
    turned = rng.uniform("tile turn", 1, *tiles) < 0.5
    one = bump(side, norm).to(sign)
    each = sign[..., None, None] * torch.where(turned[..., None, None], one.T, one)
    grid = each.transpose(3, 4).reshape(batch, channels, tiles[0] * side, tiles[1] * side)
    down, right = height - grid.shape[2], width - grid.shape[3]
    return F.pad(grid, (right // 2, right - right // 2, down // 2, down - down // 2))
