"""MART: more of the loss where the clean image is misread (Wang et al. 2020, ICLR)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sat.attacks.losses import divergences, one_label
from sat.objectives.base import Objective, check_beta, check_smoothing


@dataclass(frozen=True)
class MART(Objective):
    """CE(f(x'), y) - log(1 - p'[k]) + beta KL(p || p') (1 - p[y]), means over the batch, with p and
    p' what the network says of clean and adversarial images, and k the class that is likeliest in
    p' but for y; the gradient flows into all. The small numbers are the published code's.
    """

    beta: float = 5.0
    label_smoothing: float = 0.0

    attacked: ClassVar[bool] = True
    one_label: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_smoothing(self.label_smoothing)

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        clean = model(x).log_softmax(1)
        logits = model(x_adv)
        p, q, label = clean.exp(), logits.softmax(1), one_label(y)[:, None]
        wrong = q.scatter(1, label, -1.0).amax(1)
        boosted = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        boosted = boosted - (1.0001 - wrong + 1e-12).log().mean()
        divergence = divergences(clean, (q + 1e-12).log()).sum(1)
        doubt = 1.0000001 - p.gather(1, label)[:, 0]
        return boosted + self.beta * (divergence * doubt).mean(), logits
