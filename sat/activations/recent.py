"""Smooth functions beside those of Xie et al., most of them proposed since 2020.

What `functions` says of values, precision and memory holds here. Each saves its input alone, and
can be differentiated twice.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.activations.functions import ParametricSoftplus, check_scale


def _root(x: Tensor, square: float) -> Tensor:
    """sqrt(x^2 + square), which does not overflow where x^2 would."""
    return torch.hypot(x, x.new_full((), math.sqrt(square)))


class _Squareplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, b: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.b = b
        # (x + root) / 2 would lose all digits of a large negative x
        return x.relu() + (b / 2) / (_root(x, b) + x.abs())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.addcmul(grad, grad, x / _root(x, ctx.b)) / 2, None


class Squareplus(nn.Module):
    """(x + sqrt(x^2 + b)) / 2; its derivative is (1 + x / sqrt(x^2 + b)) / 2.

    Softplus without exponentials, of which b = 4 has the same curvature at 0 (Barron, 2112.11687).
    """

    def __init__(self, b: float = 4.0, inplace: bool = False):
        super().__init__()
        self.b = check_scale("b", b)

    def forward(self, x: Tensor) -> Tensor:
        return _Squareplus.apply(x, self.b)


class _SmeLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.beta = beta
        bent = (x + beta).clamp(0, 2 * beta).square() / (4 * beta)
        return torch.where(x < beta, bent, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ((x + ctx.beta) / (2 * ctx.beta)).clamp(0, 1) * grad, None


class SmeLU(nn.Module):
    """0 below -beta, x above beta, and the parabola (x + beta)^2 / (4 beta) between (Shamir, Lin
    and Coviello, 2010.09931): the cheapest function with a continuous derivative."""

    def __init__(self, beta: float = 1.0, inplace: bool = False):
        super().__init__()
        self.beta = check_scale("beta", beta)

    def forward(self, x: Tensor) -> Tensor:
        return _SmeLU.apply(x, self.beta)


class _BentIdentity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # (root - 1) / 2 would lose all digits of a small x
        return torch.addcmul(x, x, x / (_root(x, 1) + 1), value=0.5)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.addcmul(grad, grad, x / _root(x, 1), value=0.5)


class BentIdentity(nn.Module):
    """(sqrt(x^2 + 1) - 1) / 2 + x, a function of low curvature that does not saturate; its
    derivative runs from 1/2 to 3/2 (in adversarial training: Singla et al., ICCV 2021)."""

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return _BentIdentity.apply(x)


class _CappedSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, alpha: float, cap: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        # Where the softplus reaches the cap: log(e^(alpha cap) - 1) / alpha, without overflow.
        ctx.end = cap + math.log(-math.expm1(-alpha * cap)) / alpha
        return F.softplus(x, alpha, 40.0).clamp(max=cap)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        slope = torch.ops.aten.softplus_backward(grad, x, ctx.alpha, 40.0)
        return torch.where(x < ctx.end, slope, 0), None, None


class CappedSoftplus(ParametricSoftplus):
    """min(log(1 + e^(alpha x)) / alpha, cap), RCR-AF (Yu et al., 2507.22446).

    The cap is a kink: no gradient comes back from beyond it, which can mask it from attacks. Its
    default is that of ReLU6.
    """

    def __init__(self, alpha: float = 10.0, cap: float = 6.0, inplace: bool = False):
        super().__init__(alpha)
        self.cap = check_scale("cap", cap)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return _CappedSoftplus.apply(x, self.beta, self.cap)
