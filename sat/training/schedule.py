"""How long and how fast: the learning rate as a pure function of progress."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sat.acceleration.auto import FUSED
from sat.arguments import check_choices
from sat.training.decay import Decay, Progress, named
from sat.training.optimizer import check_optimizer


def _takes_milestones(values: Mapping[str, Any]) -> bool:
    """Whether the shape is, or may be, one that milestones move."""
    return values["decay"] not in ("constant", "cosine", "one_cycle")


@dataclass(frozen=True)
class Schedule:
    """The recipe of the parameter updates.

    `learning_rate` is for 256 images and scales with `batch_size`, which counts images per update
    over all `accumulate` parts; `auto` begins with one and doubles them where memory runs out.
    Warm-up takes a fifth of the training at most, so that a quick look is not all warm-up;
    `one_cycle` rises for 0.3 of it instead. `decay` is a shape of `sat.training.decay`, or the word
    for one. `milestones` are fractions of the training. Weight
    decay falls on weights alone, not on batch norm, biases or activation parameters. `ema` is the
    decay a step of the weights' average, from the first step on: 1 / (1 - ema) steps should be few
    beside the run's. `ema` and `clip` (L2 norm of the gradient) are off at 0. `sync_batch_norm` is
    for several processes, see `sat.distributed`; None: on GPUs, unless the attack's batch norm is
    in training mode. `shard` shares out weights and optimiser over them, see
    `sat.distributed.sharding`. `compile=reduce-overhead` takes CUDA graphs as well, for small
    images; `graph` takes a whole step as one, see `sat.acceleration.graph`. `fold` merges batch
    norms for attacks, see `sat.acceleration.folding`; `fused` is the optimiser's own step in one
    launch; `tf32` is for products of float32 on a GPU.
    `grad_checkpointing` keeps of each block its input alone and computes the rest again for the
    backward pass: one unit more for an update and for each step of an attack.
    """

    epochs: float = 30.0
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    warmup_epochs: float = 0.0
    decay: str | Decay = "cosine"
    milestones: tuple[float, ...] = field(
        default=(0.3, 0.6, 0.9), metadata={"identity": _takes_milestones}
    )
    weight_decay: float = 5e-4
    ema: float = 0.0
    accumulate: int | Literal["auto"] = 1
    clip: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool | Literal["auto", "reduce-overhead"] = "auto"
    graph: bool | Literal["auto"] = field(default="auto", metadata={"identity": False})
    fold: bool | Literal["auto"] = "auto"
    fused: bool | Literal["auto"] = "auto"
    tf32: bool | Literal["auto"] = "auto"
    sync_batch_norm: bool | None = None
    shard: bool = field(default=False, metadata={"identity": False})
    grad_checkpointing: bool = field(default=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        check_choices(self)
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
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: a decay from 0 (off) to below 1, such as 0.999")
        if self.compile == "reduce-overhead" and self.accumulate != 1:
            raise ValueError(
                f"compile=reduce-overhead: with accumulate={self.accumulate} the graph of one part"
                " would overwrite the gradients of the one before; write compile=true"
            )
        if self.graph is True and (self.fused is False or self.optimizer not in FUSED):
            raise ValueError(
                f"graph=true: needs a fused optimizer, {', '.join(FUSED)}, whose learning rate is"
                " read on the device; write graph=auto"
            )
        if self.graph is True and self.compile == "reduce-overhead":
            raise ValueError("graph=true: can hold no compile=reduce-overhead; write compile=true")
        if self.fused is True and self.optimizer not in FUSED:
            known = ", ".join(FUSED)
            raise ValueError(f"fused=true: {self.optimizer} has no such step, only {known} have")
        if any(not 0 < m < 1 for m in self.milestones):
            raise ValueError(
                f"milestones={list(self.milestones)}: are fractions of the training, from 0 to 1"
            )
        check_optimizer(self.optimizer)
        assert self.shape

    @property
    def shape(self) -> Decay:
        """How the learning rate goes on after the warm-up."""
        return named(self.decay) if isinstance(self.decay, str) else self.decay

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
        total, shape = self.steps(images), self.shape
        warmup = shape.warmup(self.warmup_epochs * images / self.batch_size, total)
        if step + 1 < warmup:
            return peak * (step + 1) / warmup
        return peak * shape(Progress(step, total, warmup, self.milestones))
