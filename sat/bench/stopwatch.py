"""Times calls side by side: a round times each of them once, in an order drawn anew, so that what
else the machine does falls on all alike; ratios are taken within a round."""

import math
import random
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sat.acceleration import auto
from sat.acceleration.auto import bf16_pays, settle
from sat.bench.counting import Counted

WARMING = {"cpu": 1, "cuda": 5}  # calls; a step becomes a CUDA graph in the fourth
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the peak
COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes that a copy reads and writes: no cache holds them
COPY = "memory copy"
Rounds = np.ndarray  # a number for each round


def plain() -> dict[str, Any]:
    """What is chosen where nobody chooses."""
    return {"threads": auto.THREADS, "tf32": None}


@dataclass(frozen=True)
class Timed:
    """A call, what it runs within, and the threads and TF32 that it has (None: torch's): all that
    is entered before the clock starts. `work` is what a call does, in FLOP or bytes, of those that
    are there for their rate."""

    run: Callable[[], object]
    within: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()
    choices: Mapping[str, Any] = field(default_factory=plain)
    work: int = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        settle(self.choices)
        with ExitStack() as stack:
            for enter in self.within:
                stack.enter_context(enter())
            yield

    def counted(self) -> Counted:
        """What one call computes, moves and keeps; it must run eagerly."""
        with self.entered(), Counted() as found:
            self.run()
        return found


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on a device in so many rounds, of which none but the first begins after `until`,
    of the monotonic clock."""

    device: torch.device
    rounds: int
    until: float = math.inf

    def times(self, calls: Mapping[str, Timed]) -> dict[str, Rounds]:
        """Seconds of one call of each; before the rounds each is called untimed, which compiles it
        and fills what it keeps."""
        order, draw = [*calls], random.Random(0)
        blocks, times = dict.fromkeys(calls, 0), {name: list[float]() for name in calls}
        for name in order:
            self.clocked(calls[name], WARMING[self.device.type])
        for number in range(self.rounds):
            if number and time.monotonic() > self.until:
                break
            draw.shuffle(order)
            for name in order:
                blocks[name], taken = self.clocked(calls[name], blocks[name])
                times[name].append(taken / blocks[name])
        return {name: np.array(rounds) for name, rounds in times.items()}

    def clocked(self, call: Timed, block: int) -> tuple[int, float]:
        """A block of calls, and its seconds; 0: as many as take 0.2 seconds, which is a thousand
        times what the clock costs, and waiting for a GPU around the block."""
        with call.entered():
            timer = timeit.Timer(call.run, timer=self.clock)
            return (block, timer.timeit(block)) if block else timer.autorange()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def busy(self, call: Timed) -> float | None:
        """The share in percent of twenty calls' time in which a GPU computes or copies, by torch's
        profiler; None on a CPU."""
        if self.device.type != "cuda":
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            _, seconds = self.clocked(call, 20)
        each = [e for e in found.key_averages() if e.device_type == DeviceType.CUDA]
        return 1e-4 * sum(e.self_device_time_total for e in each) / seconds

    def beside_ceilings(
        self, calls: Mapping[str, Timed]
    ) -> tuple[dict[str, Rounds], dict[str, Rounds]]:
        """Seconds of the calls and, of the same rounds, the rates of the machine's ceilings."""
        tops = ceilings(self.device)
        times = self.times({**calls, **tops})
        return times, {name: top.work / times.pop(name) for name, top in tops.items()}


def ceilings(device: torch.device) -> dict[str, Timed]:
    """What the machine can do at best. Products in float32, as its settings have it, and in bf16
    where it is fast here; and a large copy, whose work is the bytes that it reads and writes."""
    side, moved = SIDE[device.type], COPIED[device.type]
    types = {"float32 product": torch.float32}
    if bf16_pays(device.type):
        types["bf16 product"] = torch.bfloat16
    found = {}
    for name, dtype in types.items():
        # random numbers: a GPU draws less power, and clocks higher, on zeros
        a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        found[name] = Timed(partial(torch.mm, a, b, out=out), work=2 * side**3)
    source, target = torch.randn(2, moved // 8, device=device)
    return {**found, COPY: Timed(partial(target.copy_, source), work=moved)}


def peak(rates: Mapping[str, Rounds]) -> Rounds:
    """FLOP/s of the fastest product."""
    return max((rate for name, rate in rates.items() if name != COPY), key=np.max)


def spread(values: Rounds) -> dict[str, float]:
    """The median of some rounds, and the quartiles low and high."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "low": low, "high": high}


def row_of(name: str, images: int, rounds: Rounds) -> dict[str, Any]:
    """What a table tells of calls that take so many images each."""
    rate = images / float(np.median(rounds))
    return {"name": name, "ms": spread(1e3 * rounds), "images/s": rate}
