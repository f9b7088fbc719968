"""Efficient local linearity (Abad Rocamora et al. 2024, arXiv 2401.11618)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.arguments import check_range
from sat.objectives.base import Regulariser
from sat.objectives.gradalign import check_noise, check_weight
from sat.rng import RowRng


@dataclass(frozen=True)
class ELLE(Regulariser):
    """Adds `weight` times the mean of (l(c) - (1 - a) l(x1) - a l(x2))^2, where l is the
    cross-entropy, x1 and x2 lie uniform within +-eps of the image and c = (1 - a) x1 + a x2, with a
    uniform in [0, 1]: 0 for a loss that is linear in the ball, and no double backward.

    Published weights: 1000 up to eps 8/255, 5000 from 10/255, 10000 from 22/255, for code that
    takes the optimiser's step twice a batch. `eps` is in 1/255.
    Its one forward of three times the batch is in training mode and moves the running statistics.
    """

    weight: float = 1000.0
    eps: float | str = 8.0

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        check_weight(self.weight)
        object.__setattr__(self, "eps", check_noise(self.eps))

    @property
    def strength(self) -> float | Tensor:
        return self.weight

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        rng: RowRng,
        epoch: Tensor | None = None,
    ) -> Tensor:
        """The mean squared error over the batch, []."""
        eps, shape = float(self.eps) / 255, x.shape[1:]
        first, second = (x + eps * (2 * rng.uniform(f"elle:{k}", *shape) - 1) for k in (1, 2))
        share = rng.uniform("elle:share", 1, 1, 1)
        between = (1 - share) * first + share * second
        logits, share = model(torch.cat([first, second, between])), share.flatten()
        losses = F.cross_entropy(logits, torch.cat([y] * 3), reduction="none")
        at_first, at_second, at_between = losses.chunk(3)
        return (at_between - (1 - share) * at_first - share * at_second).square().mean()


@dataclass(frozen=True)
class AdaptiveELLE(ELLE):
    """ELLE-A: the weight begins at 0, is `weight` in the step after an error that is above the mean
    of all errors so far by more than `sensitivity` standard deviations, and falls to its `decay` in
    every other: the regulariser works when the loss begins to bend."""

    weight: float = 4000.0
    sensitivity: float = 2.0
    decay: float = 0.99
    # the weight; how many errors there were, their mean, and the sum of squares around it
    _memory: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("sensitivity", self.sensitivity, 0, 1e6, "is in standard deviations")
        check_range("decay", self.decay, 1e-6, 1, "is what is left of the weight after a step")
        memory = torch.zeros(4, dtype=torch.float64)
        object.__setattr__(self, "_memory", memory)

    @property
    def strength(self) -> Tensor:
        """The weight of this step, on the device."""
        return self._memory[0].float()

    def settle(self, x: Tensor, batch: int) -> None:
        """Brings the memory to the images' device."""
        object.__setattr__(self, "_memory", self._memory.to(x.device))

    def learn(self, sums: Tensor, broken: Tensor) -> None:
        """Weighs the next step by this one's error, unless it was skipped."""
        weight, count, mean, squares = self._memory.unbind()
        error = (sums[2] / sums[3]).double()
        limit = mean + self.sensitivity * (squares / count.clamp(min=1)).sqrt()
        bent = (count > 2) & (error > limit)
        after = torch.where(bent, self.weight, self.decay * weight)
        nearer = mean + (error - mean) / (count + 1)
        more = squares + (error - mean) * (error - nearer)
        new = torch.stack([after, count + 1, nearer, more])
        self._memory.copy_(torch.where(broken, self._memory, new))

    def state_dict(self) -> dict[str, Tensor]:
        return {"memory": self._memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the memory of another regulariser."""
        memory = state.get("memory")
        if not isinstance(memory, Tensor) or memory.shape != (4,) or not memory.isfinite().all():
            raise ValueError("regulariser.memory is no history of errors")
        self._memory.copy_(memory)
