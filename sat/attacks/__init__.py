"""Attacks: `attack(model, x, y, rng) -> x_adv`, images in [0, 1], eps and step in 1/255."""

from sat.attacks.autoattack import AutoAttack
from sat.attacks.clean import Clean
from sat.attacks.curve import Curve
from sat.attacks.ensemble import FastAutoAttack
from sat.attacks.fgsm import FGSM
from sat.attacks.pgd import PGD

__all__ = ["FGSM", "PGD", "AutoAttack", "Clean", "Curve", "FastAutoAttack"]
