"""Clean and robust accuracy, one flag for each image."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sat.draws import Draws, seed_of
from sat.statistics import wilson


@dataclass(frozen=True)
class Evaluation:
    """Which attacks measure a trained model, each under its own name.

    An image is robust when no restart of the attack fools the model. `limit` takes the first
    test images of a set with a canonical order, a class-balanced part of any other;
    `subset_seed` draws another part.
    """

    attacks: dict[str, Any] = field(default_factory=dict)
    restarts: int = 1
    limit: int | None = None
    subset_seed: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        for key in ("restarts", "batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
        for name, attack in self.attacks.items():
            check_attack(f"attacks.{name}", attack)
            if self.restarts > 1 and not getattr(attack, "random_start", False):
                raise ValueError(
                    f"restarts={self.restarts}: attacks.{name} begins at the same point each time;"
                    " write restarts=1, or an attack with random_start=true"
                )
            if not name.replace("_", "").replace(".", "").isalnum() or name == "worst_case":
                raise ValueError(
                    f"attacks.{name}: letters, digits, '_' and '.' make a name, but worst_case"
                )
        if self.subset_seed is not None and self.limit is None:
            raise ValueError(f"subset_seed={self.subset_seed}: draws a part; set limit as well")

    @property
    def subset(self) -> list[int | None]:
        """Which test images: `[limit, subset_seed]`, as it is written down."""
        return [self.limit, self.subset_seed]

    def settings(self, name: str) -> dict[str, Any]:
        """All that decides the flags of that attack, to be kept beside them."""
        attack = self.attacks[name]
        kept = {"attack": type(attack).__name__, **asdict(attack), "restarts": self.restarts}
        kept |= {"limit": self.limit, "subset_seed": self.subset_seed}
        return json.loads(json.dumps(kept))  # as it is read back


@dataclass(frozen=True)
class Validation:
    """How `best` is chosen: an attack on the held-out images, every so many epochs."""

    attack: Any = None
    every: float = 1.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.every < math.inf:
            raise ValueError(f"every={self.every}: is a number of epochs above 0")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        check_attack("attack", self.attack)


def check_attack(key: str, attack: Any) -> None:
    """Refuses what measures no robustness of the network as it will be deployed."""
    if not callable(attack) or not hasattr(attack, "eps"):
        raise ValueError(f"{key}={attack}: is no attack; name one of the options of attack")
    if getattr(attack, "batch_norm", "eval") != "eval":
        raise ValueError(
            f"{key}.batch_norm={attack.batch_norm}: an image's verdict would depend on its batch;"
            " write eval"
        )


@dataclass(frozen=True)
class Flags:
    """Per image, on the CPU: classified right when clean, and after the attack as well."""

    clean: Tensor
    robust: Tensor
    seconds: float = 0.0


def measure(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor, Tensor]], attack: Any,
            seed: int, restarts: int = 1) -> Flags:  # fmt: skip
    """Attacks every image of `batches`, which yields (indices [B], x [B, C, H, W], y [B]).

    An image that is wrong already, clean or under an earlier restart, is not attacked again. An
    image's noise depends on its index alone, not on its batch. The model's mode is kept.
    """
    start = time.monotonic()
    training = model.training
    model.eval()
    clean, robust = [], []
    try:
        for indices, x, y in batches:
            right = _is_right(model, x, y)
            clean.append(right.clone())
            for restart in range(restarts):
                left = right.nonzero()[:, 0]
                if len(left) == 0:
                    break
                draws = Draws(seed_of(seed, "evaluation", restart), indices.to(x.device)[left])
                right[left] &= _is_right(model, attack(model, x[left], y[left], draws), y[left])
            robust.append(right)
    finally:
        model.train(training)
    return Flags(torch.cat(clean).cpu(), torch.cat(robust).cpu(), time.monotonic() - start)


@torch.no_grad()
def _is_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


@contextmanager
def float32(model: nn.Module) -> Iterator[None]:
    """The model in IEEE float32, as a verdict asks for; as it was on leaving."""
    before, matmul = model.autocast, torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.allow_tf32
    model.autocast, torch.backends.cudnn.allow_tf32 = None, False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        model.autocast, torch.backends.cudnn.allow_tf32 = before, cudnn
        torch.set_float32_matmul_precision(matmul)


def accuracy(flags: Tensor) -> dict[str, Any]:
    """`{"accuracy", "ci95", "images"}` of one flag per image."""
    right, images = int(flags.sum()), len(flags)
    low, high = wilson(right, images)
    return {"accuracy": right / max(1, images), "ci95": [low, high], "images": images}


def robustness(flags: Flags, attack: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `result.json` says of one attack."""
    own = {key: value for key, value in asdict(attack).items() if key in ("eps", "norm", "steps")}
    if hasattr(attack, "step_size"):
        own["step"] = attack.step_size
    measured = {**accuracy(flags.robust), "seconds": round(flags.seconds, 3)}
    return {**measured, **own, "settings": dict(settings)}
