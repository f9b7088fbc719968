"""What is minimised on (x, x_adv, y): `objective(model, x, x_adv, y) -> (loss, logits)`."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Adversarial:
    """Cross-entropy of the adversarial images alone (Madry et al. 2018; Xie et al. 2020)."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: from 0 to below 1")

    def __call__(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor):
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        logits = model(x_adv)
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing), logits
