"""torch.compile: whether it works here, and how often and how long it has compiled."""

from functools import cache

import torch
from torch import nn


@cache
def compiles(device: torch.device) -> bool:
    """Whether a compiler is there: a CPU needs a C++ compiler and Python's headers, a GPU Triton.
    Tried on one line, which takes some seconds."""
    with torch.no_grad():
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
        except Exception:  # its backends raise many kinds
            return False
    return True


def compiled(net: nn.Module, how: bool | str, lenient: bool) -> nn.Module:
    """The network compiled as `how` says: not at all, or in that mode of torch's. What can't be
    compiled raises at its first forward; `lenient`, it runs eagerly, with a warning of torch's."""
    if not how:
        return net
    torch._dynamo.config.suppress_errors = lenient
    return torch.compile(net, mode=how if isinstance(how, str) else None)


def forget() -> None:
    """Drops the graphs of earlier runs in this process: all networks of a class share one limit of
    eight, after which torch goes on without compiling."""
    torch.compiler.reset()


class Warmup:
    """Tells of each new compilation, since it may take a minute; where nothing is compiled (`on`)
    torch's compiler is not even imported."""

    def __init__(self, on: bool) -> None:
        self.on, self.told = on, graphs() if on else 0

    def news(self, step: int) -> list[str]:
        """A line where there are graphs that were not told of; with the seconds of all so far."""
        more = graphs() - self.told if self.on else 0
        self.told += more
        if more <= 0:
            return []
        return [f"step {step}: {more} graphs compiled, {seconds():.0f} s in all so far"]


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def seconds() -> float:
    """Seconds of compilation in this process; a backward pass is compiled when it runs first."""
    from torch._dynamo.utils import compile_times

    names, times = compile_times(repr="csv", aggregate=True)
    taken = dict(zip(names, map(float, times), strict=True))
    return taken.get("_compile.compile_inner", 0) + taken.get("backward._backward_impl", 0)
