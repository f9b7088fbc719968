"""Networks: backbones, the classifier made of one, weights from anywhere, export."""

from sat.models.backbones import (
    CifarResNet,
    EfficientNet,
    PreActResNet,
    ResNet,
    Timm,
    WideResNet,
)
from sat.models.classifier import Classifier

__all__ = [
    "CifarResNet",
    "Classifier",
    "EfficientNet",
    "PreActResNet",
    "ResNet",
    "Timm",
    "WideResNet",
]
