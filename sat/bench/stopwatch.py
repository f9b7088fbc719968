"""Times calls side by side: a round times each of them once, in an order drawn anew, so that what
else the machine does falls on all alike; ratios are taken within a round."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch

from sat.acceleration.auto import bf16_pays
from sat.acceleration.precision import set_tf32

SECONDS = 0.2  # of a block of calls: a thousand times the clock's and the synchronisation's cost
WARMING = {"cpu": 1, "cuda": 5}  # calls; a step becomes a CUDA graph in the fourth
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the peak
COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes that a copy reads and writes: no cache holds them
COPY = "memory copy"
Spread = dict[str, float]  # median, and the quartiles low and high
Times = dict[str, list[float]]  # seconds of one call in each round


@dataclass(frozen=True)
class Timed:
    """A call, and what it runs within: that is entered before the clock starts."""

    run: Callable[[], object]
    within: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            for enter in self.within:
                stack.enter_context(enter())
            yield

    def under(self, choices: Mapping[str, Any]) -> "Timed":
        """Puts a loop's settings around the call."""
        return Timed(self.run, (partial(settings, choices), *self.within))


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at best: FLOP/s of large matrix products, and bytes/s, read and
    written, of a large copy, in each round."""

    rates: Times

    @property
    def product(self) -> list[float]:
        """The rates of the fastest product."""
        return max((each for name, each in self.rates.items() if name != COPY), key=max)

    @property
    def memory(self) -> list[float]:
        return self.rates[COPY]


def spread(values: Sequence[float]) -> Spread:
    low, high = min(values), max(values)
    if len(values) > 1:
        low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "low": low, "high": high}


def paired(of: Callable[..., float], *rounds: Sequence[float]) -> Spread:
    """A ratio or a difference of several times, taken within each round."""
    return spread([of(*each) for each in zip(*rounds, strict=True)])


def milliseconds(rounds: Sequence[float]) -> Spread:
    return spread([1e3 * seconds for seconds in rounds])


def interleaved(
    calls: Mapping[str, Timed], device: torch.device, rounds: int, until: float = math.inf
) -> Times:
    """Seconds of one call of each, for every round; before them each is called untimed, which
    compiles it and fills what it keeps. A call is repeated until a block takes SECONDS. No round
    but the first begins after `until`, of the monotonic clock."""
    order, draw = [*calls], random.Random(0)
    times: Times = {key: [] for key in calls}
    blocks: dict[str, int] = {}
    for key in order:
        clocked(calls[key], WARMING[device.type], device)
    for number in range(rounds):
        if number and time.monotonic() > until:
            break
        draw.shuffle(order)
        for key in order:
            taken = clocked(calls[key], blocks.get(key, 1), device)
            if key not in blocks:
                blocks[key] = max(1, math.ceil(SECONDS / max(taken, 1e-9)))
                if blocks[key] > 1:
                    taken = clocked(calls[key], blocks[key], device)
            times[key].append(taken)
    return times


def clocked(call: Timed, block: int, device: torch.device) -> float:
    """Seconds of a call, from one block of them; a GPU is waited for around the block alone."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    with call.entered():
        wait(device)
        begun = time.perf_counter()
        for _ in range(block):
            call.run()
        wait(device)
        return (time.perf_counter() - begun) / block


def beside_ceilings(
    calls: Mapping[str, Timed], device: torch.device, rounds: int, until: float = math.inf
) -> tuple[Times, Ceilings]:
    """Seconds of the calls, and in the same rounds the machine's ceilings."""
    tops = ceilings(device)
    times = interleaved(
        {**calls, **{name: call for name, (call, _) in tops.items()}}, device, rounds, until
    )
    rates = {name: [work / t for t in times.pop(name)] for name, (_, work) in tops.items()}
    return times, Ceilings(rates)


def ceilings(device: torch.device) -> dict[str, tuple[Timed, int]]:
    """Products in float32, as the machine's settings have it, and in bf16 where it is fast here,
    with their FLOP; and a copy, with its bytes."""
    side, moved = SIDE[device.type], COPIED[device.type]
    types = {"float32 product": torch.float32}
    if bf16_pays(device.type):
        types["bf16 product"] = torch.bfloat16
    found = {}
    for name, dtype in types.items():
        # random numbers: a GPU draws less power, and clocks higher, on zeros
        a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        found[name] = Timed(partial(torch.mm, a, b, out=out)), 2 * side**3
    source, target = torch.randn(2, moved // 8, device=device)
    return {**found, COPY: (Timed(partial(target.copy_, source)), moved)}


@contextmanager
def settings(choices: Mapping[str, Any]) -> Iterator[None]:
    """Sets as many threads as a loop has, TF32 as it has it, if it says; afterwards all as
    before."""
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(choices["threads"])
    if "tf32" in choices:
        set_tf32(choices["tf32"])
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
