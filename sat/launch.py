"""How this process was started: alone, or by torchrun as one of several of a run; with a screen or
without."""

import atexit
import os
import sys
from typing import Any, NoReturn


def processes() -> tuple[int, int]:
    """This process's rank and how many there are, by torchrun's account; 0 and 1 without it."""
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))


def local_size() -> int:
    """How many of them this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def local_rank() -> int:
    """This process's place among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


class _Lasting:
    """A stream of the screen that nothing can break: who reads may go (`| head`, a terminal that is
    closed), a disk may fill; what can't be told is dropped."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            return self._let_go(error, len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._let_go(error)

    def _let_go(self, error: Exception, length: int = 0) -> int:
        """What Python still holds for a pipe that nobody reads goes nowhere, at its end too."""
        if isinstance(error, BrokenPipeError) and self._stream in (sys.__stdout__, sys.__stderr__):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting_streams() -> None:
    """Has nothing end because its screen is closed, or goes away later: no write raises."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file would take its number, and get what is printed
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        if not isinstance(stream, _Lasting):
            setattr(sys, name, _Lasting(stream))


def end(code: int) -> NoReturn:
    """Ends this process, everything written. One of several goes without taking Python apart: a
    thread of gloo that lets go of a tensor meanwhile aborts the process, and torchrun all others.
    """
    if processes()[1] == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
