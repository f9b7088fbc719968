"""Cross-entropy of the adversarial images."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_choices
from sat.objectives.base import Objective, check_smoothing


@dataclass(frozen=True)
class Adversarial(Objective):
    """Cross-entropy of the adversarial images alone (Madry et al. 2018; Xie et al. 2020).

    Published code has more forwards in training mode, which move running statistics alone:
    `forwards=2` is the adversarial images once more before, for the loss of the attack's last point
    (Rice et al. 2020), and 3 the clean ones, for a log, at the end (there after the update).
    """

    label_smoothing: float = 0.0
    forwards: Literal[1, 2, 3] = 1

    def __post_init__(self) -> None:
        check_choices(self)
        check_smoothing(self.label_smoothing)

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        with torch.no_grad():
            if self.forwards > 1:
                model(x_adv)
        logits = model(x_adv)
        with torch.no_grad():
            if self.forwards > 2:
                model(x)
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing), logits
