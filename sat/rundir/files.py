"""Files in folders that anybody may have written to: nothing waits for a pipe, or reads a device
without end."""

import errno
import os
import stat
from pathlib import Path

LARGEST = 2**28  # bytes of a text; the metrics of a million steps have about as many


def regular(path: str, flags: int) -> int:
    """An `opener` for `open`: of regular files alone; to be written to, of no links to them, which
    may lead out of the folder. Raises OSError for a pipe, a device, a folder."""
    writing = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        _refuse_others(os.lstat(path) if writing else os.stat(path), path)
    except FileNotFoundError:
        pass
    flags |= os.O_NONBLOCK | os.O_NOFOLLOW * bool(writing)  # for what came there meanwhile
    file = os.open(path, flags, 0o666)
    try:
        _refuse_others(os.fstat(file), path)
    except OSError:
        os.close(file)
        raise
    return file


def _refuse_others(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", path)


def read_text(path: Path, errors: str = "strict") -> str:
    """A text, in UTF-8. Raises OSError for what is no regular file or endless, and ValueError for
    other bytes."""
    with open(path, encoding="utf-8", errors=errors, opener=regular) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, "is larger than any that a run writes", str(path))
        return file.read()
