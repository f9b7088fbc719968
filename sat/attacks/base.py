"""What attacks are made of: the ball around an image, the input's gradient, a network at rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat.choices import check_choices
from sat.rng import RowRng

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """The eps-ball around an image, cut by [0, 1]; `eps` as a share of the pixel range."""

    eps: float
    norm: Norm

    def __post_init__(self) -> None:
        check_choices(self)

    def size(self, d: Tensor) -> Tensor:
        """The norm of each row [B, 1, 1, 1], kept off 0 so that it can divide."""
        order = torch.inf if self.norm == "linf" else 2
        return d.flatten(1).norm(p=order, dim=1).clamp_min_(1e-12).view(-1, 1, 1, 1)

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball around x for Linf; scaled towards x for L2."""
        if self.norm == "linf":
            low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
            return torch.minimum(torch.maximum(point, low), high)
        d = point - x
        return (x + d * (self.eps / self.size(d)).clamp_(max=1)).clamp_(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 that rises the most."""
        return gradient.sign() if self.norm == "linf" else gradient / self.size(gradient)

    def surface(self, x: Tensor, rng: RowRng) -> Tensor:
        """A random point at distance eps of x, then cut by [0, 1]."""
        shape = x.shape[1:]
        noise = rng.normal("start", *shape)
        if self.norm == "linf":
            noise = 2 * rng.uniform("start", *shape) - 1
        return (x + self.eps * noise / self.size(noise)).clamp_(0, 1)

    def holds(self, point: Tensor, x: Tensor) -> Tensor:
        """Which points [B] are finite, in [0, 1] and, but for rounding, in the ball around x."""
        within = ((point >= 0) & (point <= 1)).flatten(1).all(1)  # False for NaN
        return within & (self.size(point - x).flatten() <= self.eps * (1 + 1e-5) + 1e-6)


def ball_of(attack: Any) -> Ball:
    """The ball that an attack promises to stay in; one that names none promises [0, 1] alone."""
    eps = getattr(attack, "eps", None)
    return Ball(torch.inf, "linf") if eps is None else Ball(eps / 255, attack.norm)


def norm_of(x: Tensor) -> Tensor:
    """The L2 norm of each image [B, 1, 1, 1], kept off 0 so that it can divide."""
    return x.flatten(1).norm(dim=1).clamp_min_(1e-12).view(-1, 1, 1, 1)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy with respect to x, and of nothing else.

    The sum makes an image's gradient independent of its batch. float16 would round small
    gradients to 0, so there the loss is scaled up; only the direction is used.
    """
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(model(x), y, reduction="sum")
    if getattr(model, "autocast", None) is torch.float16:
        (gradient,) = torch.autograd.grad(loss * 2.0**10, x)
        return torch.nan_to_num_(gradient)
    return torch.autograd.grad(loss, x)[0]


@contextmanager
def frozen(model: nn.Module, batch_norm: Literal["eval", "train"]) -> Iterator[None]:
    """Parameters without gradients and batch-norm statistics at rest, for the time of an attack.

    Frozen parameters save the work of weight gradients, and a compiled model
    gets a graph of input gradients alone. On leaving, also by an exception, all is as before.
    """
    if getattr(model, "at_rest", False) and batch_norm == "eval":  # see sat.fold
        yield
        return
    before = model.training
    modules = [(module, module.training) for module in model.modules()]
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = [m for m, _ in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        if batch_norm == "eval":
            model.eval()
        else:
            for norm in norms:
                norm.train().track_running_stats = False
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
        model.train(before)  # some networks drop what they cached for eval here
        for module, training in modules:
            module.training = training
