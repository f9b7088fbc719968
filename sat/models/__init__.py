"""Networks: backbones, the classifier made of one, weights from anywhere, export.

A class is imported when it is first asked for: torch and timm take seconds, and `sat-export --help`
waits for neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat.models.backbones import (
        CifarResNet,
        EfficientNet,
        PreActResNet,
        ResNet,
        Timm,
        WideResNet,
    )
    from sat.models.classifier import Classifier
    from sat.models.custom import Given

__all__ = [
    "CifarResNet",
    "Classifier",
    "EfficientNet",
    "Given",
    "PreActResNet",
    "ResNet",
    "Timm",
    "WideResNet",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sat.models' has no attribute {name!r}")
    module = {"Classifier": "classifier", "Given": "custom"}.get(name, "backbones")
    return getattr(import_module(f"sat.models.{module}"), name)
