"""Whether an activation bends: what a loss of a gradient has to go by."""

import torch
from torch import nn

from sat.activations.surrogate import phase, phased


def is_flat(activation: nn.Module) -> bool:
    """Whether its second derivative is 0 wherever there is one, as ReLU's, in the update of a
    training."""
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).requires_grad_()
    with phase(phased(activation), "outer"):
        (slope,) = torch.autograd.grad(activation.double()(x).sum(), x, create_graph=True)
    if not slope.requires_grad:
        return True
    (second,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
    return second is None or not second.any()
