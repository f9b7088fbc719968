"""Attacks: `attack(model, x, y, rng) -> x_adv`, images in [0, 1], eps and step in 1/255."""

from sat.attacks.apgd import APGD
from sat.attacks.autoattack import AutoAttack
from sat.attacks.base import Attack
from sat.attacks.clean import Clean
from sat.attacks.curve import Curve
from sat.attacks.ensemble import FastAutoAttack
from sat.attacks.fab import FAB
from sat.attacks.fgsm import FGSM
from sat.attacks.free import Free
from sat.attacks.minimal_norm import MinimalNorm
from sat.attacks.multi import Multi
from sat.attacks.outcomes import Ensemble
from sat.attacks.pgd import PGD
from sat.attacks.square import Square
from sat.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Clean",
    "Curve",
    "Ensemble",
    "FastAutoAttack",
    "Free",
    "MinimalNorm",
    "Multi",
    "Square",
    "Transfer",
]
