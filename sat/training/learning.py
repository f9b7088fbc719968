"""What attack, objective, regulariser and weight attack may remember, and learn from steps."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sat.distributed import World


@runtime_checkable
class Stateful(Protocol):
    """What has a memory; it lies on the device, and in the checkpoint."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Learning(Stateful, Protocol):
    """What learns from the training's steps, in place and on the device."""

    def settle(self, x: Tensor, batch: int) -> None:
        """Makes room before a step on a batch of so many images like x; changes nothing later."""
        ...

    def learn(self, sums: Tensor, broken: Tensor) -> None:
        """Told of a step, of all processes: loss, right answers, the regulariser's error and
        images, summed up; and whether it was skipped. What it reads in a step it changes here
        alone, so that parts and processes agree."""
        ...


@runtime_checkable
class Counting(Protocol):
    """What counts in its own calls; of all processes when it is to learn of the step."""

    @property
    def counted(self) -> Tensor:
        """Sums over this process's rows since the step began."""
        ...


class Learners:
    """The parts of a method that learn."""

    def __init__(self, parts: Iterable[Any], world: World):
        self.world, self.all = world, [part for part in parts if isinstance(part, Learning)]
        self._counting = [part for part in self.all if isinstance(part, Counting)]

    def settle(self, x: Tensor, batch: int) -> None:
        for part in self.all:
            part.settle(x, batch)

    def learn(self, sums: Tensor, broken: Tensor) -> None:
        if self._counting:
            self.world.add_([part.counted for part in self._counting])
        for part in self.all:
            part.learn(sums, broken)
