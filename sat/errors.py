"""How a run ends other than well.

A part that is being set up refuses with a ValueError that begins with the bare key; `refusing` puts
the group in front. What knows the whole key raises Refused itself.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What asks a run to stop: people, and clusters that warn of the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def on_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Has `handler` answer what stops a run; returns the handlers of before. A hang-up that is
    ignored, as under nohup, stays ignored. Signals are the main thread's: another has none."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [n for n in SIGNALS if not (n == signal.SIGHUP and ignored)]
    return {number: signal.signal(number, handler) for number in numbers}


class _OneLine:
    """Says one line, whatever the names and values hold that it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__())


class Refused(_OneLine, ValueError):
    """Bad input: one line that names the key, the value and the remedy. Exit code 2."""


class Fault(_OneLine, Exception):
    """The run could not go on; what it saved is kept. One line; exit code 1."""


class Diverged(Fault):
    """A loss or a weight is not a finite number: the run would fail again."""


class Lost(Fault):
    """Another process of the run has ended."""


class Stopped(Exception):
    """The run was asked to stop and has saved itself; `code` is the exit code."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.code = number, 128 + number


class Busy(Exception):
    """Another process works in the run's directory."""


@contextmanager
def refusing(prefix: str, **keys: str) -> Iterator[None]:
    """What a part refuses while it is set up, as a `Refused` whose line names the whole key; `keys`
    are called otherwise here: `weights="evaluate"`."""
    try:
        yield
    except Refused:
        raise
    except ValueError as error:
        key, equals, rest = str(error).partition("=")
        raise Refused(f"{prefix}{keys.get(key, key)}{equals}{rest}") from error


def is_signal(error: BaseException) -> bool:
    """Whether a signal asks the program to end, and not code that calls sys.exit."""
    code = getattr(error, "code", None)
    return isinstance(error, SystemExit) and isinstance(code, int) and code > 128


def first_line(error: BaseException) -> str:
    """What a refusal of ours says; what went wrong in code that is not ours, in a few words; of
    TorchScript its last line, which says it."""
    if isinstance(error, Refused):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1 if "TorchScript interpreter" in lines[0] else 0]
    kind = type(error).__name__
    return f"{kind}: {line.removeprefix(f'{kind}: ')[:200]}"


def printable(text: str, kept: str = "") -> str:
    """Text as a terminal may show it: signs that move a cursor, or have no place in UTF-8, are
    written out (`\\x1b`), but for those that are `kept`. Names of files and classes hold any."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def is_of_the_compiler(error: BaseException) -> bool:
    """Whether a network could not be compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host; torch has no one type for it."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for it
        or isinstance(error, RuntimeError)
        and ("DefaultCPUAllocator" in text or "out of memory" in text or "ALLOC_FAILED" in text)
    )
