"""Packages outside of this program whose classes a config may name.

A config is read from wherever a user points to, a copied run directory included, and importing a
module runs its code. So a package is imported only where it stands in the variable SAT_PLUGINS
(several: with commas), or is installed with an entry point in the group `sat.plugins`.
"""

import importlib
import inspect
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from sat.errors import (
    Busy,
    Fault,
    Refused,
    Stopped,
    first_line,
    is_of_the_compiler,
    is_out_of_memory,
    is_signal,
)

VARIABLE = "SAT_PLUGINS"
GROUP = "sat.plugins"
TYPED = "SAT_SWEEP_TYPED"  # by which the worker processes of a sweep know it


def allowed() -> set[str]:
    """The top packages that may be imported."""
    named = {name.strip().split(".")[0] for name in os.environ.get(VARIABLE, "").split(",")}
    installed = {point.value.split(":")[0].split(".")[0] for point in entry_points(group=GROUP)}
    return (named | installed) - {""}


def typed(words: Sequence[str]) -> str:
    """What `TYPED` says of a command line: 1 where `evaluate=` stands in it, by the user's hand."""
    return "1" if any(word.startswith("evaluate=") for word in words) else ""


def is_typed() -> bool:
    """Whether who runs the program typed `evaluate=`: in the words of a job it may stand by the
    `hydra.sweeper.params` of a config, too."""
    return os.environ.get(TYPED) == "1"


@contextmanager
def blaming() -> Iterator[None]:
    """Raises Fault, in one line that names the place, for what goes wrong in code of such packages,
    or ends the program from there."""
    try:
        yield
    except (Busy, Fault, Refused, Stopped):
        raise
    except (Exception, SystemExit) as error:
        own = allowed()
        passed = [
            f"{frame.f_globals['__name__']}, line {line}"
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get("__name__", "").split(".")[0] in own
        ]
        system = getattr(error, "errno", None) is not None or is_out_of_memory(error)
        if not passed or system or is_signal(error) or is_of_the_compiler(error):
            raise
        raise Fault(f"{passed[-1]}: {first_line(error)}") from error


def load(name: str) -> type:
    """The class of that dotted name. Raises ValueError, with the remedy, where its package is not
    allowed, and where there is no such class of it."""
    top, (module, _, attribute) = name.split(".")[0], name.rpartition(".")
    found = attribute_of(module, attribute, "class")
    if not inspect.isclass(found) or found.__module__.split(".")[0] != top:
        raise ValueError(f"is no class of {top}")
    return found


def attribute_of(module: str, attribute: str, what: str, typed: bool = False) -> Any:
    """An attribute of a module of a package that is allowed, or whose name was `typed` by who runs
    the program. Raises ValueError, with the remedy, for another, and where there is none."""
    top = module.split(".")[0]
    if not typed and top not in allowed():
        raise ValueError(
            f"is outside of this program, and imported only where you say so: {VARIABLE}={top}"
            " before the command (or an entry point of that package in the group sat.plugins)"
        )
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"no such {what} ({error}); {top} must lie on PYTHONPATH") from error
    except (Exception, SystemExit) as error:  # of any kind: the code is the user's
        raise ValueError(f"importing {module} fails ({first_line(error)})") from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise ValueError(f"no such {what} ({error})") from error
