"""Clean and robust accuracy, one flag for each image."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from sat.attacks.outcomes import STANDS, WRONG, AttackOutcomes, Ensemble, is_right
from sat.distributed import World
from sat.rng import RowRng, seed_of
from sat.statistics import wilson

EVALUATED = ("last", "best", "last_raw")
TAKEN = ("clean", "worst_case")  # no names of attacks: results hold them beside these


@dataclass(frozen=True)
class Evaluation:
    """Which attacks measure a trained model, each under its own name.

    An image is robust when no restart of the attack fools the model. `curves` follow robust
    accuracy over the size or the length of an attack. `checkpoints` may name `best`, `last` and,
    of a run with weight averaging, `last_raw`, the last weights themselves. `limit` takes the
    first test images of a set with a canonical order, a class-balanced part of any other;
    `subset_seed` draws another part. On `masking_checks` of them (0: none) it is asked afterwards
    whether the numbers are to be believed.
    """

    attacks: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ("last", "best")
    restarts: int = 1
    limit: int | None = None
    subset_seed: int | None = None
    masking_checks: int = 128
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.masking_checks < 0:
            raise ValueError(f"doubts={self.doubts}: is a number of images; 0 doubts nothing")
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
        for name, curve in self.curves.items():
            if not hasattr(curve, "over"):
                raise ValueError(f"curves.{name}={curve}: is no curve; see evaluation=curves")
            if name in self.attacks:
                raise ValueError(f"curves.{name}: an attack has this name; take another")
        if self.curves and self.restarts > 1:
            raise ValueError(f"restarts={self.restarts}: curves take one start a point; write 1")
        for name in self.measured_by:
            if not name.replace("_", "").replace(".", "").isalnum() or name in TAKEN:
                taken = " and ".join(TAKEN)
                raise ValueError(f"{name}: letters, digits, '_' and '.' make a name, but {taken}")
        unknown = [name for name in self.checkpoints if name not in EVALUATED]
        if unknown or not self.checkpoints:
            known = ", ".join(EVALUATED)
            raise ValueError(f"checkpoints={list(self.checkpoints)}: choose from {known}")
        if self.subset_seed is not None and self.limit is None:
            raise ValueError(f"subset_seed={self.subset_seed}: draws a part; set limit as well")

    @property
    def subset(self) -> list[int | None]:
        """Which test images: `[limit, subset_seed]`, as it is written down."""
        return [self.limit, self.subset_seed]

    @property
    def measured_by(self) -> dict[str, Any]:
        """Attacks and curves by name: all that leaves flags."""
        return {**self.attacks, **self.curves}

    def settings(self, name: str) -> dict[str, Any]:
        """All that decides the flags of that attack or curve, to be kept beside them."""
        attack = self.measured_by[name]
        kept = {"attack": type(attack).__name__, **asdict(attack), "restarts": self.restarts}
        kept |= {"limit": self.limit, "subset_seed": self.subset_seed}
        return json.loads(json.dumps(kept))  # as it is read back


@dataclass(frozen=True)
class Validation:
    """How `best` is chosen: an attack on the held-out images, or on `limit` of them, every so many
    epochs."""

    attack: Any = None
    every: float = 1.0
    batch_size: int = 256
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.every < math.inf:
            raise ValueError(f"every={self.every}: is a number of epochs above 0")
        for key in ("batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
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


def measure(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor, Tensor]], judge: Ensemble,
            seed: int, outcomes: AttackOutcomes) -> AttackOutcomes:  # fmt: skip
    """Puts every image of `batches`, which yields (indices [B], x [B, C, H, W], y [B]), through the
    judge's attacks; `outcomes` has a place for each, and says what is known already.

    An image that is wrong when clean is not attacked. An image's noise depends on its index alone,
    not on its batch. The model's mode is kept.
    """
    training, done = model.training, 0
    model.eval()
    try:
        for indices, x, y in batches:
            part = outcomes.part(slice(done, done + len(x)))
            done += len(x)
            for fell, *images in zip(*(t.split(256) for t in (part.fell, x, y)), strict=True):
                fell[(fell == STANDS) & ~is_right(model, *images).cpu()] = WRONG
            rng = RowRng(seed_of(seed, "evaluation", 0), indices.to(x.device))
            judge.judge(model, x, y, rng, part)
    finally:
        model.train(training)
    return outcomes


def share(world: World, judge: Ensemble) -> slice:
    """The places of the images that this process measures; the first one takes all where a verdict
    depends on the batch."""
    if getattr(judge, "by_batch", False):
        return slice(None) if world.first else slice(0)
    return world.own


def joined(world: World, outcomes: AttackOutcomes, own: slice) -> AttackOutcomes:
    """A measurement of several processes, each with its `own` places decided in its `outcomes`;
    their seconds add up."""
    parts = world.gather((own, outcomes.fell[own], outcomes.passed[own], outcomes.seconds))
    for places, fell, passed, _ in parts:
        outcomes.fell[places], outcomes.passed[places] = fell, passed
    outcomes.seconds = sum(seconds for *_, seconds in parts)
    return outcomes


def accuracy(flags: Tensor) -> dict[str, Any]:
    """`{"accuracy", "ci95", "images"}` of one flag per image."""
    right, images = int(flags.sum()), len(flags)
    low, high = wilson(right, images)
    return {"accuracy": right / max(1, images), "ci95": [low, high], "images": images}


def robustness(
    outcomes: AttackOutcomes, attack: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What `result.json` says of one attack; of an ensemble, also what each of its attacks left."""
    own = {key: value for key, value in asdict(attack).items() if key in ("eps", "norm", "steps")}
    if hasattr(attack, "step_size"):
        own["step"] = attack.step_size
    seconds = round(float(outcomes.seconds.sum()), 3)
    measured = {**accuracy(outcomes.robust), "seconds": seconds, **own}
    if hasattr(attack, "judge"):
        measured["attacks"] = members(outcomes)
    return {**measured, "settings": dict(settings)}


def members(outcomes: AttackOutcomes) -> dict[str, dict[str, Any]]:
    """For each attack of a sequence, in its order: accuracy after it, images that it felled."""
    return {
        name: {
            **accuracy(outcomes.left_by(k)),
            "felled": int((outcomes.fell == k).sum()),
            "seconds": round(float(outcomes.seconds[k]), 3),
        }
        for k, name in enumerate(outcomes.names)
    }
