"""Activations: functions, gradients that stand in for others, and the swap into a network."""

from sat.activations.functions import (
    CELU,
    ELU,
    GELU,
    Keep,
    LeakyReLU,
    Mish,
    ParametricSoftplus,
    PReLU,
    PSSiLU,
    ReLU,
    SiLU,
    SmoothReLU,
    Softplus,
)
from sat.activations.surrogate import SurrogateReLU

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "Keep",
    "LeakyReLU",
    "Mish",
    "PReLU",
    "PSSiLU",
    "ParametricSoftplus",
    "ReLU",
    "SiLU",
    "SmoothReLU",
    "Softplus",
    "SurrogateReLU",
]
