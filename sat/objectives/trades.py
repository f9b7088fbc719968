"""TRADES: clean accuracy against robustness (Zhang et al. 2019, arXiv 1901.08573)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_choices
from sat.objectives.base import check_smoothing


@dataclass(frozen=True)
class TRADES:
    """CE(f(x), y) + beta KL(p(x) || p(x')), means over the batch; the gradient flows into both
    sides of the divergence, and the attack ascends it. `beta` is the paper's 1/lambda.

    `forwards=3` computes the clean logits once more for the divergence, as the published code does:
    the same numbers, but the running statistics move once more.
    """

    beta: float = 6.0
    forwards: Literal[2, 3] = 2
    label_smoothing: float = 0.0

    views: ClassVar[int] = 1
    second_order: ClassVar[bool] = False
    attack_loss: ClassVar[str] = "kl"

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta={self.beta}: must be finite, 0 or above")
        check_smoothing(self.label_smoothing)

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        clean = model(x)
        natural = F.cross_entropy(clean, y, label_smoothing=self.label_smoothing)
        logits = model(x_adv)
        again = model(x) if self.forwards == 3 else clean
        p, q = again.log_softmax(1), logits.log_softmax(1)
        return natural + self.beta * F.kl_div(q, p, reduction="batchmean", log_target=True), logits
