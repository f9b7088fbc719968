"""Files that are whole or absent: written beside their name, flushed to disk, then renamed.

torch is imported where it is needed: who reads results alone need not wait for it.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sat.errors import Fault, Refused

log = logging.getLogger("sat")
_FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room")
_CLOSED = dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable")
REMEDIES = {**_FULL, **_CLOSED, errno.EIO: "see to the disk"}  # what stops all writing, by errno


class Unwritable(Fault):
    """A file of a run could not be written: the disk is full, or read-only. What was there is
    still there."""

    def __init__(self, path: Path, error: OSError):
        remedy = REMEDIES.get(error.errno, "mend that")
        reason = error.strerror or error
        super().__init__(
            f"{path}: can't be written ({reason}); {remedy}, and the same command goes on from the"
            " last checkpoint"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raises Unwritable, which names `path`, for what the system refuses meanwhile."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides what its file answered behind an error of its own
        refused = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refused, OSError):
            raise
        raise Unwritable(path, refused) from error


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Calls `write` on a temporary file and renames it to `path` once it is safe on disk.

    Raises Unwritable; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it may be that nothing can be changed here
            temporary.unlink(missing_ok=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings, lists and dicts: what `weights_only=True` reads back."""
    import torch

    with naming(path):
        path.parent.mkdir(exist_ok=True)
    write_whole(path, lambda file: torch.save(state, file))


def rotate(last: Path, previous: Path, state: dict[str, Any]) -> None:
    """Saves `last` and keeps the one before as `previous`; one of them is whole at any moment."""
    if last.exists():
        link = previous.with_name(f".{previous.name}.tmp")
        with naming(previous):
            link.unlink(missing_ok=True)
            os.link(last, link)
            os.replace(link, previous)
    save(last, state)


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU. Raises ValueError for what is no checkpoint, and for
    one of which a bit has changed."""
    import torch

    from sat.rundir.untrusted import check_sums

    try:
        check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = str(error).splitlines()[0][:120] if " " in str(error) else "it can't be read"
        raise ValueError(f"{path}: is damaged, or is no checkpoint ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, no checkpoint of this program")
    return state


def newest(folder: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """The newest sound checkpoint of `last.pt` and `previous.pt`; None where neither is there.

    A `last.pt` that is damaged, or not sound by `check`, which raises ValueError, gives way to the
    one before, and a warning says so.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    if not last.exists() and not previous.exists():
        return None
    try:
        return _sound(last, check)
    except Refused:
        raise
    except (OSError, ValueError) as error:
        wrong = error
    try:
        state = _sound(previous, check)
    except Refused:
        raise
    except (OSError, ValueError) as error:
        more = "" if isinstance(error, FileNotFoundError) else f", and {previous.name} too"
        raise Refused(f"{wrong}{more}; record.fresh=true starts over") from None
    log.warning("%s; going on from %s", wrong, previous.name)
    os.replace(previous, last)
    return state


def _sound(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    state = read(path)
    try:
        check(state)
    except Refused:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: is damaged, or of another program ({error})") from None
    return state
