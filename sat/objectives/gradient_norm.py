"""Robustness without an attack: a small gradient of the images (Rodriguez-Munoz et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import MOST_EPOCHS, check_ball, check_choices, check_range
from sat.attacks.ball import Norm
from sat.objectives.base import Objective, check_beta, check_smoothing, check_term, input_gradient

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}  # norms of the gradient, by the ball's


@dataclass(frozen=True)
class GradientNorm(Objective):
    """clean CE + beta a eps |gradient of CE by the image|, means over clean images, with the norm
    that is dual to the ball's (L1 for linf), eps in 1/255, and `a` rising from 0 to 1
    over `warmup_epochs` (arXiv 2409.20139; the norm is that of pixels in [0, 1]).

    It takes no attack, and differentiates the gradient, which no compiled network can: a forward,
    an input gradient, and the gradient of both.
    """

    eps: float | str = 8.0
    norm: Norm = "linf"
    clean: float = 0.8
    beta: float = 1.2
    warmup_epochs: float = 5.0
    label_smoothing: float = 0.0

    attacked: ClassVar[bool] = False
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        check_beta(self.beta)
        check_smoothing(self.label_smoothing)
        check_term("clean", self.clean)
        check_range("warmup_epochs", self.warmup_epochs, 0, MOST_EPOCHS, "is a number of epochs")

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the images, of which x_adv is no part."""
        smoothing = self.label_smoothing
        entropy = lambda z: F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)  # noqa: E731
        logits, gradient = input_gradient(model, x, entropy)
        size = gradient.flatten(1).norm(p=DUAL[self.norm], dim=1).mean()
        strength = self.beta * float(self.eps) / 255
        if epoch is not None and self.warmup_epochs:
            size = size * (epoch / self.warmup_epochs).clamp(max=1)
        return self.clean * entropy(logits).mean() + strength * size, logits
