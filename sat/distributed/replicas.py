"""Whose the weights of a training are: each process has all of them, or they are shared out."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sat.distributed.world import World


class Replicas:
    """The weights of a training, of which each process holds all.

    What a training asks of them; where they are shared out, `sharding.Shards` answers.
    """

    def __init__(self, world: World):
        self.world = world

    def place(self, model: nn.Module) -> nn.Module:
        """`model` as it is trained."""
        return model

    def measured(self, model: nn.Module) -> nn.Module:
        """One that was placed, as it is measured: whole. All processes must ask for it."""
        return model

    def images(self, own: int, batch: int) -> float:
        """How many images the loss is to be a mean over, in a process that has its `own` of all."""
        return own

    def local(self, tensors: list[Tensor]) -> list[Tensor]:
        """What this process holds of each."""
        return tensors

    def reduce_(self, gradients: list[Tensor], statistics: list[Tensor], sums: Tensor) -> None:
        """Makes means over the batch of means over this process's images, and sums of sums."""
        if self.world.size > 1:
            self.world.mean_([*gradients, *statistics], sums)

    def agree_(self, found: Tensor) -> None:
        """A flag of 0 or 1 becomes 1 where it is 1 in any process."""

    def whole(self, state: Any) -> Any:
        """Nested dicts and lists of tensors as one process would write them."""
        return state

    def share(self, state: Mapping[str, Any], of: nn.Module | Optimizer) -> dict[str, Any]:
        """A state dict of a whole model or optimiser, as `of`, which was placed, loads it."""
        return dict(state)
