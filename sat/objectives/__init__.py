"""Objectives: `objective(model, x, x_adv, y) -> (loss, logits)`."""

from sat.objectives.adversarial import Adversarial
from sat.objectives.base import Objective, training_attack
from sat.objectives.trades import TRADES

__all__ = ["TRADES", "Adversarial", "Objective", "training_attack"]
