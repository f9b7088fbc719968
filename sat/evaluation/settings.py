"""What is measured of a trained model, and how `best` is chosen while it trains."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sat.arguments import check_choices, check_range
from sat.attacks import Attack, Clean, Curve, Ensemble, MinimalNorm
from sat.attacks.base import check_fields
from sat.attacks.quick import is_quick
from sat.attacks.transfer import Transfer, check_method, transfers
from sat.identity import Settings, settings_of
from sat.rundir.result import CHECKPOINTS, CLEAN, CORRUPTIONS, WORST, Chosen

TAKEN = (CLEAN, WORST, CORRUPTIONS)  # names of what a result holds beside attacks
MOST_RESTARTS = 10_000


@dataclass(frozen=True)
class Evaluation:
    """Which attacks measure a trained model, each under its own name.

    An image is robust when no restart of the attack fools the model. `curves` follow robust
    accuracy over the size or the length of an attack. `checkpoints` may name `best`, `last` and,
    of a run with weight averaging, `last_raw`, the last weights themselves. `limit` takes the
    first test images of a set with a canonical order, a class-balanced part of any other;
    `subset_seed` draws another part. On `masking_checks` of them (0: none) it is asked afterwards
    whether the numbers are to be believed. `search=fast` lets PGD search as `sat.attacks.quick`
    says; `exact` takes it to the letter: all steps with every image, in float32. With a `source`,
    a run or a pattern of several, the attacks' images are made on those runs' networks, and each
    result is called `<attack>_<hash of the run>`. `corruptions` is the folder of a published set of
    corrupted test images, see `sat.data.corrupted`; `limit` holds for each type and severity.
    """

    attacks: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ("last", "best")
    restarts: int = 1
    limit: int | None = None
    subset_seed: int | None = None
    masking_checks: int = 128
    batch_size: int = 256
    search: Literal["fast", "exact"] = "fast"
    source: str | None = None
    corruptions: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if (images := self.masking_checks) < 0:
            raise ValueError(f"masking_checks={images}: is a number of images; 0 checks nothing")
        for key in ("restarts", "batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
        check_range("restarts", self.restarts, 1, MOST_RESTARTS, "is more than anybody waits for")
        for name, attack in self.attacks.items():
            check_attack(f"attacks.{name}", attack)
            several = isinstance(attack, Ensemble)
            if self.restarts > 1 and (several or not attack.random):
                why = "has starts of its own" if several else "begins at the same point each time"
                raise ValueError(
                    f"restarts={self.restarts}: attacks.{name} {why}; write restarts=1, or an"
                    " attack with start=uniform, evaluation=pgd20 say"
                )
        if self.source is not None:
            if self.curves or self.restarts > 1:
                raise ValueError(f"source={self.source}: takes neither curves nor restarts")
            object.__setattr__(self, "attacks", self._transferred(self.source))
        for name, curve in self.curves.items():
            if not isinstance(curve, Curve | MinimalNorm):
                raise ValueError(f"curves.{name}={curve}: is no curve; see evaluation=curves")
            if name in self.attacks:
                raise ValueError(f"curves.{name}: an attack has this name; take another")
            if isinstance(curve, Curve):
                check_attack(f"curves.{name}.attack", curve.attack)
        if self.curves and self.restarts > 1:
            raise ValueError(f"restarts={self.restarts}: curves take one start a point; write 1")
        self._check_names()
        unknown = [name for name in self.checkpoints if name not in CHECKPOINTS]
        if unknown or not self.checkpoints:
            known = ", ".join(CHECKPOINTS)
            raise ValueError(f"checkpoints={list(self.checkpoints)}: choose from {known}")
        if self.corruptions is not None and not (
            self.corruptions.strip() and Path(self.corruptions).resolve().name
        ):
            raise ValueError(f"corruptions={self.corruptions}: name the folder of the set")
        if self.corruptions is not None and self.subset_seed is not None:
            raise ValueError(
                f"subset_seed={self.subset_seed}: no other part of corruptions is drawn"
            )
        if self.subset_seed is not None and self.limit is None:
            raise ValueError(f"subset_seed={self.subset_seed}: draws a part; set limit as well")

    def _check_names(self) -> None:
        for name in self.measured_by:
            plain = str(name).replace("_", "").replace(".", "")
            if not isinstance(name, str) or not plain.isalnum() or name in TAKEN:
                raise ValueError(
                    f"{name}: letters, digits, '_' and '.' make a name, but {', '.join(TAKEN)}"
                )

    def _transferred(self, source: str) -> dict[str, Any]:
        """The attacks, on the network of each run that `source` names."""
        for name, attack in self.attacks.items():
            check_method(f"attacks.{name}", attack)
        return {
            f"{name}_{run}": transfer
            for name, attack in self.attacks.items()
            for run, transfer in transfers(source, attack, self.batch_size).items()
        }

    @property
    def worst_over(self) -> list[str]:
        """The attacks of the worst case: images of another network are none of this one's."""
        return [name for name, attack in self.attacks.items() if not isinstance(attack, Transfer)]

    @property
    def subset(self) -> Chosen:
        """Which test images: (limit, subset_seed)."""
        return (self.limit, self.subset_seed)

    @property
    def measured_by(self) -> dict[str, Any]:
        """Attacks and curves by name: all that leaves outcomes."""
        return {**self.attacks, **self.curves}

    def settings(self, name: str) -> Settings:
        """All that decides the outcomes of that attack or curve, to be kept beside them."""
        own = settings_of(self.measured_by[name])
        more: dict[str, Any] = {
            "restarts": self.restarts, "limit": self.limit, "subset_seed": self.subset_seed
        }  # fmt: skip
        if self.search == "exact" and is_quick(self.measured_by[name]):
            more["search"] = self.search
        usual = {"restarts"} if self.restarts == 1 else ()
        return Settings({"attack": own.pop("_target_"), **own, **more}, {*own.usual, *usual})


@dataclass(frozen=True)
class Validation:
    """How `best` is chosen: an attack on the held-out images, or on `limit` of them, every so many
    epochs.

    Where a run averages its weights, `best` is an average, or, with `weights=either`, the better of
    both, which costs a second measurement. Of equals the one with more clean accuracy is kept, then
    the earlier one; with `ties=later` the later one at once.
    """

    attack: Any = None
    every: float = 1.0
    batch_size: int = field(default=256, metadata={"identity": False})
    limit: int | None = None
    weights: Literal["average", "either"] = "average"
    ties: Literal["earlier", "later"] = "earlier"

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.every < math.inf:
            raise ValueError(f"every={self.every}: is a number of epochs above 0")
        for key in ("batch_size", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
        check_attack("attack", self.attack)


def check_attack(key: str, attack: Any) -> None:
    """Refuses what measures no robustness of the network as it will be deployed."""
    if not callable(attack) or isinstance(attack, Clean):
        raise ValueError(f"{key}={attack}: is no attack; name one of the options of attack")
    try:
        check_fields(attack)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    _check_measures(key, attack)
    if attack.batch_norm != "eval":
        raise ValueError(
            f"{key}.batch_norm={attack.batch_norm}: an image's verdict would depend on its batch;"
            " write eval"
        )
    try:
        settings_of(attack)  # which are kept beside what it measures
    except ValueError as error:
        raise ValueError(f"{key}={error}") from None


def _check_measures(key: str, attack: Attack) -> None:
    """Refuses what is for trainings alone."""
    if attack.reach > attack.eps:
        raise ValueError(
            f"{key}.project=false: no verdict is taken of an image outside of the ball; write true"
        )
    if attack.replays or len(attack.balls) > 1:
        raise ValueError(
            f"{key}={type(attack).__name__}: trains, and measures nothing; write attack=pgd, for"
            " several norms each as an attack of its own"
        )
    warmups = {"eps_warmup": attack.eps_warmup, "steps_warmup": attack.steps_warmup}
    for name, share in warmups.items():
        if share:
            raise ValueError(f"{key}.{name}={share}: is for a training; write 0")
