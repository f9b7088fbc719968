"""ReLU forward, the derivative of a smooth function backward: where does the gradient matter?

Xie et al. (arXiv 2006.14536) train a ReLU network whose backward pass pretends that it
is smooth, in the attacker's steps (inner), in the update (outer), or in both. Whoever trains says
which of the two is going on, by `phase`; at all other times the network is plain ReLU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.activations.functions import check_scale, differentiable, is_differentiated, smoothrelu
from sat.arguments import check_arguments

Phase = Literal["inner", "outer"]
Smooth = Literal[
    "parametric_softplus", "softplus", "smoothrelu", "silu", "gelu", "elu", "celu", "mish"
]
_aten = torch.ops.aten


def _smoothrelu(grad: Tensor, x: Tensor, alpha: float) -> Tensor:
    """f' = u / (1 + u) = 1 - 1 / (1 + u) with u = alpha max(x, 0)."""
    v = (x * alpha).clamp_(0, torch.finfo(x.dtype).max).add_(1)
    return torch.addcdiv(grad, grad, v, value=-1)


# f'(x) times the gradient, by f's name; alpha as in sat.activations, 1 where f has none.
_BACKWARD = {
    "parametric_softplus": lambda g, x, alpha: _aten.softplus_backward(g, x, alpha, 40.0),
    "softplus": lambda g, x, alpha: _aten.softplus_backward(g, x, alpha, 40.0),
    "smoothrelu": _smoothrelu,
    "silu": lambda g, x, alpha: _aten.silu_backward(g, x),
    "gelu": lambda g, x, alpha: _aten.gelu_backward(g, x),
    "elu": lambda g, x, alpha: _aten.elu_backward(g, alpha, 1.0, 1.0, False, x),
    "celu": lambda g, x, alpha: _aten.elu_backward(g, alpha, 1.0, 1 / alpha, False, x),
    "mish": lambda g, x, alpha: _aten.mish_backward(g, x),
}
_ALPHA = {"parametric_softplus": 10.0, "smoothrelu": 400.0, "elu": 1.0, "celu": 1.0}


# f itself, for a backward pass that is differentiated.
_FORWARD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "parametric_softplus": lambda x, alpha: F.softplus(x, alpha, 40.0),
    "softplus": lambda x, alpha: F.softplus(x, alpha, 40.0),
    "smoothrelu": smoothrelu,
    "silu": lambda x, alpha: F.silu(x),
    "gelu": lambda x, alpha: F.gelu(x),
    "elu": F.elu,
    "celu": F.celu,
    "mish": lambda x, alpha: F.mish(x),
}


class _Surrogate(torch.autograd.Function):
    """Saves x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, name: str, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name, ctx.alpha = name, alpha
        return x.relu()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        if is_differentiated():
            smooth, alpha = _FORWARD[ctx.name], ctx.alpha
            return differentiable(lambda x: smooth(x, alpha), (x,), grad)[0], None, None
        return _BACKWARD[ctx.name](grad, x, ctx.alpha), None, None


class SurrogateReLU(nn.ReLU):
    """max(0, x); its gradient is that of the function named by `backward` in the phases asked for.

    `inner` and `outer` say whether the attacker's steps and the update of a training use it; in
    every other forward pass, evaluation and validation among them, the gradient is ReLU's own.
    `alpha` belongs to the smooth function (None: 10 for parametric_softplus, 400 for smoothrelu,
    1 for elu and celu; the others have none).
    """

    phase: Phase | None = None

    def __init__(
        self,
        backward: Smooth = "parametric_softplus",
        alpha: float | None = None,
        inner: bool = True,
        outer: bool = True,
        inplace: bool = False,
    ):
        super().__init__(inplace)
        check_arguments(SurrogateReLU.__init__, {"backward": backward})
        if alpha is not None and backward not in _ALPHA:
            raise ValueError(f"alpha={alpha:g}: {backward} has none; write null")
        if alpha is not None:
            check_scale("alpha", alpha)
        self.backward_of = backward
        self.alpha = float(alpha or _ALPHA.get(backward, 1.0))
        self.phases = ("inner",) * inner + ("outer",) * outer

    def forward(self, x: Tensor) -> Tensor:
        if self.phase in self.phases:
            return _Surrogate.apply(x, self.backward_of, self.alpha)
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"backward={self.backward_of}, alpha={self.alpha:g}, phases={self.phases}"


def phased(net: nn.Module) -> list[SurrogateReLU]:
    """The modules of `net` that ask what their forward passes are for."""
    return [module for module in net.modules() if isinstance(module, SurrogateReLU)]


@contextmanager
def phase(modules: list[SurrogateReLU], name: Phase) -> Iterator[None]:
    """Tells, for the time of a forward and its backward, `modules` what they are for."""
    try:
        for module in modules:
            module.phase = name
        yield
    finally:
        for module in modules:
            module.phase = None


def is_flat(activation: nn.Module) -> bool:
    """Whether the second derivative is 0 wherever there is one, as ReLU's, in the update of a
    training, where a surrogate gradient counts."""
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).requires_grad_()
    with phase(phased(activation), "outer"):
        (slope,) = torch.autograd.grad(activation.double()(x).sum(), x, create_graph=True)
    if not slope.requires_grad:
        return True
    (second,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
    return second is None or not second.any()
