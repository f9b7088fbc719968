"""Times calls side by side: a round times each of them once, in an order drawn anew, so that what
else the machine does falls on all alike; ratios are taken within a round."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch

from sat.acceleration.auto import bf16_pays
from sat.acceleration.precision import set_tf32

SECONDS = 0.2  # of a block of calls: a thousand times the clock's and the synchronisation's cost
WARMING = {"cpu": 1, "cuda": 3}  # calls; a CUDA graph is recorded in the second, replayed after it
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the peak
Spread = dict[str, float]  # median, and the quartiles low and high
Times = dict[str, list[float]]  # seconds of one call in each round


@dataclass(frozen=True)
class Timed:
    """A call, and what it runs within: that is entered before the clock starts."""

    run: Callable[[], object]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


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


def interleaved(calls: Mapping[str, Timed], device: torch.device, rounds: int) -> Times:
    """Seconds of one call of each, for every round; before them each is called untimed, which
    compiles it and fills what it keeps. A call is repeated until a block takes SECONDS."""
    order, draw = [*calls], random.Random(0)
    times: Times = {key: [] for key in calls}
    blocks: dict[str, int] = {}
    for key in order:
        clocked(calls[key], WARMING[device.type], device)
    for _ in range(rounds):
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
    with call.within():
        wait(device)
        begun = time.perf_counter()
        for _ in range(block):
            call.run()
        wait(device)
        return (time.perf_counter() - begun) / block


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def beside_products(
    calls: Mapping[str, Timed], device: torch.device, rounds: int
) -> tuple[Times, list[float]]:
    """Seconds of the calls and of large matrix products, and FLOP/s of the fastest of these in each
    round: what the machine can do at best."""
    tops = products(device)
    times = interleaved({**calls, **tops}, device, rounds)
    best = min(tops, key=lambda name: min(times[name]))
    return times, [product_flop(device) / seconds for seconds in times[best]]


def products(device: torch.device) -> dict[str, Timed]:
    """Products in float32, as the machine's settings have it, and in bf16 where it is fast here."""
    side, types = SIDE[device.type], {"float32 product": torch.float32}
    if bf16_pays(device.type):
        types["bf16 product"] = torch.bfloat16
    found = {}
    for name, dtype in types.items():
        # random numbers: a GPU draws less power, and clocks higher, on zeros
        a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        found[name] = Timed(partial(torch.mm, a, b, out=out))
    return found


def product_flop(device: torch.device) -> int:
    return 2 * SIDE[device.type] ** 3


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


def under(choices: Mapping[str, Any], call: Timed) -> Timed:
    """A call with settings around what it runs within."""

    @contextmanager
    def within() -> Iterator[None]:
        with settings(choices), call.within():
            yield

    return Timed(call.run, within)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most that torch's allocator holds during a call beside what it held before: activations,
    gradients and intermediates, but for libraries' own scratch memory on a CPU."""
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    held = most = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        most = max(most, held)
    return most
