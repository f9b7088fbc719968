"""What a training minimises."""

from sat.objectives.adversarial import Adversarial

__all__ = ["Adversarial"]
