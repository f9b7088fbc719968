"""Adversarial images of another network: crafted on one, counted on the one that is measured (the
transfer of Papernot et al. 2016, "Transferability in machine learning")."""

import glob
import hashlib
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sat.arguments import check_choices
from sat.attacks.base import ball_of, row_rng
from sat.attacks.outcomes import AttackOutcomes, Ensemble, check_repeats, under_attack
from sat.errors import Refused
from sat.models.weights import load
from sat.rng import RowRng
from sat.rundir.result import RunResult


@dataclass(frozen=True)
class Transfer(Ensemble):
    """Has `method`, a plain attack, fool the network of another run, and shows the images that it
    gives to the network that is measured. `run` is the other's name, `place` its directory,
    `weights` a checksum of its `checkpoint`: for another the verdicts are others.

    Images that the measured network gets right are attacked, whether the other does so or not.
    """

    method: Any
    run_name: str
    weights: str
    place: str = field(metadata={"identity": False})
    checkpoint: Literal["best", "last"] = "best"
    batch_size: int = field(default=256, metadata={"identity": False})

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def names(self) -> tuple[str, ...]:
        return ("transfer",)

    @property
    def eps(self) -> float:
        return float(self.method.eps)

    @property
    def norm(self) -> Any:
        return self.method.norm

    @property
    def batch_norm(self) -> str:
        return self.method.batch_norm

    @property
    def loss(self) -> str:
        return self.method.loss

    def run(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes):
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
        other = _loaded(self.place, self.checkpoint, str(x.device))
        try:
            with torch.no_grad():
                classes = other(x[:1]).shape[1]
        except RuntimeError:
            classes = 0
        with torch.no_grad():
            if not len(x) or classes == model(x[:1]).shape[1]:
                return other
        raise Refused(
            f"evaluation.source={self.place}: is a network for other images or classes than those"
            " that are measured; name a run on the same data set"
        )


@cache
def _loaded(place: str, checkpoint: str, device: str) -> nn.Module:
    return load(place, checkpoint, device)


def transfers(source: str, method: Any, batch_size: int) -> dict[str, Transfer]:
    """One for each finished run that `source` names, a directory or a pattern such as outputs/*, by
    the run's hash. Raises ValueError, which begins with the key, where there is none."""
    places = sorted(glob.glob(os.path.expanduser(source)))
    found = {}
    for place in map(Path, places):
        checkpoint: Literal["best", "last"] = "best"
        if not (file := place / "checkpoints" / "best.pt").is_file():
            checkpoint, file = "last", file.with_name("last.pt")
        result = RunResult.read(place)
        if result is None or result.status != "finished" or not file.is_file():
            if len(places) > 1:
                continue
            raise ValueError(f"source={source}: is no finished run with a checkpoint (record.keep)")
        found[result.hash] = Transfer(
            method, place.name, checksum(file), str(place), checkpoint, batch_size
        )
    if not found:
        raise ValueError(
            f"source={source}: no such run; name a run directory, or a pattern of them"
        )
    return found


def checksum(file: Path) -> str:
    """Eight hex digits of a file's content."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:8]
