"""Attacks: `attack(model, x, y, draws) -> x_adv`, images in [0, 1], eps and step in 1/255."""

from sat.attacks.autoattack import AutoAttack
from sat.attacks.clean import Clean
from sat.attacks.curve import Curve
from sat.attacks.fgsm import FGSM
from sat.attacks.pgd import PGD
from sat.attacks.strong import Strong

__all__ = ["FGSM", "PGD", "AutoAttack", "Clean", "Curve", "Strong"]
