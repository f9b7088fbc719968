"""The loop: steps, and who looks on between them."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor

from sat.training.memory import attempt
from sat.training.state import TrainState

Stream = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


class Watching(Protocol):
    """What looks on while `fit` works: it changes no weight, and draws from no generator of the
    training."""

    def log(self, state: TrainState) -> None: ...
    def validate(self, state: TrainState) -> None: ...
    def look(self, state: TrainState) -> None: ...


def fit(state: TrainState, stream: Stream, callbacks: Watching) -> None:
    """Trains on what is left of the plan; `stream` gives the batches from a step on."""
    for x, y in stream(state.step):
        attempt(state, x, y)
        if state.plan.logs(state.step):
            callbacks.log(state)
        if state.plan.validates(state.step):
            callbacks.validate(state)
        callbacks.look(state)
