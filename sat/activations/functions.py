"""ReLU and its smooth relatives, one class each.

Values and derivatives are those of Xie et al., "Smooth Adversarial Training" (arXiv 2006.14536),
where the function occurs there. Every constructor takes its function's own arguments and lastly
`inplace`, since timm builds `act_layer(inplace=True)`. ReLU, LeakyReLU, ELU and CELU obey it: their
backward pass reads the output alone, so nothing but the output is kept. The others ignore it: their
derivative needs the input, of which torch would save a copy.

Input and output have one shape and one dtype, bf16 and fp16 included. Learnable scalars are
float32 parameters without a second dimension, one set a layer: no weight decay should fall on them.
All can be differentiated twice.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_arguments, check_range


def check_scale(key: str, value: float) -> float:
    """A parameter that scales what goes in or comes out; beyond seven digits, as float32 has them,
    nothing but a line or a step is left."""
    check_range(key, value, 1e-6, 1e6, "must be above 0, and leave a curve in float32")
    return value


def _scalar(value: float, learnable: bool) -> nn.Parameter | nn.Buffer:
    """A buffer where it is fixed: the state dict has the same keys either way."""
    return (nn.Parameter if learnable else nn.Buffer)(torch.tensor(float(value)))


def _total(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of all elements. Image by image first: bf16 summed into float32 is 40 times slower on
    a CPU; but for float16, in which an image's sum may overflow."""
    if x.dtype is torch.float16:
        return x.sum(dtype=dtype)
    return x.sum(tuple(range(1, x.dim()))).sum(dtype=dtype)


def is_differentiated() -> bool:
    """Whether the backward pass that is running will itself be differentiated."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable(
    plain: Callable[..., Tensor], given: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The backward pass of plain(*given) by autograd itself, for whom differentiates it; what needs
    no gradient gets None."""
    wanted = [tensor for tensor in given if tensor.requires_grad]
    found = iter(torch.autograd.grad(plain(*given), wanted, grad, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in given)


class ReLU(nn.ReLU):
    """max(0, x)."""


class LeakyReLU(nn.LeakyReLU):
    """x, or negative_slope * x for x < 0 (Maas et al. 2013)."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__(check_scale("negative_slope", negative_slope), inplace)


class _PReLU(torch.autograd.Function):
    """torch's own takes four times as long on a CPU. Saves x and w."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.leaky_relu(x, w.item())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        if is_differentiated():
            plain = lambda x, w: torch.where(x > 0, x, w.to(x.dtype) * x)  # noqa: E731
            return differentiable(plain, (x, w), grad)
        grad_x = torch.ops.aten.leaky_relu_backward(grad, x, w.item(), False)
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        return grad_x, _total(x.clamp(max=0).mul_(grad), w.dtype).view_as(w)


class PReLU(nn.PReLU):
    """x, or w * x for x < 0, with w learned from `init`, one a layer (He et al., 1502.01852)."""

    def __init__(self, init: float = 0.25, inplace: bool = False):
        check_range("init", init, -1e6, 1e6, "leaves in float32 nothing of the other half")
        super().__init__(1, init)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # one pass, where the kernel is a call
            exact = x.to(torch.promote_types(x.dtype, self.weight.dtype))
            # 1 where x > 0, else 0; a comparison would be kept for the backward, as a mask of
            # bytes, and those are slow on a CPU
            above = (exact.detach() * 1e38).clamp(0, 1)
            return (exact * (self.weight + (1 - self.weight) * above)).to(x.dtype)
        if x.is_cpu:
            return _PReLU.apply(x, self.weight)
        return F.prelu(x, self.weight.to(x.dtype))  # the kernel refuses mixed precision


class ParametricSoftplus(nn.Softplus):
    """log(1 + e^(alpha x)) / alpha; its derivative is sigma(alpha x)."""

    def __init__(self, alpha: float = 10.0, inplace: bool = False):
        # Above the threshold the kernel returns x: at 40 that is exact in float64 (e^-40 = 4e-18),
        # at torch's 20 it is off by 2e-9, and e^40 still fits in a float32.
        super().__init__(check_scale("alpha", alpha), threshold=40.0)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:  # counted, not computed: autocast does not know this device
            return super().forward(x)
        # The kernel computes in float32 by itself; CUDA's autocast would have it keep a float32
        # copy of the input and return float32: twice the memory.
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class Softplus(ParametricSoftplus):
    """log(1 + e^x)."""

    def __init__(self, inplace: bool = False):
        super().__init__(1.0)


class SiLU(nn.SiLU):
    """x sigma(x), also known as Swish: the paper's final choice."""

    def __init__(self, inplace: bool = False):
        super().__init__()


class GELU(nn.GELU):
    """x Phi(x); "tanh" is the approximation that the paper's code uses (Hendrycks and Gimpel)."""

    def __init__(self, approximate: Literal["none", "tanh"] = "none", inplace: bool = False):
        check_arguments(GELU.__init__, {"approximate": approximate})
        super().__init__(approximate)

    def forward(self, x: Tensor) -> Tensor:
        if self.approximate == "none" or not torch.compiler.is_compiling():
            return super().forward(x)
        # (1 + tanh u) / 2 = sigma(2u): an exponential in place of a tanh
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        u = math.sqrt(2 / math.pi) * exact * (1 + 0.044715 * exact.square())
        return (exact * (2 * u).sigmoid()).to(x.dtype)


class _Mish(torch.autograd.Function):
    """Mish by tanh(log(1 + e^x)) = n / (n + 2) with n = 2 e^x + e^2x: one exponential in place of
    the three functions of torch's kernel, which in bf16 takes twice as long on a CPU, and errs half
    as much (0.0039 in the derivative, where this has 0.0082). Saves x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        e = x.clamp(max=20).exp_()  # beyond, the quotient is 1
        n = (2 * e).addcmul_(e, e)
        return n.div_(torch.add(n, 2, out=e)).mul_(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor | None:
        (x,) = ctx.saved_tensors
        if is_differentiated():
            return differentiable(F.mish, (x,), grad)[0]
        low = x.clamp(max=20)
        e = low.exp()
        n = (2 * e).addcmul_(e, e)
        m = n + 2  # df/dx = n / m + 4 x (n - e) / m^2
        small = torch.sub(n, e, out=e).mul_(low).div_(m)
        return n.div_(m).addcdiv_(small, m, value=4).mul_(grad)


class Mish(nn.Mish):
    """x tanh(log(1 + e^x)) (Misra, 1908.08681)."""

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            e = exact.clamp(max=20).exp()
            n = e * (e + 2)
            return (x * (n / (n + 2))).to(x.dtype)
        if x.is_cpu and x.dtype is torch.bfloat16:
            return _Mish.apply(x)
        return super().forward(x)


class ELU(nn.ELU):
    """x, or alpha (e^x - 1) for x < 0: smooth at alpha = 1 only, else f'(0-) = alpha is a kink."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(check_scale("alpha", alpha), inplace)


class CELU(nn.CELU):
    """x, or alpha (e^(x / alpha) - 1) for x < 0: smooth at every alpha (Barron, 1704.07483)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(check_scale("alpha", alpha), inplace)


def _scaled(x: Tensor, alpha: Tensor) -> Tensor:
    """u = alpha max(x, 0), stopped where fp16 overflows: log(1 + u) / alpha is then far below one
    rounding step of x."""
    return torch.mul(x, alpha).clamp_(0, torch.finfo(x.dtype).max)


def smoothrelu(x: Tensor, alpha: Tensor | float) -> Tensor:
    """SmoothReLU in operations that autograd knows."""
    u = torch.mul(x, alpha).clamp(0, torch.finfo(x.dtype).max)
    return x.clamp(min=0) - u.log1p() / alpha


class _SmoothReLU(torch.autograd.Function):
    """Saves x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        # Where x < 0, u = 0 and the last clamp makes x 0; not in place, see `_PSSiLU`.
        return _scaled(x, alpha).log1p_().mul_(-1 / alpha).add_(x).clamp_min(0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = ctx.saved_tensors
        if is_differentiated():
            return differentiable(smoothrelu, (x, alpha), grad)
        v = _scaled(x, alpha).add_(1)
        grad_x = torch.addcdiv(grad, grad, v, value=-1)  # df/dx = u / v = 1 - 1/v
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        # -df/dalpha = ((1 - 1/v) - log v) / alpha^2
        opposite = torch.addcmul(grad_x, v.log_(), grad, value=-1)
        return grad_x, _total(opposite, alpha.dtype) / -alpha.square()


class SmoothReLU(nn.Module):
    """x - log(alpha x + 1) / alpha for x >= 0, else 0; f' = alpha x / (1 + alpha x).

    As in Xie et al., alpha = beta^2 with beta learned, one a layer, and `alpha` is its start (400);
    with learnable=False alpha stays as given.
    """

    def __init__(self, alpha: float = 400.0, learnable: bool = True, inplace: bool = False):
        super().__init__()
        self.beta = _scalar(math.sqrt(check_scale("alpha", alpha)), learnable)

    def forward(self, x: Tensor) -> Tensor:
        return _SmoothReLU.apply(x, self.beta.square())


def _pssilu(x: Tensor, alpha: Tensor, w: Tensor) -> Tensor:
    p = x * torch.sigmoid(x * alpha)
    return p + w.to(x.dtype) * (x - p)


class _PSSiLU(torch.autograd.Function):
    """p + w (x - p) with p = x sigma(alpha x) and w = -b / (1 - b). Saves x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, w)
        # The last is not in place: compiled, torch 2.11 would lose the gradient.
        return (x * alpha).sigmoid_().mul_(x).lerp(x, w.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, w = ctx.saved_tensors
        if is_differentiated():
            return differentiable(_pssilu, (x, alpha, w), grad)
        most = torch.finfo(x.dtype).max
        z = torch.mul(x, alpha).clamp_(-most, most)  # at inf the kernel gives no number
        # dp/dx = silu'(z), so df/dx = silu'(z) + w (1 - silu'(z))
        grad_x = torch.ops.aten.silu_backward(grad, z).lerp_(grad, w.to(x.dtype))
        if not any(ctx.needs_input_grad[1:]):
            return grad_x, None, None
        sigma = z.sigmoid_()
        d_w = (1 - sigma).mul_(x).mul_(grad)  # df/dw = x - p
        grad_w = _total(d_w, w.dtype)
        # df/dalpha = (1 - w) x^2 sigma (1 - sigma); sigma first, for x^2 overflows in fp16
        return grad_x, (1 - w) * _total(d_w.mul_(sigma).mul_(x), alpha.dtype), grad_w


class PSSiLU(nn.Module):
    """x (sigma(a x) - b) / (1 - b) with a = |alpha| and b = |beta|, learned, one pair a layer.

    Dai, Mahloujifar and Mittal, "Parameterizing Activation Functions for Adversarial Robustness"
    (arXiv 2110.05626). Absolute values and start (alpha 1, beta 1e-8: |beta| has no slope at 0) are
    those of the authors' model in RobustBench (`paf_wide_resnet.py`), which has one pair for the
    whole network. b stops at 0.9, well before its pole at 1.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1e-8,
        learnable: bool = True,
        inplace: bool = False,
    ):
        super().__init__()
        if not 0 <= beta <= 0.9 or (learnable and beta == 0):
            raise ValueError(
                f"beta={beta:g}: must be from 0 to 0.9, and above 0 (say 1e-8) where it is learned"
            )
        self.alpha = _scalar(check_scale("alpha", alpha), learnable)
        self.beta = _scalar(beta, learnable)

    def forward(self, x: Tensor) -> Tensor:
        b = self.beta.abs().clamp(max=0.9)
        return _PSSiLU.apply(x, self.alpha.abs(), b / (b - 1))


class Keep(nn.Module):
    """Leaves a network the activations that it has, as pretrained weights want them: nothing is
    put in their place."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
