"""A step as one CUDA graph: launched as a whole, so that a GPU no longer waits for Python."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat.rng import StepKey

# Calls that are taken one kernel at a time before: memory is made in the first, torch settles on
# its kernels, a compiler works; the last one is watched for questions to the host.
FIRST = 3

Step = Callable[..., Any]


class Graph:
    """Takes steps on tensors: `graph(step, *inputs)`; where it is `on`, as one graph after a few.

    Gives what the step gives: of a graph the same tensors each time, overwritten by the next call.
    The graph holds a step as it was captured, with every address: it reads what lies in memory when
    it is replayed. So a step must read from memory what changes (see `TrainState.begin`), write
    what it keeps in place, and ask the host for nothing. One that asks, or can't be captured for
    another reason, is taken as before, which is told in one line. Inputs of other shapes than those
    of the graph, such as a batch with unreadable images, are taken as before too.

    `key` is the key of the step's random numbers; `what` names the step in what is told; `undo`
    clears what a step leaves behind that was captured in part: none of it was computed.
    """

    def __init__(
        self,
        on: bool,
        key: StepKey,
        tell: Callable[[str], None],
        what: str,
        undo: Callable[[], None] = lambda: None,
    ):
        self.on, self.key, self._tell, self._what, self._undo = on, key, tell, what, undo
        self.forget()

    def forget(self) -> None:
        """Begins again: another step is taken from here on, in other memory."""
        self._taken = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, step: Step, *inputs: Tensor) -> Any:
        if self._replay is not None and _alike(self._inputs, inputs):
            torch._foreach_copy_([*self._inputs], [*inputs])
            self._replay()
            return self._outputs
        if not self.on or self._replay is not None:
            return step(*inputs)
        if self._taken == FIRST:
            return self._capture(step, *inputs)
        self._taken += 1
        with aside():
            return self._watch(step, *inputs) if self._taken == FIRST else step(*inputs)

    def _watch(self, step: Step, *inputs: Tensor) -> Any:
        with questions() as asked:
            outputs = step(*inputs)
        if asked:
            self._give_up(f"it asks the host ({asked[0]})")
        return outputs

    def _capture(self, step: Step, *inputs: Tensor) -> Any:
        """Captures the step, which computes nothing, and replays it."""
        self._inputs = tuple(map(torch.clone, inputs))
        self.key.sealed = True
        try:
            replay = record(lambda: self._keep(step(*self._inputs)))
        except Exception as error:  # torch raises many kinds, memory that runs out among them
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:200])
            self._undo()
        else:
            self._replay = replay
            self._tell(f"{self._what} is one CUDA graph from here on")
        finally:
            self.key.sealed = False
        if self._replay is None:
            return step(*inputs)
        self._replay()
        return self._outputs

    def _keep(self, outputs: Any) -> None:
        self._outputs = outputs

    def _give_up(self, reason: str) -> None:
        self.on, self._inputs, self._outputs = False, (), None
        self._tell(f"{self._what} is no CUDA graph, and goes on without: {reason}")


def _alike(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in theirs]


def record(call: Callable[[], None]) -> Callable[[], None]:
    """Captures what `call` launches on the GPU, without computing it; returns what replays it.

    Other threads, of which one pins images and one is autograd's, may ask the device meanwhile.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
    except BaseException:
        torch.cuda.set_stream(stream)  # torch would stay on that of the capture
        raise
    return graph.replay


@contextmanager
def aside() -> Iterator[None]:
    """Works on a stream of its own, as torch wants it for what is captured afterwards."""
    if not torch.cuda.is_available():
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def questions() -> Iterator[list[str]]:
    """Lists the places in which the host waits for the GPU; complete on leaving."""
    asked: list[str] = []
    if not torch.cuda.is_available():
        yield asked
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield asked
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing" in str(warning.message):
            asked.append(f"{Path(warning.filename).name}:{warning.lineno}")
