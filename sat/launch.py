"""How this process was started: alone, or by torchrun as one of several of a run."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


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


def end(code: int) -> NoReturn:
    """Ends this process, everything written. One of several goes without taking Python apart: a
    thread of gloo that lets go of a tensor meanwhile aborts the process, and torchrun all others.
    """
    if processes()[1] == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads on
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
