"""Networks: backbones, the classifier made of one, and weights from anywhere."""

from sat.models.backbones import (
    CifarResNet,
    Classifier,
    EfficientNet,
    PreActResNet,
    ResNet,
    Timm,
    WideResNet,
)

__all__ = [
    "CifarResNet",
    "Classifier",
    "EfficientNet",
    "PreActResNet",
    "ResNet",
    "Timm",
    "WideResNet",
]
