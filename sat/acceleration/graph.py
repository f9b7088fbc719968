"""A step as one CUDA graph: launched as a whole, so that a GPU no longer waits for Python."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sat.rng import StepKey

# Calls that are taken one kernel at a time before: memory is made in the first, torch settles on
# its kernels, a compiler works; the last one is watched for questions to the host.
FIRST = 3

Step = Callable[..., None]


class Graph:
    """Takes steps on tensors: `graph(step, *inputs)`; where it is `on`, as one graph after a few.

    The graph holds a step as it was captured, with every address: it reads what lies in memory when
    it is replayed. So a step must read from memory what changes (see `TrainState.begin`), write
    what it keeps in place, and ask the host for nothing. One that asks, or can't be captured for
    another reason, is taken as before, which is told in one line. Inputs of other shapes than those
    of the graph, such as a batch with unreadable images, are taken as before too.

    `key` is the key of the step's random numbers; `undo` clears what a step leaves behind that was
    captured in part: none of it was computed.
    """

    def __init__(
        self, on: bool, key: StepKey, undo: Callable[[], None], tell: Callable[[str], None]
    ):
        self.on, self._key, self._undo, self._tell = on, key, undo, tell
        self.forget()

    def forget(self) -> None:
        """Begins again: another step is taken from here on, in other memory."""
        self._taken = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], None] | None = None

    def __call__(self, step: Step, *inputs: Tensor) -> None:
        if self._replay is not None and _alike(self._inputs, inputs):
            torch._foreach_copy_([*self._inputs], [*inputs])
            self._replay()
        elif not self.on or self._replay is not None:
            step(*inputs)
        elif self._taken < FIRST:
            self._taken += 1
            with aside():
                self._watch(step, *inputs) if self._taken == FIRST else step(*inputs)
        else:
            self._capture(step, *inputs)

    def _watch(self, step: Step, *inputs: Tensor) -> None:
        with questions() as asked:
            step(*inputs)
        if asked:
            self._give_up(f"it asks the host ({asked[0]})")

    def _capture(self, step: Step, *inputs: Tensor) -> None:
        """Captures the step, which computes nothing, and replays it."""
        self._inputs = tuple(map(torch.clone, inputs))
        self._key.sealed = True
        try:
            replay = record(lambda: step(*self._inputs))
        except Exception as error:  # torch raises many kinds, memory that runs out among them
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:200])
            self._undo()
        else:
            self._replay = replay
            self._tell("taken as one CUDA graph from here on")
        finally:
            self._key.sealed = False
        self._replay() if self._replay else step(*inputs)

    def _give_up(self, reason: str) -> None:
        self.on, self._inputs = False, ()
        self._tell(f"no CUDA graph of a step: {reason}; steps go on without (schedule.graph=false)")


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
