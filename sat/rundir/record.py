"""The run directory: who works in it, what was measured, what came out."""

import errno
import json
import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from sat.errors import Fault, Refused, Stopped, printable
from sat.rundir import checkpoint
from sat.rundir.files import read_text, regular
from sat.rundir.lock import take
from sat.rundir.result import BEST, LAST, RunResult

log = logging.getLogger("sat")
CHECKPOINTS = (LAST, BEST)  # the files that stay


@dataclass(frozen=True)
class Record:
    """Where runs live, how often they are saved, and what stays of them.

    `checkpoint_minutes` is what a killed training loses at most. Of the checkpoints, those named in
    `keep` stay after the end. `fresh` moves an older run of the same config aside.
    """

    root: str = "outputs"
    checkpoint_minutes: float = 10.0
    keep: tuple[str, ...] = CHECKPOINTS
    fresh: bool = False

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("root=: is empty; name a folder")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ValueError(f"checkpoint_minutes={self.checkpoint_minutes}: must be 0 or above")
        for name in self.keep:
            if name not in CHECKPOINTS:
                raise ValueError(f"keep={list(self.keep)}: may name {' and '.join(CHECKPOINTS)}")


class Run:
    """A claimed run directory; made by `claim`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self.flags = directory / "flags"
        self.growing = ["metrics.jsonl", "events.out.tfevents.*"]  # patterns
        self.loggers: Any = None
        self.told: set[str] = set()  # messages of alarms that this process's screen has shown

    # metrics ------------------------------------------------------------------------------------

    def track(self, loggers: Any) -> None:
        """Has these `sat.loggers.Loggers` tell of the run, and their files cut back with ours."""
        self.loggers = loggers
        self.growing += loggers.files

    def write_metrics(self, row: dict[str, Any]) -> None:
        """Adds one JSON object as a line of `metrics.jsonl`; null for what is not finite."""
        finite = lambda v: not isinstance(v, float) or math.isfinite(v)  # noqa: E731
        row = {key: value if finite(value) else None for key, value in row.items()}
        path, line = self.directory / "metrics.jsonl", (json.dumps(row) + "\n").encode()
        with checkpoint.naming(path), open(path, "ab", 0, opener=regular) as file:
            if (written := file.write(line)) < len(line):  # the disk is full
                file.truncate(file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def lengths(self) -> dict[str, int]:
        """The bytes of every file that grows; `rewind` cuts them back to these."""
        return {name: path.stat().st_size for name, path in self._growing().items()}

    def rewind(self, lengths: dict[str, int]) -> None:
        """Forgets what was written after a checkpoint, so that no step is recorded twice."""
        for name, path in self._growing().items():
            if not (length := lengths.get(name, 0)):
                path.unlink()
            elif path.stat().st_size > length:  # a shorter one would be filled up with zeros
                with checkpoint.naming(path), open(path, "r+b", opener=regular) as file:
                    file.truncate(length)

    def _growing(self) -> dict[str, Path]:
        found = {path for pattern in self.growing for path in self.directory.glob(pattern)}
        return {str(path.relative_to(self.directory)): path
                for path in sorted(found) if path.is_file()}  # fmt: skip

    # checkpoints --------------------------------------------------------------------------------

    def save_last(self, state: dict[str, Any]) -> None:
        checkpoint.rotate(self.checkpoints / "last.pt", self.checkpoints / "previous.pt", state)

    def save_best(self, state: dict[str, Any]) -> None:
        checkpoint.save(self.checkpoints / "best.pt", state)

    # results ------------------------------------------------------------------------------------

    def result(self) -> RunResult | None:
        """What `result.json` holds, or None. Raises Refused where it is damaged."""
        return RunResult.read(self.directory)

    def write_result(self, result: RunResult) -> None:
        text = json.dumps(result.as_json(), indent=2, allow_nan=False) + "\n"
        checkpoint.write_whole(self.directory / "result.json", lambda f: f.write(text.encode()))

    def drop_checkpoints(self, keep: tuple[str, ...]) -> None:
        """What a finished run no longer needs; without a `best` its last weights stay in the place
        of it."""
        if {*keep} == {BEST} and not (self.checkpoints / "best.pt").exists():
            log.warning("record.keep=[best]: this run has none; checkpoints/last.pt is kept")
            keep = (LAST,)
        for path in self.checkpoints.glob("*.pt"):
            if path.stem not in keep:
                path.unlink()


class ReadOnlyRun(Run):
    """A run's directory for those of its processes that write nothing into it."""

    def write_metrics(self, row: dict[str, Any]) -> None:
        pass

    def lengths(self) -> dict[str, int]:
        return {}

    def rewind(self, lengths: dict[str, int]) -> None:
        pass

    def save_last(self, state: dict[str, Any]) -> None:
        pass

    def save_best(self, state: dict[str, Any]) -> None:
        pass

    def write_result(self, result: RunResult) -> None:
        pass


def weights_file(place: str) -> Path:
    """The file of weights that a run directory or a path names; `best` of a run, else `last`."""
    path = Path(place)
    if path.is_dir():
        found = [path / "checkpoints" / f"{name}.pt" for name in ("best", "last")]
        path = next((file for file in found if file.exists()), found[0])
    return path


@contextmanager
def claim(record: Record, name: str, config: str, wait: bool = True) -> Iterator[Run]:
    """The run's directory, locked for this process; a second process waits for the first, or
    raises Busy.

    Raises Refused, naming the key, where the directory can't be written.
    """
    root, directory = Path(record.root), Path(record.root) / name
    with ExitStack() as held:
        try:
            held.enter_context(closing(take(directory, wait)))
            if record.fresh and (directory / "config.yaml").exists():
                _set_aside(root, directory)
                old = held.pop_all()  # who waits for it finds another directory, and asks again
                held.enter_context(closing(take(directory, wait)))
                old.close()
            run = Run(directory)
            if not (place := directory / "config.yaml").is_file():
                checkpoint.write_whole(place, lambda file: file.write(config.encode()))
            handler = held.enter_context(closing(_LogFile(directory / "log.txt")))
        except OSError as error:
            remedy = checkpoint.REMEDIES.get(error.errno or 0)
            named = f"{error.filename} " if str(error.filename).startswith(f"{directory}/") else ""
            raise Refused(
                f"record.root={record.root}: can't be written ({named}{error.strerror});"
                f" {remedy + ', or ' if remedy else ''}name another folder"
            ) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        held.callback(log.removeHandler, handler)
        try:
            with _told(directory), _silent_threads():
                yield run
        except Exception as error:  # the screen is told by who catches it
            level = logging.INFO if isinstance(error, Stopped) else logging.ERROR
            told = printable(str(error) or type(error).__name__)  # in one line
            handler.handle(log.makeRecord("sat", level, __file__, 0, "%s", (told,), None))
            raise


@contextmanager
def stand_by(record: Record, name: str, config: str, wait: bool = True) -> Iterator[ReadOnlyRun]:
    """The directory that another process of this run has claimed."""
    yield ReadOnlyRun(Path(record.root) / name)


class _LogFile(logging.FileHandler):
    """What can't be written here has been said on the screen."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", errors="backslashreplace", opener=regular)

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    """Raises a Fault, in one line, for a disk or a memory that is full outside of a training."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(error.filename)
        if error.errno not in checkpoint.REMEDIES or named and directory not in named.parents:
            raise
        raise checkpoint.Unwritable(named or directory, error) from error
    except (RuntimeError, MemoryError) as error:
        from sat.errors import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise Fault(
            "out of memory; what was measured is kept, and with a smaller evaluation.batch_size the"
            " same command goes on"
        ) from error


@contextmanager
def _silent_threads() -> Iterator[None]:
    """TensorBoard writes in a thread, which dies of a full disk with a traceback; the main thread
    is told with its next point."""
    before = threading.excepthook

    def hook(told: threading.ExceptHookArgs) -> None:
        if not issubclass(told.exc_type, OSError):
            before(told)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def enter(directory: Path, experiment: str | None) -> None:
    """Adds an experiment to those under which the run was asked for: a name a line in
    `experiments.txt`. A run may be part of several."""
    if not experiment:
        return
    path = directory / "experiments.txt"
    try:
        there = read_text(path, "replace").split() if path.exists() else []
        if experiment not in there:
            with open(path, "a", opener=regular) as file:
                file.write(experiment + "\n")
    except OSError as error:  # the run itself is whole
        log.warning("%s: can't be written (%s); reports will miss it", path, error.strerror)


def _set_aside(root: Path, directory: Path) -> None:
    """Moves a whole run to `.replaced`, where nothing looks for runs but TensorBoard, which looks
    for names of files."""
    aside = root / ".replaced" / f"{directory.name}.{datetime.now():%Y%m%d-%H%M%S-%f}"
    aside.parent.mkdir(exist_ok=True)
    directory.rename(aside)
    for events in aside.glob("*tfevents*"):
        events.rename(events.with_name(events.name.replace("tfevents", "replaced")))
    log.info("the run of before is now %s", aside)
