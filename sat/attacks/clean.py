"""No attack: normal training, the control of every adversarially trained model."""

from dataclasses import dataclass

from torch import Tensor, nn

from sat.rng import RowRng


@dataclass(frozen=True)
class Clean:
    """Returns the images as they are."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng | None = None):
        return x
