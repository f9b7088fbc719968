"""Adversarial training for free (Shafahi et al. 2019, arXiv 1904.12843)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sat.arguments import MOST_STEPS, Size, check_ball, check_choices, check_range, check_unit
from sat.attacks.ball import Ball
from sat.attacks.base import Attack, row_rng
from sat.rng import RowRng


@dataclass(eq=False)
class Free(Attack):
    """Trains on each batch `replays` times; each update's own gradient moves the perturbation too.

    A place of the batch keeps its perturbation from one batch to the next; it begins at 0. So a
    step costs 3 units a replay and no more, and an epoch, a pass over the images, `replays` times
    as many updates as another attack's: it is published with that many times fewer epochs. `eps`
    and `step` are in 1/255; `step: auto` is eps. It ascends what the training minimises, with the
    batch's own statistics.
    """

    eps: Size = 8.0
    replays: int = 8
    step: float | str = "auto"
    norm: Literal["linf", "l2"] = "linf"

    batch_norm: ClassVar[str] = "train"
    loss: ClassVar[str] = "ce"

    def __post_init__(self) -> None:
        check_choices(self)
        self.eps = check_ball(self.eps, self.norm)
        if self.step != "auto":
            self.step = check_unit("step", self.step)
            if self.step == 0:
                raise ValueError("step=0: moves nothing; write step=auto, or a size in 1/255")
        if self.norm == "linf":
            check_range("step", self._step_size, 0, 255, "is farther than from black to white")
        check_range("replays", self.replays, 1, MOST_STEPS, "is how often a batch is taken")
        self._delta: Tensor | None = None  # [batch, C, H, W]
        self._next: Tensor | None = None  # after this replay

    @property
    def _step_size(self) -> float:
        """The size of a step in 1/255."""
        return float(self.eps if self.step == "auto" else self.step)

    def gradients(self, classes: int) -> int:
        return 0

    @property
    def _ball(self) -> Ball:
        return Ball(float(self.eps) / 255, self.norm)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] in [0, 1] -> x and what its rows keep, in [0, 1]; detached, float32. The
        clean images outside of a training."""
        rows = row_rng(rng, x).rows
        if self._delta is None:
            return x.detach()
        return (x + self._delta.index_select(0, rows)).clamp_(0, 1).detach()

    def settle(self, x: Tensor, batch: int) -> None:
        """Makes room for a batch of so many images like x [B, C, H, W]."""
        if self._delta is None:
            self._delta = x.new_zeros(batch, *x.shape[1:])
        if self._delta.shape != (batch, *x.shape[1:]):
            raise ValueError(
                f"attack.delta: is of {list(self._delta.shape)}, and a batch of"
                f" {[batch, *x.shape[1:]]}; the checkpoint is of another training"
            )
        if self._next is None:
            self._delta = self._delta.to(x.device)
            self._next = self._delta.clone()

    def ascend(self, x: Tensor, gradient: Tensor, rng: RowRng) -> None:
        """Moves what the rows of x keep, by the gradient of their loss at what it made of them."""
        assert self._delta is not None and self._next is not None
        delta, ball = self._delta.index_select(0, rng.rows), self._ball
        free = ((x + delta) >= 0) & ((x + delta) <= 1)  # what [0, 1] has cut has no gradient
        way = ball.steepest(torch.where(free, gradient.nan_to_num(0.0), 0.0))
        moved = delta + self._step_size / 255 * way
        if self.norm == "linf":
            moved = moved.clamp(-ball.eps, ball.eps)
        else:
            moved = moved * (ball.eps / ball.size(moved)).clamp(max=1)
        self._next.index_copy_(0, rng.rows, moved)

    def learn(self, sums: Tensor, broken: Tensor) -> None:
        """Takes over what the replay has moved, unless its update was skipped."""
        assert self._delta is not None and self._next is not None
        self._delta.copy_(torch.where(broken, self._delta, self._next))
        self._next.copy_(self._delta)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._delta is None else {"delta": self._delta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for what are no perturbations."""
        delta = state.get("delta")
        if not isinstance(delta, Tensor | None) or (
            delta is not None and (delta.ndim != 4 or not delta.isfinite().all())
        ):
            raise ValueError("attack.delta are no perturbations of images")
        self._delta = None if delta is None else delta.float().clone()
        self._next = None
