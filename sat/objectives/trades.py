"""TRADES: clean accuracy against robustness (Zhang et al. 2019, arXiv 1901.08573)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_choices
from sat.attacks.losses import divergences
from sat.objectives.base import Objective, check_beta, check_smoothing


@dataclass(frozen=True)
class TRADES(Objective):
    """CE(f(x), y) + beta KL(p(x) || p(x')), means over the batch; the gradient flows into both
    sides of the divergence, and the attack ascends it. `beta` is the paper's 1/lambda. The form
    of Gowal et al. (2010.03593) is beta=5, label_smoothing=0.1 and attack.batch_norm=train, from a
    uniform start; with attack.loss=ce the attack ascends cross-entropy in the divergence's place.

    `forwards=3` computes the clean logits once more for the divergence, as the published code does:
    the same numbers, but the running statistics move once more.
    """

    beta: float = 6.0
    forwards: Literal[2, 3] = 2
    label_smoothing: float = 0.0

    attack_loss: ClassVar[str] = "kl"
    attacked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choices(self)
        check_beta(self.beta)
        check_smoothing(self.label_smoothing)

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and the logits [B, K] of the adversarial images."""
        clean = model(x)
        natural = F.cross_entropy(clean, y, label_smoothing=self.label_smoothing)
        logits = model(x_adv)
        again = model(x) if self.forwards == 3 else clean
        p, q = again.log_softmax(1), logits.log_softmax(1)
        return natural + self.beta * divergences(p, q).sum() / len(x), logits
