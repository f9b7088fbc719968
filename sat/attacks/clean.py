"""No attack: normal training, the control of every adversarially trained model."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sat.attacks.ball import Norm
from sat.attacks.base import Attack
from sat.rng import RowRng


@dataclass(frozen=True)
class Clean(Attack):
    """Returns the images as they are: an attack whose eps is 0."""

    eps: ClassVar[float] = 0.0
    norm: ClassVar[Norm] = "linf"
    batch_norm: ClassVar[str] = "eval"
    loss: ClassVar[str] = "ce"

    def gradients(self, classes: int) -> int:
        return 0

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        return x
