"""Gradient alignment (Andriushchenko and Flammarion 2020, arXiv 2007.02617)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_ball, check_range
from sat.attacks import base
from sat.attacks.losses import ce
from sat.objectives.base import Regulariser, input_gradient
from sat.rng import RowRng

LEAST = 1e-22  # of a gradient's entries; the squares of smaller ones are 0 in float32


@dataclass(frozen=True)
class GradAlign(Regulariser):
    """Adds `weight` times the mean of 1 - cos(g(x), g(x + u)), where g is the gradient of the
    cross-entropy by the image and u uniform within +-eps; only the second is differentiated. Then
    the loss stays linear within the ball, and training with one step does not collapse. The mean is
    over images where both gradients are above 0, as published, of each part of a batch by itself;
    of none it is 0.

    Published weights grow with eps: exp(eps ln(10) / 8 + ln(0.02)), that is 0.063 at 4/255, 0.2 at
    8/255 and 2 at 16/255. `eps` is in 1/255. Its two forwards are in training mode and move the
    running statistics; the double backward runs uncompiled.
    """

    weight: float = 0.2
    eps: float | str = 8.0

    second_order: ClassVar[bool] = True
    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        check_weight(self.weight)
        object.__setattr__(self, "eps", check_noise(self.eps))

    @property
    def strength(self) -> float:
        return self.weight

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        rng: RowRng,
        epoch: Tensor | None = None,
    ) -> Tensor:
        """The mean of 1 - cos over the batch, []."""
        noise = float(self.eps) / 255 * (2 * rng.uniform("gradalign", *x.shape[1:]) - 1)
        here = base.input_gradient(model, x, y)
        _, there = input_gradient(model, x + noise, lambda logits: ce(logits, y))
        here, there = _scaled(here.flatten(1)), _scaled(there.flatten(1))
        seen = here.any(1) & there.any(1)
        return (1 - F.cosine_similarity(here, there)).where(seen, 0).sum() / seen.sum().clamp(min=1)


def _scaled(gradient: Tensor) -> Tensor:
    """Gradients [B, N] with a largest entry of 1 each, so that no norm is lost; 0 of those that
    are as good as 0."""
    largest = gradient.detach().abs().amax(1, keepdim=True)
    return (gradient / largest.clamp(min=LEAST)).masked_fill(largest < LEAST, 0)


def check_weight(weight: float) -> None:
    why = "float32 keeps seven digits of a sum; for no regulariser: regulariser=none"
    check_range("weight", weight, 1e-6, 1e6, why)


def check_noise(eps: float | str) -> float:
    """The half width of a regulariser's noise, in 1/255."""
    size = check_ball(eps, "linf")
    if not size:
        raise ValueError(f"eps={eps}: there is nothing to be linear in; write regulariser=none")
    return size
