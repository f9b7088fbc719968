"""Files that are whole or absent: written beside their name, flushed to disk, then renamed.

torch is imported where it is needed: who reads results alone need not wait for it.
"""

import errno
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from sat.errors import Fault, Refused
from sat.rundir.untrusted import load_tensors, objects_in, reason_of

log = logging.getLogger("sat")
FORMAT = 1
_FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room")
_CLOSED = dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable")
REMEDIES = {**_FULL, **_CLOSED, errno.EIO: "see to the disk"}  # what stops all writing, by errno


class Unwritable(Fault):
    """A file of a run could not be written: the disk is full, or read-only. What was there is
    still there."""

    def __init__(self, path: Path, error: OSError):
        remedy = REMEDIES.get(error.errno or 0, "mend that")
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


def write_whole(path: Path, write: Callable[[BinaryIO], object], shared: bool = False) -> None:
    """Calls `write` on a temporary file and renames it to `path` once it is safe on disk; of a
    `shared` path, which other processes may write meanwhile, the last one counts.

    Raises Unwritable; `path` is then as it was.
    """
    own = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        with naming(path):
            temporary.unlink(missing_ok=True)  # of a process that was killed, or no file at all
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                _to_disk(file, path)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it may be that nothing can be changed here
            temporary.unlink(missing_ok=True)


_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


def _to_disk(file: BinaryIO, path: Path) -> None:
    """Waits until the disk has what was written; one that can't tell is said once."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        _warn_once(error.strerror)


@cache
def _warn_once(reason: str) -> None:
    log.warning(
        "record.root: its disk doesn't tell when a file is safe (fsync: %s); after a power cut the"
        " newest checkpoint may be damaged, and the one before take its place", reason,
    )  # fmt: skip


def save(path: Path, state: dict[str, Any]) -> None:
    """Named states of tensors, numbers, strings, lists and dicts, which `weights_only=True` reads
    back; with the number of this format, and a checksum of all the rest."""
    import torch

    state = _on_cpu(state)
    with naming(path):
        path.parent.mkdir(exist_ok=True)
    whole = {"format": FORMAT, "checksum": checksum(state), **state}
    write_whole(path, lambda file: torch.save(whole, file))


def checksum(state: Any) -> int:
    """CRC-32 of a state on the CPU: names, values, types and shapes. A third of a second a
    gigabyte."""
    return _checksum(state, 0)


def _checksum(value: Any, so_far: int) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        so_far = zlib.crc32(f"{value.dtype} {list(value.shape)}".encode(), so_far)
        flat = value.detach().contiguous().view(-1)
        return zlib.crc32(flat.view(torch.uint8).numpy(), so_far) if flat.numel() else so_far
    if not isinstance(value, Mapping | list | tuple):
        return zlib.crc32(repr(value).encode(), so_far)
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        so_far = _checksum(item, zlib.crc32(f"{key!r}:".encode(), so_far))
    return zlib.crc32(b".", so_far)


def _on_cpu(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def rotate(last: Path, previous: Path, state: dict[str, Any]) -> None:
    """Saves `last` and keeps the one before as `previous`; one of them is whole at any moment."""
    if last.exists():
        link = previous.with_name(f".{previous.name}.tmp")
        with naming(previous):
            link.unlink(missing_ok=True)
            try:
                os.link(last, link)
            except OSError as error:  # a disk without links; nothing is lost, but the name is free
                if error.errno not in _NO_LINKS:
                    raise
                link = last
            os.replace(link, previous)
    save(last, state)


def read(path: Path) -> dict[str, Any]:
    """The named states of a checkpoint, on the CPU. Raises ValueError for what is none of this
    format, and for one of which a bit has changed."""
    try:
        state = load_tensors(path)
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = objects_in(error) or reason_of(error)
        raise ValueError(f"{path}: is damaged, or is no checkpoint ({reason})") from None
    version = state.pop("format", None) if isinstance(state, dict) else None
    if version != FORMAT:
        held = f"format {version}" if isinstance(version, int) else f"a {type(state).__name__}"
        raise ValueError(f"{path}: holds {held}, no checkpoint of this program's format {FORMAT}")
    if state.pop("checksum", None) != checksum(state):
        raise ValueError(f"{path}: is damaged, it is not what was written")
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
