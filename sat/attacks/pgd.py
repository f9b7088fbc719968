"""Projected gradient descent (Madry et al. 2018), with gradients of the input alone."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sat.attacks.base import Norm, frozen, input_gradient, norm_of
from sat.choices import check_choices
from sat.rng import RowRng
from sat.units import check_ball, check_unit


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
    norm: Norm = "linf"
    random_start: bool = True
    clean_start: float = 0.0
    batch_norm: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        check_choices(self)
        check_ball(self.eps, self.norm)
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
