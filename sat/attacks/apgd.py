"""Auto-PGD (Croce and Hein 2020): momentum, and a step size that halves when progress stalls."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sat.arguments import check_ball, check_choices
from sat.attacks.alone import Bare
from sat.attacks.base import Ball, Mode, Norm, frozen, row_rng
from sat.attacks.losses import LossName, TargetedLoss, ce, named, one_label, reference
from sat.attacks.network import Network, constant
from sat.attacks.patience import by_halvings
from sat.rng import RowRng


@dataclass(frozen=True)
class APGD:
    """Ascends `loss` for `steps` steps from a random point at distance eps, and gives the point of
    the highest loss; that of the last step is looked at too, so that it takes one gradient more
    than PGD. `eps` is in 1/255."""

    eps: float | str = 8.0
    steps: int = 10
    norm: Norm = "linf"
    batch_norm: Mode = "eval"
    loss: LossName = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1; for no attack: attack=none")

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
        ball, loss, label = Ball(float(self.eps) / 255, self.norm), named(self.loss), one_label(y)
        with frozen(model, self.batch_norm):
            network, target = Bare(model), reference(loss, model, x, y)
            search = APGDSearch(ball, lambda z, y, _: loss(z, target), iterations=self.steps)
            state = {"x": x, "y": label, "target": label, **search.begin(x, label, label, rng)}
            for _ in range(self.steps + 1):
                search.step(network, state)
        return state["best"]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return ce(logits, y)


@dataclass(frozen=True)
class APGDSearch:
    """Ascends `loss` from a random point; `rounds` targets, if the loss has targets."""

    ball: Ball
    loss: TargetedLoss
    rounds: int = 1
    iterations: int = 100
    momentum: float = 0.25
    rising: float = 0.75  # a window with a smaller share of rises halves the step

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Gives for each iteration the length of the window that it ends, or 0."""
        share = lambda part: max(int(part * self.iterations), 1)  # noqa: E731
        length, end, ends = share(0.22), 0, [0] * (self.iterations + 1)
        while (end := end + length) <= self.iterations:
            ends[end] = length
            length = max(length - share(0.03), share(0.06))
        return tuple(ends)

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        point, zero = self.ball.surface(x, rng), torch.zeros_like(x)
        low = torch.full(y.shape, -torch.inf, device=x.device)
        return {
            "point": point, "before": point, "best": point, "best_gradient": zero,
            "short": -low, "loss": low, "best_loss": low, "checked_loss": low,
            "iteration": torch.zeros_like(y), "rises": torch.zeros_like(y), "halved": y == y,
            "step": torch.full((len(x), 1, 1, 1), 2 * self.ball.eps, device=x.device),
        }  # fmt: skip

    def step(self, network: Network | Bare, state: dict[str, Tensor]):
        """Evaluates the row's point, and moves on."""
        point, y, target = state["point"], state["y"], state["target"]
        logits, loss, gradient = network.gradient(point, lambda z: self.loss(z, y, target))
        first = state["iteration"] == 0
        state["rises"] += (loss > state["loss"]) & ~first
        better = loss > state["best_loss"]
        state["best"] = _where(better, point, state["best"])
        state["best_gradient"] = _where(better, gradient, state["best_gradient"])
        state["best_loss"] = torch.where(better, loss, state["best_loss"])
        state["checked_loss"] = torch.where(first, loss, state["checked_loss"])
        state["loss"] = loss
        if self.rounds > 1:  # targeted: the label and the target are level at 0
            state["short"] = -state["best_loss"]
        here, gradient = self._check(state, gradient)
        self._move(state, here, gradient, first)
        state["iteration"] = state["iteration"] + 1
        over = state["iteration"] > self.iterations
        return point, network.may_fall(logits, y), over

    def hopeless(self, state: dict[str, Tensor], patience: float) -> Tensor:
        return by_halvings(state, self.windows, patience)

    def _check(self, state: dict[str, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Halves the step of rows whose window ended without progress; they go on from their best
        point. Returns the point and the gradient to go on from."""
        window = constant(self.windows, gradient.device)[state["iteration"]]
        ends = window > 0
        stalled = state["rises"] <= self.rising * window
        stalled |= ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
        stalled &= ends
        state["halved"] = torch.where(ends, stalled, state["halved"])
        state["checked_loss"] = torch.where(ends, state["best_loss"], state["checked_loss"])
        state["rises"] = torch.where(ends, 0, state["rises"])
        state["step"] = _where(stalled, state["step"] / 2, state["step"])
        here = _where(stalled, state["best"], state["point"])
        return here, _where(stalled, state["best_gradient"], gradient)

    def _move(self, state: dict[str, Tensor], here: Tensor, gradient: Tensor, first: Tensor):
        ball, x = self.ball, state["x"]
        ahead = ball.project(here + state["step"] * ball.steepest(gradient), x)
        momentum = _where(first, torch.zeros_like(state["step"]), self.momentum)
        drift = (here - state["before"]) - (ahead - here)
        state["before"], state["point"] = here, ball.project(ahead + momentum * drift, x)


def _where(rows: Tensor, yes: Tensor, no: Tensor | float) -> Tensor:
    return torch.where(rows.view(-1, 1, 1, 1), yes, no)
