"""How long and how fast: the learning rate as a pure function of progress, and the optimiser."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sat.acceleration.auto import FUSED


@dataclass(frozen=True)
class Schedule:
    """The recipe of the parameter updates.

    `learning_rate` is for 256 images and scales with `batch_size`, which counts images per update
    over all `accumulate` parts; `auto` begins with one and doubles them where memory runs out.
    Warm-up takes a fifth of the training at most, so that a quick look is not all warm-up;
    `one_cycle` rises for 0.3 of it instead. `milestones` are fractions of the training. Weight
    decay falls on weights alone, not on batch norm, biases or activation parameters. `ema` is the
    decay a step of the weights' average, from the first step on: 1 / (1 - ema) steps should be few
    beside the run's. `ema` and `clip` (L2 norm of the gradient) are off at 0. `sync_batch_norm` is
    for several processes, see `sat.distributed`; None: on GPUs, unless the attack's batch norm is
    in training mode. `shard` shares out weights and optimiser over them, see
    `sat.distributed.sharding`. `compile=reduce-overhead` takes CUDA graphs as well, for small
    images. `fold` merges batch norms for attacks, see `sat.acceleration.folding`; `fused` is the
    optimiser's own step in one launch; `tf32` is for products of float32 on a GPU.
    `grad_checkpointing` keeps of each block its input alone and computes the rest again for the
    backward pass: one unit more for an update and for each step of an attack.
    """

    epochs: float = 30.0
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    warmup_epochs: float = 0.0
    decay: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    ema: float = 0.0
    accumulate: int | Literal["auto"] = 1
    clip: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool | Literal["auto", "reduce-overhead"] = "auto"
    fold: bool | Literal["auto"] = "auto"
    fused: bool | Literal["auto"] = "auto"
    tf32: bool | Literal["auto"] = "auto"
    sync_batch_norm: bool | None = None
    shard: bool = False
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "learning_rate", "accumulate"):
            if not 0 < (self.parts if key == "accumulate" else getattr(self, key)) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)}: must be finite, above 0")
        for key in ("warmup_epochs", "weight_decay", "clip"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)}: must be finite, 0 or above")
        if self.batch_size < 2 * self.parts:
            raise ValueError(
                f"batch_size={self.batch_size}: accumulate={self.accumulate} leaves parts of less"
                " than the two images that batch norm needs"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: from 0 to below 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: a decay from 0 (off) to below 1, such as 0.999")
        if self.compile == "reduce-overhead" and self.accumulate != 1:
            raise ValueError(
                f"compile=reduce-overhead: with accumulate={self.accumulate} the graph of one part"
                " would overwrite the gradients of the one before; write compile=true"
            )
        if self.fused is True and self.optimizer not in FUSED:
            known = ", ".join(FUSED)
            raise ValueError(f"fused=true: {self.optimizer} has no such step, only {known} have")
        if any(not 0 < m < 1 for m in self.milestones):
            raise ValueError(
                f"milestones={list(self.milestones)}: are fractions of the training, from 0 to 1"
            )
        check_optimizer(self.optimizer)

    @property
    def parts(self) -> int:
        """Into how many a batch is split at the start of a training."""
        return 1 if self.accumulate == "auto" else self.accumulate

    def steps(self, images: int) -> int:
        """Updates in all, for a training set of so many images."""
        return max(1, round(self.epochs * images / self.batch_size))

    def rate(self, step: int, images: int) -> float:
        """The learning rate of update `step` (from 0) on a training set of `images` images."""
        peak = self.learning_rate * self.batch_size / 256
        total = self.steps(images)
        warmup = min(self.warmup_epochs * images / self.batch_size, 0.2 * total)
        if self.decay == "one_cycle":
            warmup = 0.3 * total
        if step + 1 < warmup:
            return peak * (step + 1) / warmup
        if self.decay == "constant":
            return peak
        if self.decay == "step":
            return peak * 0.1 ** sum(step >= m * total for m in self.milestones)
        left = (total - step) / (total - min(warmup, total - 1))
        left = min(1.0, left)
        return peak * (left if self.decay == "one_cycle" else 0.5 * (1 - math.cos(math.pi * left)))


def check_optimizer(name: str) -> None:
    """Refuses what timm does not know, or what needs second derivatives."""
    if name in FUSED:  # timm takes seconds to import
        return
    from difflib import get_close_matches

    from timm.optim import list_optimizers

    known = [known for known in list_optimizers() if known != "adahessian"]
    if name.removeprefix("lookahead_") not in known:
        nearest = ", ".join(get_close_matches(name, known, 3, 0.4)) or "sgd, adamw"
        raise ValueError(f"optimizer={name}: timm has none that fits; nearest: {nearest}")


def build_optimizer(model: nn.Module, schedule: Schedule, fused: bool = False) -> Optimizer:
    """timm's optimiser, momentum 0.9; `sgd` is Nesterov's, `momentum` the plain one. `fused` asks
    torch for its step in one launch, which takes states laid out as the weights are.

    The learning rate is set anew before each step. Raises ValueError for one that can't be built.
    """
    from timm.optim import create_optimizer_v2, param_groups_weight_decay

    inner = getattr(model, "backbone", model)
    spared = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    spared = [f"backbone.{name}" for name in spared]
    groups = param_groups_weight_decay(model, schedule.weight_decay, no_weight_decay_list=spared)
    more = {"fused": True} if fused else {}
    try:
        return create_optimizer_v2(
            groups, opt=schedule.optimizer, lr=schedule.learning_rate, weight_decay=0.0, **more
        )
    except Exception as error:  # a package that is not there, or a kind of parameter it can't take
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"optimizer={schedule.optimizer}: can't be built here ({reason}); sgd and adamw can"
        ) from error


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a state dict that may be of another layout, and of a step that was fused where this one
    is not. What is kept of a weight gets its layout: a fused step takes memory as it lies."""
    own = [{key: group[key] for key in group if key == "fused"} for group in optimizer.param_groups]
    groups = [{**kept, **mine} for kept, mine in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.ndim:
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
