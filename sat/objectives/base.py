"""What an objective is, and which loss the training's attack ascends for it."""

from typing import ClassVar, Protocol

from torch import Tensor, nn

from sat.attacks.base import Attack, resolved
from sat.errors import refusing


class Objective(Protocol):
    """What is minimised: the batch's mean loss, and the logits that accuracy is counted on.

    `views` is how many augmentations of an image a batch holds, first views first; `attack_loss`
    what the attack ascends under `attack.loss=auto`. An objective that asks for another loss than
    `ce` compares adversarial with clean images, and goes with no training without an attack.
    """

    views: ClassVar[int]
    attack_loss: ClassVar[str]

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images x and x_adv [B, C, H, W], y [B] or soft [B, K] -> loss [], logits [B, K]."""
        ...


def training_attack(attack: Attack, objective: Objective) -> Attack:
    """The attack of a training for this objective: `loss=auto` is the objective's. Validation and
    evaluation keep the attack that they were given, for which `auto` is cross-entropy."""
    with refusing("attack."):
        return resolved(attack, objective.attack_loss)


def check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: from 0 to below 1")
