"""torch.compile: whether it works here, and how often and how long it has compiled."""

import fcntl
import logging
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger("sat")


@cache
def compiles(device: torch.device) -> bool:
    """Whether a compiler is there: a CPU needs a C++ compiler and Python's headers, a GPU Triton.
    Tried on one line, which takes some seconds."""
    drop_torn_libraries()
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
    drop_torn_libraries()
    torch._dynamo.config.suppress_errors = lenient
    return torch.compile(net, mode=how if isinstance(how, str) else None)


@cache
def drop_torn_libraries() -> None:
    """Deletes from torch's cache the libraries that a kill has left half written, and that no other
    process is writing: torch would try to load them for ever."""
    from torch._inductor.codecache import cache_dir

    for path in Path(cache_dir()).rglob("*.so"):
        with suppress(OSError):
            if _is_torn(path) and not _is_written(path):
                _drop(path)


def drop_library(error: BaseException) -> bool:
    """Deletes the library of torch's cache that an error names; whether there was one."""
    from torch._inductor.codecache import cache_dir

    named = [Path(found) for found in re.findall(r"(/[^\s:]+\.so)\b", str(error))]
    mine = [path for path in named if Path(cache_dir()) in path.parents and path.exists()]
    for path in mine:
        _drop(path)
    return bool(mine)


def _drop(path: Path) -> None:
    log.warning("%s: was not written whole; it is deleted, and compiled again", path)
    path.unlink()
    path.with_name(path.name + ".load_ok").unlink(missing_ok=True)


def _is_torn(path: Path) -> bool:
    """Whether a library is shorter than its head says; of other systems' than ELF, whether it is
    empty."""
    with open(path, "rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if head[:5] != b"\x7fELF\2":
        return not head.strip(b"\0")
    number = lambda at, length: int.from_bytes(head[at : at + length], "little")  # noqa: E731
    return size < number(40, 8) + number(58, 2) * number(60, 2)  # the table of sections comes last


def _is_written(path: Path) -> bool:
    """Whether a process holds torch's lock on a library."""
    name = path.name.split(".")[0]
    for lock in path.parents[1].glob(f"locks/{name}*.lock"):
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


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
