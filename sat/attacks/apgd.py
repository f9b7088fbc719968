"""Auto-PGD (Croce and Hein 2020): momentum, and a step size that halves when progress stalls. In L1
it takes sparse steps (Croce and Hein 2021, "Mind the box")."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sat.arguments import check_ball, check_choices, check_steps
from sat.attacks.alone import Bare
from sat.attacks.ball import SPARSE, Ball, Norm
from sat.attacks.base import Mode, check_warmup, frozen, risen, row_rng
from sat.attacks.losses import Aim, LossName, TargetedLoss, aimed, ce, check_aim, one_label
from sat.attacks.network import Network, constant
from sat.attacks.patience import by_halvings
from sat.rng import RowRng


@dataclass(frozen=True)
class APGD:
    """Ascends `loss` for `steps` steps, and gives the point of the highest loss; that of the last
    step is looked at too, so that it takes one forward more than PGD. `eps` is in 1/255.

    `start` is where it begins: `uniform` at a random point at distance eps, `none` at the image, as
    trainings with few steps do (Croce and Hein 2022). In a training, eps rises from 0 during the
    first `eps_warmup` of it, a share from 0 to 1.
    """

    eps: float | str = 8.0
    steps: int = 10
    norm: Norm = "linf"
    batch_norm: Mode = "eval"
    loss: LossName = "auto"
    start: Literal["uniform", "none"] = "uniform"
    eps_warmup: float = 0.0
    label_smoothing: float = 0.0
    target: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_aim(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        check_steps("steps", self.steps)
        check_warmup("eps_warmup", self.eps_warmup)
        if self.start == "none" and self.loss == "kl":
            raise ValueError(
                "start=none: the loss kl has no gradient at the clean images; write start=uniform"
            )

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
        ball = Ball(float(self.eps) / 255 * risen(progress, self.eps_warmup), self.norm)
        return ascended(self, ([ball], None), model, x, y, row_rng(rng, x))


Among = tuple[Sequence[Ball], Tensor | None]  # balls, and the number [1] of that which is chosen


class Ascending(Aim, Protocol):
    """What APGD asks of the attack that it is."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_norm(self) -> str: ...
    @property
    def start(self) -> str: ...


def ascended(
    attack: Ascending, among: Among, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng
) -> Tensor:
    """The points of highest loss in one of several balls.

    All are searched in lock-step, each as if the network had been asked at its own point, which is
    true of the chosen one; so the choice costs no second pass, and the host learns nothing of it.
    """
    (balls, chosen), label = among, one_label(y)
    searches = [search_in(ball, attack.steps, attack.start == "uniform") for ball in balls]
    with frozen(model, attack.batch_norm):
        network, (loss, compared) = Bare(model), aimed(attack, model, x, y)
        states = [{"x": x, "y": label, **search.begin(x, label, label, rng)} for search in searches]
        for _ in range(attack.steps):
            point = _of_chosen(states, "point", chosen)
            _, losses, gradient = network.gradient(point, lambda logits: loss(logits, compared))
            for search, state in zip(searches, states, strict=True):
                search.advance(state, losses, gradient)
        losses = loss(network.logits(_of_chosen(states, "point", chosen))[0], compared)
        for state in states:
            APGDSearch.note(state, losses)
    return _of_chosen(states, "best", chosen)


def _of_chosen(states: Sequence[dict[str, Tensor]], key: str, chosen: Tensor | None) -> Tensor:
    if chosen is None:
        return states[0][key]
    return torch.stack([state[key] for state in states]).index_select(0, chosen)[0]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return ce(logits, y)


def search_in(ball: Ball, iterations: int, random: bool) -> "APGDSearch":
    """A search whose loss somebody else asks for; at a random point first, or at the image."""
    kind = SparseAPGDSearch if ball.norm == "l1" else APGDSearch
    return kind(ball, cross_entropy, iterations=iterations, random=random)


@dataclass(frozen=True)
class APGDSearch:
    """Ascends `loss` from a random point, or from the image; `rounds` targets, if the loss has
    targets."""

    ball: Ball
    loss: TargetedLoss
    rounds: int = 1
    iterations: int = 100
    momentum: float = 0.25
    rising: float = 0.75  # a window with a smaller share of rises halves the step
    random: bool = True

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
        point = self.ball.surface(x, rng) if self.random else x.detach()
        zero, size = torch.zeros_like(x), x.new_ones(len(x), 1, 1, 1)
        low = torch.full(y.shape, -torch.inf, device=x.device)
        return {
            "point": point, "before": point, "best": point, "best_gradient": zero,
            "short": -low, "loss": low, "best_loss": low, "checked_loss": low,
            "iteration": torch.zeros_like(y), "rises": torch.zeros_like(y), "halved": y == y,
            "step": size * (2 * self.ball.eps),
        }  # fmt: skip

    def step(self, network: Network | Bare, state: dict[str, Tensor]):
        """Evaluates the row's point, and moves on."""
        point, y, target = state["point"], state["y"], state["target"]
        logits, loss, gradient = network.gradient(point, lambda z: self.loss(z, y, target))
        self.advance(state, loss, gradient)
        if self.rounds > 1:  # targeted: the label and the target are level at 0
            state["short"] = -state["best_loss"]
        over = state["iteration"] > self.iterations
        return point, network.may_fall(logits, y), over

    def advance(self, state: dict[str, Tensor], loss: Tensor, gradient: Tensor) -> None:
        """Moves on from the row's point, whose loss [B] and gradient these are."""
        first = state["iteration"] == 0
        rose = loss > state["loss"]
        if self.windows[1]:  # a window of one step: the first of all counts as a rise, as published
            rose |= state["iteration"] == 1
        state["rises"] += rose & ~first
        self.note(state, loss, gradient)
        state["checked_loss"] = torch.where(first, loss, state["checked_loss"])
        state["loss"] = loss
        here, gradient = self._check(state, gradient)
        self._move(state, here, gradient, first)
        state["iteration"] = state["iteration"] + 1

    @staticmethod
    def note(state: dict[str, Tensor], loss: Tensor, gradient: Tensor | None = None) -> None:
        """Keeps the row's point where its loss is the highest so far."""
        better = loss > state["best_loss"]
        state["best"] = _where(better, state["point"], state["best"])
        state["best_loss"] = torch.where(better, loss, state["best_loss"])
        if gradient is not None:
            state["best_gradient"] = _where(better, gradient, state["best_gradient"])

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


@dataclass(frozen=True)
class SparseAPGDSearch(APGDSearch):
    """APGD in L1: steps of the sign of the gradient's largest entries, without momentum.

    At the end of a window they become as many as two thirds of what the best point has changed; the
    step is eps again where that has become fewer, and goes on from the best point, else it shrinks.
    """

    share: float = SPARSE  # of the entries at first

    @cached_property
    def windows(self) -> tuple[int, ...]:
        length = max(int(0.04 * self.iterations), 1)
        return (0, *(length * (k % length == 0) for k in range(1, self.iterations + 1)))

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        state, count = super().begin(x, y, target, rng), x[0].numel()
        entries = torch.full_like(y, count - int((1 - self.share) * count))
        changed = torch.full_like(y, count)
        return {**state, "step": state["step"] / 2, "entries": entries, "changed": changed}

    def _check(self, state: dict[str, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor]:
        eps = self.ball.eps
        ends = constant(self.windows, gradient.device)[state["iteration"]] > 0
        changed = (state["best"] != state["x"]).flatten(1).sum(1)
        fewer = ends & (changed < 0.95 * state["changed"])
        shrunk = (state["step"] / 1.5).clamp(min=eps / 10)
        anew = _where(fewer, torch.ones_like(shrunk) * eps, shrunk)
        state["step"] = _where(ends, anew, state["step"])
        entries = ((2 * changed + 2) // 3).clamp(min=1)
        state["entries"] = torch.where(ends, entries, state["entries"])
        state["changed"] = torch.where(ends, changed, state["changed"])
        here = _where(fewer, state["best"], state["point"])
        return here, _where(fewer, state["best_gradient"], gradient)

    def _move(self, state: dict[str, Tensor], here: Tensor, gradient: Tensor, first: Tensor):
        way = self.ball.steepest(gradient, state["entries"])
        state["before"] = here
        state["point"] = self.ball.project(here + state["step"] * way, state["x"])


def _where(rows: Tensor, yes: Tensor, no: Tensor | float) -> Tensor:
    return torch.where(rows.view(-1, 1, 1, 1), yes, no)
