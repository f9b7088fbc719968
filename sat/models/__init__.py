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
