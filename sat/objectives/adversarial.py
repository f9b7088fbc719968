"""What is minimised: `objective(model, x, x_adv, y, label_smoothing) -> (loss, logits)`."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Adversarial:
    """Cross-entropy of the adversarial images alone (Madry et al. 2018; Xie et al. 2020)."""

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        logits = model(x_adv)
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing), logits
