"""No attack: normal training, the control of every adversarially trained model."""

from dataclasses import dataclass

from torch import Tensor, nn

from sat.draws import Draws


@dataclass(frozen=True)
class Clean:
    """Returns the images as they are."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws | None = None):
        return x
