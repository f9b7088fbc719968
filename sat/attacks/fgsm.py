"""The fast gradient sign method (Goodfellow et al. 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sat.arguments import Size
from sat.attacks.ball import Norm
from sat.attacks.base import Attack, Mode
from sat.attacks.losses import LossName
from sat.attacks.pgd import PGD
from sat.rng import RowRng


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of size eps from the clean image; PGD-1 is the same from a random start."""

    eps: Size = 8.0
    norm: Norm = "linf"
    batch_norm: Mode = "eval"
    loss: LossName = "auto"
    label_smoothing: float = 0.0
    target: int | None = None

    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.loss == "kl":
            raise ValueError(
                "loss=kl: has no gradient at the clean images, where FGSM begins; write attack=pgd"
                " attack.start=normal attack.noise=0.255"
            )
        object.__setattr__(self, "eps", self.pgd.eps)  # its checks are ours

    @property
    def pgd(self) -> PGD:
        return PGD(self.eps, 1, "auto", self.norm, "none", batch_norm=self.batch_norm,
                   loss=self.loss, label_smoothing=self.label_smoothing,
                   target=self.target)  # fmt: skip

    def gradients(self, classes: int) -> int:
        return 1

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        return self.pgd(model, x, y, rng, progress)
