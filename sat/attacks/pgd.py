"""Projected gradient descent (Madry et al. 2018), with gradients of the input alone."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sat.arguments import Size, check_ball, check_choices, check_range, check_steps, check_unit
from sat.attacks.ball import Ball, Norm
from sat.attacks.base import Attack, Mode, check_warmup, frozen, input_gradient, risen, row_rng
from sat.attacks.losses import Loss, LossName, aimed, check_aim
from sat.rng import RowRng

Start = Literal["uniform", "uncut", "normal", "none"]
_MULTIPLE = re.compile(r"\s*([^\s*]+)\s*\*\s*eps\s*")


@dataclass(frozen=True)
class PGD(Attack):
    """Ascends `loss` inside the eps-ball around x and inside [0, 1].

    `eps` and `step` are in 1/255, for L2 and L1 as well. `step: auto` is eps * max(1/steps, 1/4):
    the ball is crossed once at least; `step: 1.25*eps` a multiple of eps. `start` is where it
    begins: `uniform` at a uniform point of the ball of radius noise * eps, cut by ball and [0, 1];
    `uncut` at the same, cut by neither before the first step; `normal` at normal noise with a
    deviation of noise / 255 (TRADES' 0.001 is noise=0.255), uncut as published; `none` at x. With
    probability `clean_start` a whole batch begins at the clean images all the same (Xie et al. 2020
    use 0.2). With `project=false` nothing is cut by the ball: the result lies within noise * eps +
    steps * step (N-FGSM, de Jorge et al. 2022). `keep: best` gives the point of the highest loss,
    the start's among them, in place of the last one, for a forward more.

    `batch_norm: eval` attacks the network that will be deployed, with running statistics; `train`
    with the batch's own. Neither changes a statistic, but for `update_statistics=true`: there each
    forward of a `train` attack moves them, as in some published trainings. `loss` is one of
    `sat.attacks.losses`; `auto` is what the objective of a training says, and cross-entropy
    elsewhere, of labels with `label_smoothing`. `target: k` leads each image towards the k-th
    likeliest of its wrong classes, by the loss's targeted form, for a forward more.

    In a training, eps and with it steps and noise of `uniform` rise from 0 during the first
    `eps_warmup` of it, a share from 0 to 1; the number of steps from 1 during its first
    `steps_warmup`: each batch costs what `steps` cost, and those too many change nothing.
    """

    eps: Size = 8.0
    steps: int = 1
    step: float | str = "auto"
    norm: Norm = "linf"
    start: Start = "uniform"
    noise: float = 1.0
    clean_start: float = 0.0
    batch_norm: Mode = "eval"
    loss: LossName = "auto"
    project: bool = True
    update_statistics: bool = False
    eps_warmup: float = 0.0
    steps_warmup: float = 0.0
    label_smoothing: float = 0.0
    target: int | None = None
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        check_choices(self)
        check_aim(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        check_steps("steps", self.steps)
        if self.step != "auto":
            multiple = self._multiple
            written = multiple is not None and f"{multiple!r}".removesuffix(".0") + "*eps"
            object.__setattr__(self, "step", written or check_unit("step", self.step))
        if self.eps and self.step_size == 0:
            raise ValueError(
                f"step={self.step}: moves nothing; write step=auto, or a size in 1/255"
            )
        if self.norm == "linf":
            check_range("step", self.step_size, 0, 255, "is farther than from black to white")
        why = (
            "is a multiple of eps, or of normal noise the deviation in 1/255; for none: start=none"
        )
        check_range("noise", self.noise, 1e-6, 255, why)
        if not 0 <= self.clean_start <= 1:
            raise ValueError(f"clean_start={self.clean_start}: is a probability, from 0 to 1")
        for key in ("eps_warmup", "steps_warmup"):
            check_warmup(key, getattr(self, key))
        if self.update_statistics and self.batch_norm != "train":
            raise ValueError(
                "update_statistics=true: with batch_norm=eval the attack's forwards use running"
                " statistics and move none; write batch_norm=train as well"
            )
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
        multiple = self._multiple
        return float(self.step) if multiple is None else multiple * float(self.eps)

    @property
    def _multiple(self) -> float | None:
        """How many times eps a step is, where it is given so. Raises ValueError for no number."""
        if not isinstance(self.step, str) or not (found := _MULTIPLE.fullmatch(self.step)):
            return None
        try:
            multiple = float(found[1])
        except ValueError:
            multiple = math.nan
        if not 0 <= multiple < math.inf:
            raise ValueError(f"step={self.step}: a multiple of eps is written as 1.25*eps")
        return multiple

    @property
    def reach(self) -> float:
        """How far, in 1/255, an image may be moved."""
        if self.project:
            return float(self.eps)
        if self.start == "normal":
            return math.inf
        noise = 0.0 if self.start == "none" else self.noise * float(self.eps)
        return noise + self.steps * self.step_size

    @property
    def crosses(self) -> bool:
        """Several steps from points all over the ball may each cross a part of it alone."""
        spread = self.start in ("uniform", "uncut") and self.noise >= 1 and self.steps > 1
        least = (0.25 if spread else 0.999) * float(self.eps)
        return self.norm == "l1" or self.steps * self.step_size >= least

    @property
    def random(self) -> bool:
        return self.start != "none"

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] in [0, 1] and y [B] or [B, K] -> adversarial images, detached, float32.

        Leaves every module's mode and every `requires_grad` as they were, and every statistic,
        unless it is to update them.
        """
        rng = row_rng(rng, x)
        rise = risen(progress, self.eps_warmup)
        ball, step, steps = Ball(float(self.eps) / 255 * rise, self.norm), *self._steps(progress)
        inside, x_adv = self._inside(ball, x), self.begin(x, rng, rise)
        with frozen(model, self.batch_norm, self.update_statistics), torch.enable_grad():
            loss, compared = aimed(self, model, x, y)
            best = Highest(loss, x) if self.keep == "best" else None
            for k in range(self.steps):
                way = ball.steepest(input_gradient(model, x_adv, compared, best or loss))
                if best:
                    best.note(inside(x_adv))
                ahead = inside(x_adv + step * rise * way)
                x_adv = ahead if steps is None else torch.where(k < steps, ahead, x_adv)
            if best:
                with torch.no_grad():
                    best(model(x_adv), compared)
                x_adv = best.note(x_adv)
        return x_adv

    def begin(self, x: Tensor, rng: RowRng, rise: float | Tensor = 1.0) -> Tensor:
        """Where the ascent begins: noise in the ball of `rise` times eps, or x itself."""
        if self.start == "none":
            return x.detach()
        ball, shape = Ball(float(self.eps) / 255 * rise, self.norm), x.shape[1:]
        if self.start == "normal":
            start = x + self.noise / 255 * rng.normal("start", *shape)
        else:
            start = x + self.noise * ball.eps * ball.noise(shape, rng)
        if self.start == "uniform":
            start = self._inside(ball, x)(start) if self.noise > 1 else start.clamp_(0, 1)
        if self.clean_start:
            start = torch.where(rng.coin("clean_start", self.clean_start), x.detach(), start)
        return start

    def _inside(self, ball: Ball, x: Tensor) -> Callable[[Tensor], Tensor]:
        """What draws points back to where they may be."""
        return ball.around(x) if self.project else lambda point: point.clamp(0, 1)

    def _steps(self, progress: Tensor | None) -> tuple[float | Tensor, Tensor | None]:
        """The size of a step as a share of the pixel range, at the full eps, and how many of the
        steps are taken; None: all."""
        share = risen(progress, self.steps_warmup)
        if not isinstance(share, Tensor):
            return self.step_size / 255, None
        steps = (self.steps * share).ceil().clamp(min=1)
        if self.step != "auto":
            return self.step_size / 255, steps
        return float(self.eps) / 255 * (1 / steps).clamp(min=1 / 4), steps


class Highest:
    """Each image's point of the highest loss; called as the loss is, it remembers what it gave."""

    def __init__(self, loss: Loss, x: Tensor):
        self._loss, self._best, self._at = loss, x.new_full((len(x),), -math.inf), x

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        losses = self._loss(logits, y)
        self._last = losses.detach().to(self._best.dtype)
        return losses

    def note(self, point: Tensor) -> Tensor:
        """Told of the points [B, C, H, W] of the last losses; gives the best ones so far."""
        higher = self._last > self._best
        self._best = torch.where(higher, self._last, self._best)
        self._at = torch.where(higher.view(-1, 1, 1, 1), point, self._at)
        return self._at
