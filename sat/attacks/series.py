"""Attacks one after the other, each on what the ones before have left."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sat.acceleration.folding import fold
from sat.acceleration.precision import autocast_of
from sat.attacks.base import Attack, ball_of
from sat.attacks.determinism import check_repeats
from sat.attacks.outcomes import AttackOutcomes, Ensemble, under_attack
from sat.attacks.quick import Quick, is_quick
from sat.rng import RowRng


@dataclass(frozen=True)
class Series(Ensemble):
    """Plain attacks (`attack(model, x, y, rng) -> x_adv`) in their order, by batches of the
    images that still stand; each attack has random numbers of its own. They search the folded
    model, and the model itself decides, of points in the attack's ball alone.

    Raises Refused for a model that answers otherwise each time.
    """

    names: tuple[str, ...]
    attacks: Sequence[Attack]
    batch_size: int

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises."""
        check_repeats(model, x[:8])
        attack_model = None
        for k, attack in enumerate(self.attacks):
            own = (rng.child("series", k) if k else rng).to(x.device)
            ball = ball_of(attack)
            with outcomes.attack(k) as left:
                for images in left.split(self.batch_size) if len(left) else ():
                    rows = images.to(x.device)
                    attack_model = attack_model or fold(model, x[:2], autocast_of(model)).net
                    x_adv = attack(attack_model, x[rows], y[rows], own[rows])
                    verdict = under_attack(model, x_adv, x[rows], y[rows], ball)
                    outcomes.decide(images, verdict.right, x_adv, verdict.tied)


def ensemble_of(attack: Attack, restarts: int, batch_size: int, quick: bool = False) -> Ensemble:
    """The attack itself, if it is an ensemble; else as many restarts of it, by its letter or as
    `sat.attacks.quick` searches."""
    if isinstance(attack, Ensemble):
        return attack
    if quick and is_quick(attack):
        return Quick(attack, restarts, batch_size)
    names = tuple(f"restart {k + 1}" for k in range(restarts))
    return Series(names, [attack] * restarts, batch_size)
