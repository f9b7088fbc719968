"""Targeted FAB (Croce and Hein 2020, "Fast Adaptive Boundary"): walks along the decision boundary.

It looks for the nearest adversarial image; here it stops at the first one within the ball, which
gives the same verdict.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sat.arguments import Size, check_ball, check_choices, check_steps
from sat.attacks.ball import Ball, Norm
from sat.attacks.base import Attack, Mode, frozen, row_rng
from sat.attacks.losses import one_label
from sat.attacks.network import Bare, Network
from sat.attacks.outcomes import margins
from sat.attacks.patience import by_doublings
from sat.rng import RowRng

NEWTON = 30  # steps at most; the equation is piecewise linear, and three or four are usual
# A round whose points have not crossed the boundary by a tenth of its length (at patience 2) is
# over. Of 466 rounds that felled an image, on two networks of digits in six balls, all had crossed
# it after two steps.
UNCROSSED = 1 / 20
# From its sixth step on a round is over whose nearest point is outside of the ball by more than
# FAR / step of its size (times the patience). Of 4,046 rounds, on seven networks of digits and
# CIFAR-10 in L-inf and L2, 318 felled an image; the most that one of these had left was 2.4 / step.
FAR, SIXTH = 2.4, 6


@dataclass(frozen=True)
class FAB(Attack):
    """Walks for `steps` steps towards the likeliest other class, and gives the nearest point that
    is fooled within the ball, or else the last one, drawn into the ball. `eps` is in 1/255."""

    eps: Size = 8.0
    steps: int = 10
    norm: Norm = "linf"
    batch_norm: Mode = "eval"

    loss: ClassVar[str] = "margin"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        check_steps("steps", self.steps)

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
        search = FABSearch(ball, rounds=1, iterations=self.steps)
        with frozen(model, self.batch_norm):
            network = Bare(model)
            others = network.logits(x)[0].scatter(1, label[:, None], -torch.inf)
            target = others.argmax(1)
            state = {"x": x, "y": label, "target": target, **search.begin(x, label, target, rng)}
            nearest, size = x, torch.full((len(x), 1, 1, 1), torch.inf, device=x.device)
            for _ in range(self.steps + 1):
                point, fooled, _ = search.step(network, state)
                nearer = fooled.view(-1, 1, 1, 1) & ((away := ball.size(point - x)) < size)
                nearest, size = torch.where(nearer, point, nearest), torch.where(nearer, away, size)
        return torch.where(size.isinf(), ball.project(point, x), nearest)


@dataclass(frozen=True)
class FABSearch:
    """Steps onto the linearised boundary between label and target, starting at the image itself."""

    ball: Ball
    rounds: int = 9
    iterations: int = 100
    overshoot: float = 1.05
    backward: float = 0.9
    most_bias: float = 0.1  # towards the image

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        short = torch.full(y.shape, torch.inf, device=x.device)
        none = torch.zeros_like(y)
        return {"point": x, "iteration": none, "stepped": none > 0, "short": short}

    def step(
        self, network: Network | Bare, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluates the row's point. A point across the boundary is drawn back towards the image,
        to be evaluated again; any other is followed by a step."""
        x, y, point, stepped = state["x"], state["y"], state["point"], state["stepped"]
        classes = torch.stack([state["target"], y], 1)
        ahead = lambda logits: -logits.gather(1, classes).diff(dim=1)[:, 0]  # noqa: E731
        logits, difference, gradient = network.gradient(point, ahead)
        excess = (self.ball.size(point - x) / self.ball.eps - 1).view(-1)
        may_fall = network.may_fall(logits, y) & (excess <= 0) & stepped
        over = (state["iteration"] == self.iterations) & stepped
        across = (margins(logits, y) <= 0) & stepped
        nearer = torch.minimum(state["short"], excess)
        state["short"] = torch.where(across, nearer, state["short"])
        after = torch.where(
            across.view(-1, 1, 1, 1),
            x + self.backward * (point - x),
            self._advance(x, point, difference, gradient),
        )
        state["point"], state["stepped"] = after, ~across
        state["iteration"] = state["iteration"] + ~across
        return point, may_fall, over

    def hopeless(self, state: dict[str, Tensor], patience: float) -> Tensor:
        short, iteration = state["short"], state["iteration"]
        late = iteration > UNCROSSED * patience * self.iterations
        far = (short > patience * FAR / iteration.clamp(min=1)) & (iteration >= SIXTH)
        uncrossed = short.isinf()
        lost = (uncrossed & late) | (far & ~uncrossed)
        return by_doublings(state, self.iterations, patience) | lost

    def _advance(self, x: Tensor, point: Tensor, difference: Tensor, gradient: Tensor) -> Tensor:
        """Onto the hyperplane where the linearised difference is 0, with a bias towards x."""
        at_image = difference + (gradient * (x - point)).flatten(1).sum(1)
        both = onto_hyperplane(
            torch.cat([point, x]), torch.cat([gradient] * 2), torch.cat([difference, at_image]),
            self.ball.norm,
        )  # fmt: skip
        size = self.ball.size(both).clamp_(min=1e-8)
        (here, there), (own, other) = both.chunk(2), size.chunk(2)
        bias = (own / (own + other)).clamp_(max=self.most_bias)
        mixed = (1 - bias) * (point + self.overshoot * here) + bias * (x + self.overshoot * there)
        return mixed.clamp_(0, 1)


def onto_hyperplane(t: Tensor, w: Tensor, c: Tensor, norm: str) -> Tensor:
    """The smallest d [B, ...] with t + d in [0, 1] and w . d = -c [B]; the nearest to it that the
    box allows, where it allows none.

    In L1 the entries of largest |w| move, each to the end of the box before the next one begins.
    Else each entry moves against w by min(l * speed, room), where speed is 1 for Linf, |w| for L2.
    What this gains, sum |w| min(l * speed, room), is concave and piecewise linear in l: Newton's
    method from 0 never overshoots and ends exactly.
    """
    shape, (t, w) = t.shape, (t.flatten(1), w.flatten(1))
    direction = -torch.sign(w) * torch.sign(c)[:, None]
    room = torch.where(direction > 0, 1 - t, t)
    weight, c = w.abs(), c.abs()
    if norm == "l1":
        return (direction * _largest_first(room, weight, c)).view(shape)
    lengths = torch.zeros_like(c)
    out = (weight * room).sum(1) <= c  # of the box's reach: to its corner
    left = (~out).nonzero()[:, 0]
    own = [room[left], weight[left], c[left]]
    for _ in range(NEWTON):
        if not len(left):
            break
        space, gain, asked = own
        speed = torch.ones_like(gain) if norm == "linf" else gain
        way = lengths[left, None] * speed
        lacking = asked - (gain * torch.minimum(way, space)).sum(1)
        slope = (gain * speed * (way < space)).sum(1)
        goes_on = (lacking > 1e-6 * asked) & (slope > 0)
        lengths[left] += (lacking.clamp_(min=0) / slope.clamp_(min=1e-30)) * goes_on
        if not goes_on.all():
            left, own = left[goes_on], [part[goes_on] for part in own]
    speed = torch.ones_like(weight) if norm == "linf" else weight
    way = torch.where(out[:, None], room, torch.minimum(lengths[:, None] * speed, room))
    return (direction * way).view(shape)


def _largest_first(room: Tensor, weight: Tensor, asked: Tensor) -> Tensor:
    """How far each entry [B, n] moves, so that weight times way sums to `asked` [B]: those of
    largest weight as far as there is room, the last of them as far as is needed."""
    ranked, order = weight.sort(dim=1, descending=True)
    space = room.gather(1, order)
    before = (ranked * space).cumsum(1) - ranked * space
    way = (asked[:, None] - before) / ranked.clamp_min(1e-30)
    way = torch.minimum(way.clamp_(min=0), space) * (ranked > 0)
    return torch.zeros_like(way).scatter_(1, order, way)
