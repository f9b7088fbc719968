"""Robust accuracy along a growing attack: over the size of the ball, or over the steps taken."""

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from sat.arguments import MOST_STEPS, check_choices, check_range
from sat.attacks.ball import Norm
from sat.attacks.clean import Clean
from sat.attacks.outcomes import AttackOutcomes, Ensemble
from sat.attacks.pgd import PGD
from sat.attacks.series import Series
from sat.rng import RowRng


@dataclass(frozen=True)
class Curve(Ensemble):
    """`attack` at each of `values`, ascending: multiples of its eps, or numbers of steps.

    A point of a smaller ball lies in the larger one, and who may take more steps may take fewer:
    an image that fell stays fallen, so a curve never rises.
    """

    attack: PGD
    over: Literal["eps", "steps"]
    values: tuple[float, ...]
    batch_size: int = field(default=256, metadata={"identity": False})

    def __post_init__(self) -> None:
        check_choices(self)
        values = tuple(self.values)
        object.__setattr__(self, "values", values)
        if not isinstance(self.attack, PGD):
            raise ValueError(f"attack={self.attack}: curves are drawn with attack=pgd")
        if not values or list(values) != sorted(set(values)) or not values[0] >= 0:
            raise ValueError(f"values={list(values)}: must ascend, from 0 or above")
        most = 1e6 if self.over == "eps" else MOST_STEPS
        check_range("values", values[-1], 0, most, "is more than any ball or ascent has")
        if self.over == "steps" and any(v != int(v) or v < 1 for v in values):
            raise ValueError(f"values={list(values)}: steps are whole numbers from 1 on")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")

    @property
    def norm(self) -> Norm:
        return self.attack.norm

    @property
    def attacks(self) -> list[PGD]:
        """One for each value."""
        if self.over == "steps":
            return [replace(self.attack, steps=int(value)) for value in self.values]
        return [_scaled(self.attack, value) for value in self.values]

    @property
    def names(self) -> tuple[str, ...]:
        points = ((a.eps if self.over == "eps" else a.steps) for a in self.attacks)
        return tuple(f"{self.over}={point:g}" for point in points)

    def gradients(self, classes: int) -> int:
        """Input gradients for an image that stands; a ball of no size takes no step."""
        return sum(attack.steps for attack in self.attacks if attack.eps)

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises."""
        attacks = [attack if attack.eps else Clean() for attack in self.attacks]
        Series(self.names, attacks, self.batch_size).run(model, x, y, rng, outcomes)


def _scaled(attack: PGD, factor: float) -> PGD:
    """The attack in a ball of another size; what is asked of an eps that somebody types does not
    hold here: 3/4 of 1/255 is no unit mistaken, and a ball may be larger than the pixels' range."""
    other = replace(attack)
    object.__setattr__(other, "eps", factor * attack.eps)
    return other
