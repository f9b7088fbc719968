"""Cross-entropy of the adversarial images."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sat.objectives.base import Objective, check_smoothing


@dataclass(frozen=True)
class Adversarial(Objective):
    """Cross-entropy of the adversarial images alone (Madry et al. 2018; Xie et al. 2020)."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        logits = model(x_adv)
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing), logits
