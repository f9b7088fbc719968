"""The smallest perturbation that fools each image, by the attacks of `adv_lib`: FMN (Pintor et al.
2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints") and, in L2, DDN
(Rony et al. 2019, "Decoupling direction and norm")."""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sat.acceleration.folding import fold
from sat.acceleration.precision import autocast_of
from sat.arguments import Size, check_ball, check_choices
from sat.attacks.ball import Ball, Norm
from sat.attacks.base import frozen
from sat.attacks.determinism import check_repeats
from sat.attacks.outcomes import STANDS, AttackOutcomes, Ensemble, under_attack
from sat.errors import Refused
from sat.rng import RowRng

LEVELS = 100  # of a curve
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


@dataclass(frozen=True)
class Level:
    """A point of the curve, as an attack is told there."""

    eps: float  # in 1/255
    steps: int
    target: ClassVar[None] = None
    fewest_classes: ClassVar[int] = 1

    def check_size(self, height: int, width: int) -> None:
        """Takes images of any size."""


@dataclass(frozen=True)
class MinimalNorm(Ensemble):
    """A curve of what stands at each of LEVELS sizes up to `most` times `eps`: an image falls at
    the first that is as large as the smallest perturbation found.

    FMN takes `steps` from the image, DDN as many in L2; the model itself decides each of their
    points, in float32. They are upper bounds: no image needs more. `eps` is in 1/255.
    """

    eps: Size = 8.0
    norm: Norm = "linf"
    steps: int = 100
    most: float = 4.0
    over: Literal["eps"] = "eps"
    batch_size: int = field(default=256, metadata={"identity": False})

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        if self.steps < 1 or self.batch_size < 1 or not self.eps:
            raise ValueError(
                f"eps={self.eps} steps={self.steps} batch_size={self.batch_size}: must be above 0"
            )
        if not 0 < self.most < math.inf:
            raise ValueError(f"most={self.most}: is a multiple of eps, above 0")

    @property
    def attack(self) -> Level:
        """The size and length that the curve is drawn for."""
        return Level(float(self.eps), self.steps)

    @property
    def attacks(self) -> list[Level]:
        """The points of the curve."""
        step = self.most * float(self.eps) / LEVELS
        return [Level(k * step, self.steps) for k in range(LEVELS + 1)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"eps={level.eps:g}" for level in self.attacks)

    def gradients(self, classes: int) -> int:
        """Input gradients for an image that stands, DDN's among them."""
        return self.steps * (2 if self.norm == "l2" else 1)

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises; a batch as a whole. Raises Refused
        without `adv_lib`, and for a network that answers otherwise each time."""
        check_repeats(model, x[:8])
        sizes = torch.tensor([level.eps / 255 for level in self.attacks])
        with frozen(model, "eval"):
            with outcomes.attack(0) as left:
                for images in left.split(self.batch_size) if len(left) else ():
                    rows = images.to(x.device)
                    found = self.distances(model, x[rows], y[rows]).cpu()
                    outcomes.fell[images] = _fallen(found, sizes)
                    outcomes.passed[images] = len(sizes)
                    outcomes.changed(len(images))

    def distances(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The smallest perturbation found of images [B], as a share of the pixel range; inf where
        none was. The model is in eval mode and gets x right."""
        network = fold(model, x[:2], autocast_of(model)).net
        smallest = torch.full(y.shape, torch.inf, device=x.device)
        for attack in _attacks(self.norm, self.steps):
            points = attack(network, x, y).detach().clamp(0, 1)
            size = Ball(1.0, self.norm).size(points - x).flatten()
            whole = Ball(math.inf, self.norm)  # any distance will do
            fooled = ~under_attack(model, points, x, y, whole).right
            smallest = torch.where(fooled & (size < smallest), size, smallest)
        return smallest


def _fallen(distances: Tensor, sizes: Tensor) -> Tensor:
    """The first of `sizes`, ascending, that is as large as each distance [B]; STANDS for none."""
    first = torch.bucketize(distances, sizes * (1 + 1e-5))
    return torch.where(first < len(sizes), first, STANDS).to(torch.int16)


def _attacks(norm: str, steps: int) -> list[Callable[..., Tensor]]:
    library = adv_lib()

    def fmn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return library.fmn(model, x, y, norm=ORDER[norm], steps=steps)

    def ddn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return library.ddn(model, x, y, steps=steps, levels=None)

    return [fmn, ddn] if norm == "l2" else [fmn]


def adv_lib() -> Any:
    """`adv_lib.attacks`. It imports visdom, which draws its progress in a browser, is not used
    here, and can't be built with today's setuptools: an empty module stands in where it lacks."""
    stands_in = "visdom" not in sys.modules
    try:
        if stands_in:
            sys.modules["visdom"] = ModuleType("visdom")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports distutils
            import adv_lib.attacks as library
    except ImportError as error:
        raise Refused(
            f"evaluation=minimal_norm: needs adv-lib ({error}): pip install --no-deps adv-lib, and"
            " from Python 3.12 on setuptools"
        ) from None
    finally:
        if stands_in:
            sys.modules.pop("visdom", None)
    return library
