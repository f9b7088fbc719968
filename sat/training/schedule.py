"""How long and how fast: the learning rate as a pure function of progress."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sat.acceleration.auto import FUSED
from sat.arguments import MOST_EPOCHS, check_choices, check_range
from sat.training.decay import Decay, Progress, named
from sat.training.optimizer import SGDS, check_optimizer


def _takes_milestones(values: Mapping[str, Any]) -> bool:
    """Whether the shape is, or may be, one that milestones move."""
    return values["decay"] not in ("constant", "cosine", "one_cycle")


def _takes_momentum(values: Mapping[str, Any]) -> bool:
    """Whether the optimiser is, or may be, one that has it."""
    return values["optimizer"] not in ("adam", "adamw", "lamb", "lion")


MOST_IMAGES = 10**7


@dataclass(frozen=True)
class Schedule:
    """The recipe of the parameter updates.

    `learning_rate` is for `learning_rate_batch` images and scales with `batch_size`, which counts
    images per update over all `accumulate` parts; `auto` begins with one and doubles them where
    memory runs out. An epoch has images / batch_size updates, so that batches run over its end;
    `updates_per_epoch=whole` rounds them up, as loaders that keep a last partial batch do.
    Warm-up takes a fifth of the training at most, so that a quick look is not all warm-up;
    `one_cycle` rises for 0.3 of it instead. `decay` is a shape of `sat.training.decay`, or the word
    for one. `milestones` are fractions of the training. `momentum` and `betas` are the optimiser's,
    where it has them. `weight_decay_on` says on what it falls, see
    `sat.training.optimizer.decayed`; `layer_decay` is the factor of the learning rate from each
    layer to the one before it, 1 for none. `ema` is the decay a step of the weights' average,
    `swa_start` the share of the training from which they are averaged alike instead; `ema_ramp` and
    `ema_start`: see `sat.training.average`. These and `clip` (L2 norm of the gradient) are off at
    0. `norm_start=batch` begins batch norm's running statistics, in the place of 0 and 1, with
    those of the last forward (of the last part) of the first update that is taken, whose forwards
    have momentum 1 (Gowal et al. 2020). `sync_batch_norm` is for several processes, see
    `sat.distributed`; None: on GPUs, unless the attack's batch norm is in training mode. `shard`
    shares out weights and optimiser over them, see `sat.distributed.sharding`.
    `compile=reduce-overhead` takes CUDA graphs as well, for small images; `graph` takes a whole
    step as one, see `sat.acceleration.graph`. `fold` merges batch norms for attacks, see
    `sat.acceleration.folding`; `fused` is the optimiser's own step in one launch; `tf32` is for
    products of float32 on a GPU.
    `grad_checkpointing` keeps of each block its input alone and computes the rest again for the
    backward pass: one unit more for an update and for each step of an attack.
    """

    epochs: float = 30.0
    updates_per_epoch: int | Literal["auto", "whole"] = "auto"
    batch_size: int = 128
    optimizer: str = "sgd"
    momentum: float = field(default=0.9, metadata={"identity": _takes_momentum})
    betas: tuple[float, float] | None = None
    learning_rate: float = 0.1
    learning_rate_batch: int = 256
    warmup_epochs: float = 0.0
    decay: str | Decay = "cosine"
    milestones: tuple[float, ...] = field(
        default=(0.3, 0.6, 0.9), metadata={"identity": _takes_milestones}
    )
    weight_decay: float = 5e-4
    weight_decay_on: Literal["weights", "all", "all_but_norms", "all_but_biases"] = field(
        default="weights", metadata={"identity": lambda v: bool(v["weight_decay"])}
    )
    layer_decay: float = 1.0
    ema: float = 0.0
    ema_ramp: bool = False
    ema_start: float = 0.0
    swa_start: float = 0.0
    norm_start: Literal["zero", "batch"] = "zero"
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
        for key in ("epochs", "batch_size", "learning_rate", "learning_rate_batch", "accumulate"):
            if not 0 < (self.parts if key == "accumulate" else getattr(self, key)) < math.inf:
                raise ValueError(f"{key}={getattr(self, key):g}: must be finite, above 0")
        if not isinstance(self.updates_per_epoch, str):
            why = "is a number of updates, or auto, or whole"
            check_range("updates_per_epoch", self.updates_per_epoch, 1, MOST_IMAGES, why)
        self._check_sizes()
        if self.batch_size < 2 * self.parts:
            raise ValueError(
                f"batch_size={self.batch_size}: accumulate={self.accumulate} leaves parts of less"
                " than the two images that batch norm needs"
            )
        self._check_average()
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
        if self.graph is True and self.cycles_momentum:
            raise ValueError("graph=true: would hold decay.momentum fast; write graph=auto")
        if self.graph is True and self.grad_checkpointing:
            raise ValueError("graph=true: can't hold grad_checkpointing; write graph=auto")
        if self.graph is True and self.compile == "reduce-overhead":
            raise ValueError("graph=true: can hold no compile=reduce-overhead; write compile=true")
        if self.fused is True and self.optimizer not in FUSED:
            known = ", ".join(FUSED)
            raise ValueError(f"fused=true: {self.optimizer} has no such step, only {known} have")
        if any(not 0 < m < 1 for m in self.milestones):
            written = ", ".join(f"{m:g}" for m in self.milestones)
            raise ValueError(f"milestones=[{written}]: are fractions of the training, from 0 to 1")
        check_optimizer(self.optimizer)
        self._check_optimizer()

    def _check_sizes(self) -> None:
        check_range("epochs", self.epochs, 0, MOST_EPOCHS, "are more than anybody waits for")
        for key in ("batch_size", "learning_rate_batch"):
            check_range(key, getattr(self, key), 1, MOST_IMAGES, "is a number of images at once")
        check_range("warmup_epochs", self.warmup_epochs, 0, MOST_EPOCHS, "is a number of epochs")
        if self._peak < 1e-9:
            raise ValueError(
                f"learning_rate={self.learning_rate}: with batches of {self.batch_size} it is"
                f" {self._peak:.3g}, by which no float32 weight moves; write"
                f" {1e-9 * self.learning_rate / self._peak:.1g} or more"
            )
        if self.clip:
            why = "leaves nothing of the gradient (0 clips nothing)"
            check_range("clip", self.clip, 1e-6, 1e30, why)
        why = "is the share of a weight that an update takes, times the learning rate"
        check_range("weight_decay", self.weight_decay, 0, 10, why)

    def _check_average(self) -> None:
        check_range("ema", self.ema, 0, 1 - 1e-6, "is a decay, of which float32 has no more digits")
        for key in ("ema_start", "swa_start"):
            if not 0 <= (value := getattr(self, key)) < 1:
                raise ValueError(f"{key}={value}: is a share of the training, from 0 to below 1")
        if not self.ema and (self.ema_ramp or self.ema_start):
            key = "ema_ramp=true" if self.ema_ramp else f"ema_start={self.ema_start}"
            raise ValueError(f"{key}: there is no average; write ema=0.995, or another decay")
        if self.ema and self.swa_start:
            raise ValueError(f"swa_start={self.swa_start}: and ema={self.ema}; drop one of the two")
        if self.swa_start and self.shard:
            raise ValueError(
                f"swa_start={self.swa_start}: its statistics can't be estimated with shard=true;"
                " write ema=0.999, or shard=false"
            )

    def _check_optimizer(self) -> None:
        check_range("momentum", self.momentum, 0, 0.9999, "adds up more than 10,000 gradients")
        if self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("momentum=0.0: Nesterov's step needs one; write optimizer=momentum")
        if self.betas and (len(self.betas) < 2 or not all(0 <= b < 1 for b in self.betas)):
            raise ValueError(f"betas={list(self.betas)}: two at least, each from 0 to below 1")
        if self.betas and self.optimizer in SGDS:
            raise ValueError(f"betas={list(self.betas)}: {self.optimizer} has none; see momentum")
        check_range("layer_decay", self.layer_decay, 0.01, 1, "is a factor a layer, 1 for none")
        if self.cycles_momentum and self.optimizer not in SGDS:
            raise ValueError(
                f"decay.momentum: {self.optimizer} has none to cycle; write optimizer=momentum, or"
                " sgd, or decay.momentum=null"
            )

    @property
    def shape(self) -> Decay:
        """How the learning rate goes on after the warm-up."""
        return named(self.decay) if isinstance(self.decay, str) else self.decay

    @property
    def parts(self) -> int:
        """Into how many a batch is split at the start of a training."""
        return 1 if self.accumulate == "auto" else self.accumulate

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept, and measured."""
        return bool(self.ema or self.swa_start)

    @property
    def cycles_momentum(self) -> bool:
        return self.shape.momentum_at(Progress(0, 1, 0.0)) is not None

    def updates(self, epochs: float, images: int) -> float:
        """Updates that so many epochs of `images` images take."""
        if self.updates_per_epoch == "auto":
            return epochs * images / self.batch_size
        if self.updates_per_epoch == "whole":
            return epochs * math.ceil(images / self.batch_size)
        return epochs * self.updates_per_epoch

    def steps(self, images: int) -> int:
        """Updates in all, for a training set of so many images."""
        return max(1, round(self.updates(self.epochs, images)))

    def epoch(self, step: int, images: int) -> float:
        """Epochs that lie behind after `step` updates."""
        if self.updates_per_epoch == "auto":
            return step * self.batch_size / images
        return step / self.updates(1.0, images)

    def rate(self, step: int, images: int) -> float:
        """The learning rate of update `step` (from 0) on a training set of `images` images."""
        peak, progress = self._peak, self._progress(step, images)
        if step + 1 < progress.warmup:
            return peak * (step + 1) / progress.warmup
        return peak * self.shape(progress)

    def momentum_at(self, step: int, images: int) -> float:
        """The momentum of update `step`: the shape's, where it moves it."""
        cycled = self.shape.momentum_at(self._progress(step, images))
        return self.momentum if cycled is None else cycled

    @property
    def _peak(self) -> float:
        return self.learning_rate * self.batch_size / self.learning_rate_batch

    def _progress(self, step: int, images: int) -> Progress:
        total, asked = self.steps(images), self.updates(self.warmup_epochs, images)
        warmup, updates = self.shape.warmup(asked, total), self.updates(1.0, images)
        return Progress(step, total, warmup, self.milestones, updates)
