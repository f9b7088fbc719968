"""Who works in a run's directory: one process at a time.

A lock of the system (flock) goes with its process, however that ends. On a disk that has none, as
some network disks, a file takes its place that the first process makes and removes.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from sat.errors import Busy
from sat.rundir.files import read_text, regular

log = logging.getLogger("sat")
NAME, HELD = "lock", "lock.held"
REFUSED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
BREAKING = 60.0  # seconds until who was to remove a dead process's file counts as dead, too


class Lock:
    """A directory's lock, held by this process until it is closed."""

    def __init__(self, file: TextIO):
        self.file = file
        self.held: tuple[Path, os.stat_result] | None = None  # the file in its place

    def close(self) -> None:
        with suppress(OSError):  # the directory may have been moved away
            if self.held is not None and os.path.samestat(self.held[1], os.stat(self.held[0])):
                self.held[0].unlink()
        self.file.close()


def take(directory: Path, wait: bool) -> Lock:
    """Waits for the directory's lock, and for that of its successor where it was moved away; or
    raises Busy. Raises OSError where the directory can't be written."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / NAME, "a+", opener=regular)
        lock = Lock(file)
        try:
            lock.held = _taken(file, directory, wait)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(directory / NAME)):
                break
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        lock.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return lock


def _taken(file: TextIO, directory: Path, wait: bool) -> tuple[Path, os.stat_result] | None:
    """Takes the system's lock; the file that holds the directory where there is none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        _wait_for(file.read().strip(), directory, wait)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return _hold(directory, wait, error)
    return None


def _wait_for(holder: str, directory: Path, wait: bool, remedy: str = "") -> None:
    """Says who works here; or raises Busy."""
    if not wait:
        raise Busy(f"{directory}: {holder} runs it already")
    log.info("%s: waiting for %s, which runs it already%s", directory, holder, remedy)


# where the system has no lock ---------------------------------------------------------------------


def _hold(directory: Path, wait: bool, error: OSError) -> tuple[Path, os.stat_result]:
    """Makes the file that keeps others out, once there is none of a living process."""
    held, told = directory / HELD, False
    _warn_once(directory.parent, error.strerror)
    while True:
        try:
            with open(held, "x") as file:
                json.dump(_oneself(), file)
                file.flush()
                return held, os.fstat(file.fileno())
        except FileExistsError:
            pass
        if (holder := _holder(held)) is None:
            _remove(held)
        elif not told:
            told = True
            who = f"process {holder.get('process')} on {holder.get('host')}"
            _wait_for(who, directory, wait, f" (if it is not there any more, delete {held})")
        time.sleep(0.2)


@cache
def _warn_once(root: Path, reason: str) -> None:
    log.warning(
        "record.root=%s: its disk takes no locks (%s); files named %s keep other processes out"
        " instead, and that of a process that was killed on another machine, in another container,"
        " or before this one was started anew, must be deleted by hand", root, reason, HELD,
    )  # fmt: skip


def _holder(held: Path) -> dict[str, Any] | None:
    """Who holds a directory by its file; None where it is there no more. One of another machine or
    of another start is taken for alive: machines that are copies of one share its name and all that
    it knows of itself, so that a start before this one can't be told from a copy that runs."""
    try:
        holder = json.loads(read_text(held))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        holder = None
    if not isinstance(holder, dict):
        return {"process": "?", "host": "?"}
    mine = _oneself()
    if any(holder.get(key) != mine[key] for key in ("host", "boot", "processes")):
        return holder  # its processes are not seen from here
    return holder if _lives(holder.get("process"), holder.get("began")) else None


def _remove(held: Path) -> None:
    """Deletes a dead process's file; of several that want to, one at a time may, and looks again:
    another may hold the directory by now."""
    breaking = held.with_name(f".{HELD}.breaking")
    try:
        breaking.mkdir()
    except FileExistsError:
        with suppress(OSError):  # another has removed it
            if time.time() - breaking.stat().st_mtime > BREAKING:
                breaking.rmdir()
        return
    try:
        if held.exists() and _holder(held) is None:
            held.unlink()
    finally:
        with suppress(FileNotFoundError):  # another took this process for dead, and removed it
            breaking.rmdir()


def _oneself() -> dict[str, Any]:
    """This process as no other is called: on which machine, since which start of it, and in which
    container."""
    boot = spaces = ""
    with suppress(OSError):  # Linux alone has them
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = os.readlink("/proc/self/ns/pid")
    mine = {"process": os.getpid(), "began": _state(os.getpid())[1], "boot": boot}
    return {**mine, "host": socket.gethostname(), "processes": spaces}


def _lives(process: Any, began: Any) -> bool:
    """Whether a process of this machine, which began then, has not ended."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    except PermissionError:
        pass
    state, now = _state(process)
    return state != "Z" and now == began  # numbers are given anew


def _state(process: int) -> tuple[str, str]:
    """A process's state by its letter (Z has ended), and when it began; on Linux alone."""
    try:
        found = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return found[0], found[19]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits while another process of this machine is here with the same folder, and leaves no file
    in it; disks without locks, and those of other machines (NFS), let all in."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


# asked --------------------------------------------------------------------------------------------


def is_running(directory: Path) -> bool:
    """Whether a process, of this machine where the disk has locks, works in the directory."""
    try:
        with open(directory / NAME, opener=regular) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks, or no file
        return _holder(directory / HELD) is not None
    return False
