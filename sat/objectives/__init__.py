"""What is minimised, `objective(model, x, x_adv, y) -> (loss, logits)`; regularisers and attacks on
the weights beside it."""

from sat.objectives.adversarial import Adversarial
from sat.objectives.awp import AWP
from sat.objectives.base import (
    Method,
    Objective,
    Regulariser,
    Unperturbed,
    Unregularised,
    WeightAttack,
    training_attack,
)
from sat.objectives.consistency import Consistency
from sat.objectives.elle import ELLE, AdaptiveELLE
from sat.objectives.gradalign import GradAlign
from sat.objectives.gradient_norm import GradientNorm
from sat.objectives.mart import MART
from sat.objectives.trades import TRADES

__all__ = [
    "ELLE",
    "AdaptiveELLE",
    "GradAlign",
    "AWP",
    "MART",
    "TRADES",
    "Adversarial",
    "Consistency",
    "GradientNorm",
    "Method",
    "Objective",
    "Regulariser",
    "Unperturbed",
    "Unregularised",
    "WeightAttack",
    "training_attack",
]
