"""Auto-PGD (Croce and Hein 2020): momentum, and a step size that halves when progress stalls. In L1
it takes sparse steps (Croce and Hein 2021, "Mind the box")."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sat.arguments import Size, check_ball, check_choices, check_steps
from sat.attacks.ball import SPARSE, Ball, Norm, onto_l1
from sat.attacks.base import Attack, Mode, check_warmup, frozen, risen, row_rng
from sat.attacks.losses import (
    Aim,
    LossName,
    TargetedLoss,
    aimed,
    ce,
    check_aim,
    one_label,
    targeted_dlr,
)
from sat.attacks.network import Bare, Network, constant
from sat.attacks.outcomes import of_logits
from sat.attacks.patience import by_halvings
from sat.rng import RowRng

WIDE = 0.2  # of an image's entries share the first step of a measurement in L1


@dataclass(frozen=True)
class APGD(Attack):
    """Ascends `loss` for `steps` steps, and gives the point of the highest loss; that of the last
    step is looked at too, so that it takes one forward more than PGD. In a measurement it gives a
    misclassified one where it saw any, as published. `eps` is in 1/255.

    `start` is where it begins: `uniform` at a random point at distance eps, `none` at the image, as
    trainings with few steps do (Croce and Hein 2022). In a training, eps rises from 0 during the
    first `eps_warmup` of it, a share from 0 to 1, and a first step in L1 takes 5 % of the entries,
    where it takes 20 % in a measurement, as both are published.
    """

    eps: Size = 8.0
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

    @property
    def random(self) -> bool:
        return self.start != "none"

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
        share = WIDE if progress is None else SPARSE
        search = search_in(ball, self.steps, self.start == "uniform", share)
        how = Searches([search], measures=progress is None)
        return ascended(self, how, model, x, y, row_rng(rng, x))[0]


class Ascending(Aim, Protocol):
    """What APGD asks of the attack that it is."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_norm(self) -> str: ...


@dataclass(frozen=True)
class Searches:
    """Searches in several balls, and the number [1] of the one that is `chosen`. Where this
    `measures`, an image that fell on the way has fallen."""

    all: Sequence["APGDSearch"]
    chosen: Tensor | None = None
    measures: bool = False


def ascended(
    attack: Ascending, searches: Searches, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng
) -> tuple[Tensor, Tensor]:
    """The points of highest loss, in a measurement of those where an image fell if there are any;
    and which images [B] stood at every point on the way.

    All are searched in lock-step, each as if the network had been asked at its own point, which is
    true of the chosen one; so the choice costs no second pass, and the host learns nothing of it.
    """
    chosen, label = searches.chosen, one_label(y)
    stood = torch.ones_like(label, dtype=torch.bool)
    with frozen(model, attack.batch_norm):
        network, (loss, compared) = Bare(model), aimed(attack, model, x, y)
        states = [{"x": x, "y": label, **search.begin(x, label, label, rng)}
                  for search in searches.all]  # fmt: skip
        fallen = {"best": x, "best_loss": torch.full(label.shape, -torch.inf, device=x.device)}

        def look(point: Tensor, logits: Tensor, losses: Tensor) -> None:
            right = logits.argmax(1) == label
            if searches.measures:  # where a tie is wrong
                right = of_logits(logits, label).right
                state = {**fallen, "point": point}
                APGDSearch.note(state, losses.where(~right, -torch.inf))
                fallen.update(state)
            stood.logical_and_(right)

        for _ in range(attack.steps):
            point = _of_chosen(states, "point", chosen)
            logits, losses, gradient = network.gradient(point, lambda z: loss(z, compared))
            look(point, logits, losses)
            for search, state in zip(searches.all, states, strict=True):
                search.advance(state, losses, gradient)
        point = _of_chosen(states, "point", chosen)
        logits, _ = network.logits(point)
        losses = loss(logits, compared)
        look(point, logits, losses)
        for state in states:
            APGDSearch.note(state, losses)
    best = _of_chosen(states, "best", chosen)
    return where_rows(fallen["best_loss"] > -torch.inf, fallen["best"], best), stood


def _of_chosen(states: Sequence[dict[str, Tensor]], key: str, chosen: Tensor | None) -> Tensor:
    if chosen is None:
        return states[0][key]
    return torch.stack([state[key] for state in states]).index_select(0, chosen)[0]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return ce(logits, y)


def search_in(ball: Ball, iterations: int, random: bool, share: float) -> "APGDSearch":
    """A search whose loss somebody else asks for; at a random point first, or at the image. In L1
    its first step takes that `share` of the entries."""
    given: dict[str, Any] = {"iterations": iterations, "random": random}
    if ball.norm == "l1":
        return SparseAPGDSearch(ball, cross_entropy, **given, share=share)
    return APGDSearch(ball, cross_entropy, **given)


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
    def evaluations(self) -> int:
        """Points that a round looks at."""
        return self.iterations + 1

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

    def step(
        self, network: Network | Bare, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluates the row's point, and moves on."""
        point, y, target = state["point"], state["y"], state["target"]
        logits, loss, gradient = network.gradient(point, lambda z: self.loss(z, y, target))
        self.advance(state, loss, gradient)
        if self.loss is targeted_dlr:  # the label and the target are level at 0
            state["short"] = -state["best_loss"]
        over = state["iteration"] >= self.evaluations
        return point, network.may_fall(logits, y), over

    def advance(self, state: dict[str, Tensor], loss: Tensor, gradient: Tensor) -> None:
        """Moves on from the row's point, whose loss [B] and gradient these are."""
        first = state["iteration"] == 0
        state["rises"] += (loss > state["loss"]) & ~first
        self.note(state, loss, gradient)
        state["checked_loss"] = torch.where(first, loss, state["checked_loss"])
        # As published, the first step counts as a rise where its loss is above 0, not the start's.
        state["loss"] = torch.where(first, 0.0, loss)
        here, gradient = self._check(state, gradient)
        self._move(state, here, gradient, first)
        state["iteration"] = state["iteration"] + 1

    @staticmethod
    def note(state: dict[str, Tensor], loss: Tensor, gradient: Tensor | None = None) -> None:
        """Keeps the row's point where its loss is the highest so far."""
        better = loss > state["best_loss"]
        state["best"] = where_rows(better, state["point"], state["best"])
        state["best_loss"] = torch.where(better, loss, state["best_loss"])
        if gradient is not None:
            state["best_gradient"] = where_rows(better, gradient, state["best_gradient"])

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
        state["step"] = where_rows(stalled, state["step"] / 2, state["step"])
        here = where_rows(stalled, state["best"], state["point"])
        return here, where_rows(stalled, state["best_gradient"], gradient)

    def _move(
        self, state: dict[str, Tensor], here: Tensor, gradient: Tensor, first: Tensor
    ) -> None:
        ball, x = self.ball, state["x"]
        ahead = ball.project(here + state["step"] * ball.steepest(gradient), x)
        momentum = where_rows(first, torch.zeros_like(state["step"]), self.momentum)
        drift = (here - state["before"]) - (ahead - here)
        state["before"], state["point"] = here, ball.project(ahead + momentum * drift, x)


@dataclass(frozen=True)
class SparseAPGDSearch(APGDSearch):
    """APGD in L1: steps of the sign of the gradient's largest entries, without momentum.

    At the end of a window they become as many as two thirds of what the best point has changed; the
    step is eps again where that has become fewer, and goes on from the best point, else it shrinks.
    """

    share: float = WIDE  # of the entries at first

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
        eps = self.radius(state)
        ends = constant(self.windows, gradient.device)[state["iteration"]] > 0
        changed = (state["best"] != state["x"]).flatten(1).sum(1)
        fewer = ends & (changed < 0.95 * state["changed"])
        shrunk = torch.maximum(state["step"] / 1.5, eps / 10)
        state["step"] = where_rows(ends, where_rows(fewer, eps, shrunk), state["step"])
        state["entries"] = torch.where(ends, two_thirds(changed), state["entries"])
        state["changed"] = torch.where(ends, changed, state["changed"])
        here = where_rows(fewer, state["best"], state["point"])
        return here, where_rows(fewer, state["best_gradient"], gradient)

    def _move(
        self, state: dict[str, Tensor], here: Tensor, gradient: Tensor, first: Tensor
    ) -> None:
        way, x = self.ball.steepest(gradient, state["entries"]), state["x"]
        state["before"] = here
        ahead, eps = here + state["step"] * way, self.radius(state).flatten(1)
        state["point"] = x + onto_l1(ahead - x, x, eps)

    def radius(self, state: dict[str, Tensor]) -> Tensor:
        """How large the ball of each row is [B, 1, 1, 1], as a share of the pixel range."""
        return torch.ones_like(state["step"]) * self.ball.eps


def two_thirds(changed: Tensor) -> Tensor:
    """How many entries the next steps move, where the best point has changed that many [B]."""
    return ((2 * changed + 2) // 3).clamp(min=1)


def where_rows(rows: Tensor, yes: Tensor, no: Tensor | float) -> Tensor:
    return torch.where(rows.view(-1, 1, 1, 1), yes, no)
