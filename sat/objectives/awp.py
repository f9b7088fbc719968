"""Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sat.arguments import MOST_EPOCHS, check_range


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
        why = "must be above 0: a share of each weight's norm (for none: weight_attack=none)"
        check_range("gamma", self.gamma, 1e-6, 1, why)
        check_range("warmup_epochs", self.warmup_epochs, 0, MOST_EPOCHS, "is a number of epochs")

    def perturb(self, model: nn.Module, loss: Callable[[], None], epoch: Tensor) -> None:
        """Adds the perturbation to the weights that `loss` reaches."""
        loss()
        moved = [
            (weight.detach(), weight.grad)
            for name, weight in model.named_parameters()
            if "weight" in name and weight.ndim > 1 and weight.grad is not None
        ]
        if not moved:
            return
        weights, ascent = map(list, zip(*moved, strict=True))
        sizes = torch._foreach_norm(weights)
        torch._foreach_mul_(sizes, self.gamma)
        lengths = torch._foreach_norm(ascent)
        torch._foreach_add_(lengths, 1e-20)
        torch._foreach_div_(sizes, lengths)
        torch._foreach_mul_(ascent, sizes)
        begun = epoch >= self.warmup_epochs - 1e-4
        torch._foreach_add_(weights, [torch.where(begun, each, 0.0) for each in ascent])
