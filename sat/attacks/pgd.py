"""Projected gradient descent (Madry et al. 2018), with gradients of the input alone."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sat.arguments import check_ball, check_choices, check_unit
from sat.attacks.base import Mode, Norm, frozen, input_gradient, norm_of, row_rng
from sat.attacks.losses import LossName, named, reference
from sat.rng import RowRng

Start = Literal["uniform", "normal", "none"]


@dataclass(frozen=True)
class PGD:
    """Ascends `loss` inside the eps-ball around x and inside [0, 1]; untargeted.

    `eps` and `step` are in 1/255, for L2 as well. `step: auto` is eps * max(1/steps, 1/4): the
    ball is crossed once at least. `start` is where it begins: `uniform` at a uniform point of the
    ball of radius noise * eps; `normal` at normal noise with a deviation of noise / 255 (TRADES'
    0.001 is noise=0.255), either cut by the ball; `none` at x. With probability `clean_start` a
    whole batch begins at the clean images all the same (Xie et al. 2020 use 0.2). `batch_norm:
    eval` attacks the network that will be deployed, with running statistics; `train` with the
    batch's own. Neither changes a statistic. `loss` is one of `sat.attacks.losses`; `auto` is what
    the objective of a training says, and cross-entropy elsewhere.
    """

    eps: float | str = 8.0
    steps: int = 1
    step: float | str = "auto"
    norm: Norm = "linf"
    start: Start = "uniform"
    noise: float = 1.0
    clean_start: float = 0.0
    batch_norm: Mode = "eval"
    loss: LossName = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        if self.step != "auto":
            object.__setattr__(self, "step", check_unit("step", self.step))
            if self.step == 0:
                raise ValueError("step=0: moves nothing; write step=auto, or a size in 1/255")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1; for no attack: attack=none")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: must be above 0; for no noise: start=none")
        if not 0 <= self.clean_start <= 1:
            raise ValueError(f"clean_start={self.clean_start}: is a probability, from 0 to 1")
        if self.start == "none":
            self._check_clean()

    def _check_clean(self) -> None:
        for key, usual in (("noise", 1.0), ("clean_start", 0.0)):
            if (value := getattr(self, key)) != usual:
                raise ValueError(
                    f"{key}={value}: with start=none every batch starts clean; drop one of the two"
                )
        if self.loss == "kl":
            raise ValueError(
                "start=none: the loss kl has no gradient at the clean images; write start=normal"
                " and noise=0.255, as TRADES does"
            )

    @property
    def step_size(self) -> float:
        """The size of a step in 1/255."""
        if self.step == "auto":
            return float(self.eps) * max(1 / self.steps, 1 / 4)
        return float(self.step)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] in [0, 1] and y [B] or [B, K] -> adversarial images, detached, float32.

        Leaves every module's mode, every `requires_grad` and every statistic as they were.
        """
        rng = row_rng(rng, x)
        eps, step, loss = float(self.eps) / 255, self.step_size / 255, named(self.loss)
        x_adv, low, high = self.begin(x, rng), (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
        with frozen(model, self.batch_norm), torch.enable_grad():
            target = reference(loss, model, x, y)
            for _ in range(self.steps):
                gradient = input_gradient(model, x_adv, target, loss)
                if self.norm == "linf":
                    x_adv = torch.add(x_adv, gradient.sign_(), alpha=step).clamp_(low, high)
                else:
                    delta = x_adv - x + step * gradient / norm_of(gradient)
                    x_adv = (x + delta * (eps / norm_of(delta)).clamp(max=1)).clamp_(0, 1)
        return x_adv

    def begin(self, x: Tensor, rng: RowRng) -> Tensor:
        """Where the ascent begins: noise inside the ball, or x itself."""
        if self.start == "none":
            return x.detach()
        eps, shape = float(self.eps) / 255, x.shape[1:]
        if self.start == "normal":
            delta = self.noise / 255 * rng.normal("start", *shape)
        elif self.norm == "linf":
            delta = self.noise * eps * (2 * rng.uniform("start", *shape) - 1)
        else:
            direction = rng.normal("start", *shape)
            radius = rng.uniform("radius", 1, 1, 1) ** (1 / math.prod(shape))
            delta = self.noise * eps * radius * direction / norm_of(direction)
        if self.start == "normal" or self.noise > 1:
            size = norm_of(delta)
            linf = self.norm == "linf"
            delta = delta.clamp(-eps, eps) if linf else delta * (eps / size).clamp(max=1)
        start = (x + delta).clamp_(0, 1)
        if self.clean_start:
            start = torch.where(rng.coin("clean_start", self.clean_start), x.detach(), start)
        return start
