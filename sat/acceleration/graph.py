"""A step as one CUDA graph: launched as a whole, so that a GPU no longer waits for Python."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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
        self._taken = Counter[tuple[Any, ...]]()  # by the inputs' shapes
        self._shapes: tuple[Any, ...] = ()
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, step: Step, *inputs: Tensor) -> Any:
        shapes = tuple((t.shape, t.dtype) for t in inputs)
        if self._replay is not None and shapes == self._shapes:
            torch._foreach_copy_([*self._inputs], [*inputs])
            self._replay()
            return self._outputs
        if not self.on or self._replay is not None:
            return step(*inputs)
        with on_device(self.key.device):
            if self._taken[shapes] == FIRST:  # before any that are not the usual ones
                self._shapes = shapes
                return self._capture(step, *inputs)
            self._taken[shapes] += 1
            with aside():
                last = self._taken[shapes] == FIRST
                return self._watch(step, *inputs) if last else step(*inputs)

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
            self._give_up(_said(error))
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


def _said(error: BaseException) -> str:
    """The first of the errors that led to this one, and where: the end of a capture that was
    invalidated raises another, which says neither."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    (*_, last) = traceback.extract_tb(error.__traceback__) or [None]
    where = f" ({Path(last.filename).name}:{last.lineno})" if last else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200] + where


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """What is captured is what the current device is asked for, whatever others are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def record(call: Callable[[], None]) -> Callable[[], None]:
    """Captures what `call` launches on the current GPU, without computing it; returns what replays
    it. Raises where it launches nothing.

    Other threads, of which one pins images and one is autograd's, may ask the device meanwhile. A
    stream of its own: matrix products of graphs that were captured on one share their workspace,
    which two that run at once would overwrite.
    """
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The CUDA Graph is empty")
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                call()
    except BaseException:
        torch.cuda.set_stream(before)  # torch would stay on that of the capture
        _clean_up(before.device_index, pool)
        raise
    return graph.replay


def _clean_up(device: int, pool: Any) -> None:
    """After an invalidated capture: torch 2.11 goes on to take memory for it, and its generator to
    believe in it, so that the next capture and the next draw of a dropout would fail."""
    with suppress(RuntimeError, AttributeError):  # a torch that has cleaned up itself says so
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def aside() -> Iterator[None]:
    """Works on a stream of its own, as torch wants it for what is captured afterwards."""
    if not torch.cuda.is_available():
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # what is put back after a fault comes after what was begun
        torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def questions() -> Iterator[list[str]]:
    """Lists the places in which the host waits for the GPU; complete on leaving."""
    asked: list[str] = []
    if not torch.cuda.is_available():
        yield asked
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")  # which warns of itself, once
            yield asked
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            asked.append(f"{Path(warning.filename).name}:{warning.lineno}")
