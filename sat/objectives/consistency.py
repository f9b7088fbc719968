"""Adversarial images of two views of an image, answered alike (Tack et al. 2022, 2103.04454)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_range
from sat.attacks.losses import divergences
from sat.objectives.base import Objective, check_beta, check_smoothing


@dataclass(frozen=True)
class Consistency(Objective):
    """CE(f(x'), y) over two augmentations of each image, + beta JSD(p1 || p2), the divergence of
    what is said of their adversarial images at `temperature`: p = softmax(f(x') / temperature).
    A step sees, and costs, two batches."""

    beta: float = 1.0
    temperature: float = 0.5
    label_smoothing: float = 0.0

    views: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_smoothing(self.label_smoothing)
        why = "divides logits, which leaves answers that are sure, or all alike"
        check_range("temperature", self.temperature, 1e-2, 100, why)

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of images [2B, C, H, W], first views first, and the logits [2B, K] of the
        adversarial ones."""
        logits = model(x_adv)
        entropy = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        one, two = (logits / self.temperature).log_softmax(1).chunk(2)
        never = torch.maximum(one, two) == -torch.inf  # two of them have no sum with a gradient
        middle = torch.logaddexp(*(p.masked_fill(never, 0.0) for p in (one, two))) - math.log(2)
        divergence = sum(divergences(p, middle).sum() / len(p) for p in (one, two)) / 2
        return entropy + self.beta * divergence, logits
