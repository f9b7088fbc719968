"""Projected gradient descent (Madry et al. 2018), with gradients of the input alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat.rng import RowRng


@dataclass(frozen=True)
class PGD:
    """Ascends the cross-entropy inside the eps-ball around x and inside [0, 1]; untargeted.

    `eps` and `step` are in 1/255, for L2 as well. `step: auto` is eps * max(1/steps, 1/4): the
    ball is crossed once at least. `random_start` begins at a uniform point of the ball, except
    that with probability `clean_start` a whole batch begins at the clean images (Xie et al. 2020
    use 0.2). `batch_norm: eval` attacks the network that will be deployed, with running
    statistics; `train` with the batch's own. Neither changes a statistic.
    """

    eps: float = 8.0
    steps: int = 1
    step: float | Literal["auto"] = "auto"
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = True
    clean_start: float = 0.0
    batch_norm: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        check_unit("eps", self.eps)
        if self.step != "auto":
            check_unit("step", self.step)
            if self.step == 0:
                raise ValueError("step=0: moves nothing; write step=auto, or a size in 1/255")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1; for no attack: attack=none")
        if not 0 <= self.clean_start <= 1:
            raise ValueError(f"clean_start={self.clean_start}: is a probability, from 0 to 1")
        if self.clean_start and not self.random_start:
            raise ValueError(
                f"clean_start={self.clean_start}: without random_start every batch starts clean;"
                " drop one of the two"
            )
        if self.norm == "linf" and self.eps > 255:
            raise ValueError(f"eps={self.eps}: is above 255/255, the whole range of a pixel")

    @property
    def step_size(self) -> float:
        """The size of a step in 1/255."""
        return self.eps * max(1 / self.steps, 1 / 4) if self.step == "auto" else self.step

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng | None = None):
        """x [B, C, H, W] in [0, 1] and y [B] -> adversarial images, detached, float32.

        Leaves every module's mode, every `requires_grad` and every statistic as they were.
        """
        rng = rng or RowRng(0, torch.arange(len(x), device=x.device))
        eps, step = self.eps / 255, self.step_size / 255
        x_adv, low, high = self.start(x, rng), (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
        with frozen(model, self.batch_norm), torch.enable_grad():
            for _ in range(self.steps):
                gradient = input_gradient(model, x_adv, y)
                if self.norm == "linf":
                    x_adv = torch.add(x_adv, gradient.sign_(), alpha=step).clamp_(low, high)
                else:
                    delta = x_adv - x + step * gradient / norm_of(gradient)
                    x_adv = (x + delta * (eps / norm_of(delta)).clamp(max=1)).clamp_(0, 1)
        return x_adv

    def start(self, x: Tensor, rng: RowRng) -> Tensor:
        """Where the ascent begins: a uniform point of the ball, or x itself."""
        if not self.random_start or rng.coin("clean_start", self.clean_start):
            return x.detach()
        eps, shape = self.eps / 255, x.shape[1:]
        if self.norm == "linf":
            return (x + eps * (2 * rng.uniform("start", *shape) - 1)).clamp_(0, 1)
        direction = rng.normal("start", *shape)
        radius = rng.uniform("radius", 1, 1, 1) ** (1 / math.prod(shape))
        return (x + eps * radius * direction / norm_of(direction)).clamp_(0, 1)


def check_unit(name: str, value: float) -> None:
    """eps and step are in 1/255; a value below 1 is nearly always a fraction by mistake."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or above, in 1/255")
    smallest = 1 if name == "eps" else 0.1
    if 0 < value < smallest:
        meant = f"{255 * value:.3g}"
        raise ValueError(
            f"{name}={value:g}: is in units of 1/255, so this is {value:g}/255;"
            f" for {value:g} of the pixel range write {name}={meant}"
        )


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
