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
from sat.activations.recent import BentIdentity, CappedSoftplus, SmeLU, Squareplus
from sat.activations.surrogate import SurrogateReLU

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "Keep",
    "BentIdentity",
    "CappedSoftplus",
    "LeakyReLU",
    "Mish",
    "PReLU",
    "PSSiLU",
    "ParametricSoftplus",
    "ReLU",
    "SiLU",
    "SmeLU",
    "SmoothReLU",
    "Softplus",
    "Squareplus",
    "SurrogateReLU",
]
