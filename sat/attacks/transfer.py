"""Adversarial images of another network: crafted on one, counted on the one that is measured (the
transfer of Papernot et al. 2016, "Transferability in machine learning")."""

import glob
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sat.arguments import check_choices
from sat.attacks.ball import Norm
from sat.attacks.base import Attack, ball_of, check_fields, row_rng
from sat.attacks.determinism import check_repeats
from sat.attacks.outcomes import AttackOutcomes, Ensemble, under_attack
from sat.errors import Refused
from sat.identity import class_name
from sat.models.weights import load
from sat.rng import RowRng
from sat.rundir.result import RunResult
from sat.rundir.untrusted import read_yaml

log = logging.getLogger("sat")


@dataclass(frozen=True)
class Transfer(Ensemble, Attack):
    """Has `method`, a plain attack, fool the network of another run, and shows the images that it
    gives to the network that is measured. `run` is the other's name, `place` its directory,
    `weights` a checksum of its `checkpoint`: for another the verdicts are others.

    Images that the measured network gets right are attacked, whether the other does so or not.
    """

    method: Attack
    run_name: str
    weights: str
    place: str = field(metadata={"identity": False})
    checkpoint: Literal["best", "last"] = "best"
    batch_size: int = field(default=256, metadata={"identity": False})
    one_of_many: bool = field(default=False, metadata={"identity": False})  # named by a pattern

    def __post_init__(self) -> None:
        check_choices(self)
        check_method("method", self.method)

    @property
    def names(self) -> tuple[str, ...]:
        return ("transfer",)

    @property
    def eps(self) -> float:
        return self.method.eps

    @property
    def norm(self) -> Norm:
        return self.method.norm

    @property
    def batch_norm(self) -> str:
        return self.method.batch_norm

    @property
    def loss(self) -> str:
        return self.method.loss

    @property
    def fewest_classes(self) -> int:
        return self.method.fewest_classes

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises. Raises Refused for a network that
        answers otherwise each time, and for two that take other images or know other classes."""
        check_repeats(model, x[:8])
        other, ball = self._other(model, x), ball_of(self)
        with outcomes.attack(0) as left:
            for images in left.split(self.batch_size) if len(left) else ():
                rows = images.to(x.device)
                x_adv = self.method(other, x[rows], y[rows], rng[rows])
                verdict = under_attack(model, x_adv, x[rows], y[rows], ball)
                outcomes.decide(images, verdict.right, x_adv, verdict.tied)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] in [0, 1] and y [B] -> adversarial images of the other network."""
        return self.method(self._other(model, x), x, y, row_rng(rng, x))

    def _other(self, model: nn.Module, x: Tensor) -> nn.Module:
        try:
            other = _loaded(self.place, self.checkpoint, str(x.device))
        except ValueError as error:
            raise Refused(f"evaluation.source={self.place}: {error}") from None
        try:
            with torch.no_grad():
                classes = other(x[:1]).shape[1]
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                raise  # that says nothing of its images
            classes = 0
        with torch.no_grad():
            if not len(x) or classes == model(x[:1]).shape[1]:
                return other
        raise Refused(
            f"evaluation.source={self.place}: is a network for other images or classes than those"
            " that are measured; name a run on the same data set"
        )


def check_method(key: str, method: Attack) -> None:
    """Raises ValueError, which begins with the key, for an attack whose images can't be shown to
    another network."""
    if isinstance(method, Ensemble):
        raise ValueError(
            f"{key}={type(method).__name__}: leaves an image as it is that stands on the network"
            " where it is made, and the other would be shown clean ones; write a plain attack, PGD"
            " or APGD (evaluation=transfer)"
        )
    check_fields(method)


@cache
def _loaded(place: str, checkpoint: str, device: str) -> nn.Module:
    return load(place, checkpoint, device)


def transfers(source: str, method: Attack, batch_size: int) -> dict[str, Transfer]:
    """One for each finished run that `source` names, a directory or a pattern such as outputs/*, by
    the run's hash. Raises ValueError, which begins with the key, where there is none; what a
    pattern names besides is passed over, and told."""
    whole = Path(source).expanduser()
    is_pattern = not source or not whole.exists()
    names = glob.glob(os.path.expanduser(source)) if is_pattern else [str(whole)]
    found = {}
    for place in map(Path, sorted(names)):
        try:
            key, transfer = _of_run(place, method, batch_size, is_pattern)
        except ValueError as error:
            if not is_pattern:
                raise ValueError(f"source={source}: {error}") from None
            if (place / "config.yaml").is_file():
                _passed_over(str(place), str(error))
            continue
        found[key] = transfer
    if not found:
        why = f"{source}: no such run" if source else ": is not given"
        raise ValueError(f"source={why}; name a run directory, or a pattern of them: 'outputs/*'")
    return found


def _of_run(place: Path, method: Attack, size: int, one_of_many: bool) -> tuple[str, Transfer]:
    """The run's hash, and the attack on its network. Raises ValueError for one that has none."""
    checkpoint: Literal["best", "last"] = "best"
    if not (file := place / "checkpoints" / "best.pt").is_file():
        checkpoint, file = "last", file.with_name("last.pt")
    try:
        result = RunResult.read(place)
        if result is None or result.status != "finished" or not file.is_file():
            raise ValueError("is no finished run with a checkpoint (record.keep)")
        model = read_yaml(place / "config.yaml").get("model")
    except Refused as error:
        raise ValueError(str(error)) from None
    if isinstance(model, dict) and class_name(str(model.get("_target_"))) == "Given":
        raise ValueError("does not hold its network, which came from elsewhere")
    held = (method, place.name, checksum(file), str(place), checkpoint, size, one_of_many)
    return result.hash, Transfer(*held)


def drop_others(attacks: dict[str, Attack], dataset: Any, facts: Mapping[str, Any]) -> None:
    """Takes out of `attacks` those on networks of other data sets than the config's `dataset`, of
    which the run knows these `facts`, and tells so. Raises Refused for one that was named alone,
    and where none is left."""
    crafted = {name: a for name, a in attacks.items() if isinstance(a, Transfer)}
    for name, attack in crafted.items():
        if not (why := _differs(Path(attack.place), dataset, facts)):
            continue
        if not attack.one_of_many:
            raise Refused(f"evaluation.source={attack.place}: {why}; name a run on the same set")
        _passed_over(attack.place, why)
        del attacks[name]
    if crafted and not any(name in attacks for name in crafted):
        raise Refused("evaluation.source: names no run on the same data set")


def _differs(place: Path, dataset: Any, facts: Mapping[str, Any]) -> str | None:
    """How a run's images are others than these."""
    result, other = RunResult.read(place), read_yaml(place / "config.yaml").get("dataset")
    theirs = {} if result is None else result.dataset
    pairs: list[tuple[Any, ...]]
    pairs = [(key, theirs.get(key), facts.get(key)) for key in ("name", "classes")]
    if isinstance(other, dict):
        kind, here = (str(each.get("_target_")).rpartition(".")[2] for each in (other, dataset))
        pairs.append(("kind", kind, here))
        pairs.append(("image_size", other.get("image_size"), dataset.get("image_size")))
    for key, its, own in pairs:
        if its != own and (key == "image_size" or None not in (its, own)):
            return f"is of another data set ({key}: {its}, here {own})"
    return None


@cache
def _passed_over(place: str, why: str) -> None:
    log.warning("evaluation.source: %s is passed over: %s", place, why)


def checksum(file: Path) -> str:
    """Eight hex digits of a file's content."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:8]
