"""Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AWP:
    """Moves each weight matrix and filter bank w up the loss by `gamma` times its own norm: w +
    gamma |w| g / |g|, with g the gradient of the whole loss; biases and scales stay. It begins
    after `warmup_epochs`. It costs the loss's forwards and gradients once more, in warm-up too.

    The authors' step of a copy with a learning rate gives the same g / |g|.
    """

    gamma: float = 0.01
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(
                f"gamma={self.gamma}: must be above 0 and finite; for no perturbation:"
                " weight_attack=none"
            )
        if not 0 <= self.warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: must be finite, 0 or above")

    def perturb(self, model: nn.Module, loss: Callable[[], None], epoch: Tensor) -> None:
        """Adds the perturbation to the weights that `loss` reaches."""
        loss()
        moved = [
            (weight.detach(), weight.grad)
            for name, weight in model.named_parameters()
            if "weight" in name and weight.ndim > 1 and weight.grad is not None
        ]
        weights, ascent = map(list, zip(*moved, strict=True))
        sizes = torch._foreach_norm(weights)
        torch._foreach_mul_(sizes, self.gamma)
        torch._foreach_mul_(sizes, (epoch >= self.warmup_epochs - 1e-4).float())
        lengths = torch._foreach_norm(ascent)
        torch._foreach_add_(lengths, 1e-20)
        torch._foreach_div_(sizes, lengths)
        torch._foreach_mul_(ascent, sizes)
        torch._foreach_add_(weights, ascent)
