"""The fast gradient sign method (Goodfellow et al. 2015)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sat.attacks.pgd import PGD
from sat.rng import RowRng


@dataclass(frozen=True)
class FGSM:
    """One step of size eps from the clean image; PGD-1 is the same from a random start."""

    eps: float = 8.0
    norm: Literal["linf", "l2"] = "linf"
    batch_norm: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        assert self.pgd  # its checks are ours

    @property
    def pgd(self) -> PGD:
        return PGD(self.eps, 1, "auto", self.norm, random_start=False, batch_norm=self.batch_norm)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng | None = None):
        return self.pgd(model, x, y, rng)
