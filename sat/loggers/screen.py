"""What the program says on the screen, in the width of the terminal: messages, tables, a progress
bar, or plain lines where there is no terminal."""

import atexit
import gc
import logging
import math
import os
import re
import shlex
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from tqdm import tqdm

from sat.errors import printable
from sat.launch import lasting_streams, processes

log = logging.getLogger("sat")
ONCE = {"once": True}  # of a message: the screen leaves out lines that the last of its kind had
SILENT = 1.0  # seconds at most
SOON = 5.0  # seconds after which a pace tells how long the rest takes
_TABLE = re.compile(r"^.*\n-+(?:  -+)+(?:\n.+)*", re.M)  # what `table` makes, to an empty line
_QUOTED = re.compile(r"(?<!\w)'[^'\n]*'(?!\w)")


class _Handler(logging.Handler):
    """Prints messages on standard output without tearing a progress bar."""

    label = ""
    shows = False  # stages and bars
    said: ClassVar[dict[str, list[str]]] = {}  # the last lines of each kind of message, see ONCE

    def emit(self, record: logging.LogRecord) -> None:
        bad = record.levelno >= logging.WARNING
        stream = sys.stderr if bad else sys.stdout
        text = printable(self.format(record), kept="\n\t")
        if hasattr(record, "once") and not (text := self.new_in(record.msg, text)):
            return
        text = f"! {cut(text)}" if bad else text
        before = f"{self.label} | " if self.label else ""
        text = fitted(text.strip("\n") if before else text, stream, len(before))
        text = "".join(f"{before}{line}\n" for line in text.split("\n"))
        tqdm.write(text, file=stream, end="")  # one write: others may use the screen, too
        stream.flush()

    def new_in(self, kind: str, text: str) -> str:
        """The lines that the last message of this kind did not have."""
        before, lines = self.said.get(kind, []), text.split("\n")
        self.said[kind] = lines
        return "\n".join(each for each in lines if each not in before)


def _warned(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """What a package warns of, as a line of ours."""
    log.warning("%s: %s", category.__name__, " ".join(str(message).split()))


def cut(text: str) -> str:
    """A line of bearable length: a message begins with the key and ends with the remedy, and what
    was given may be as long as it likes."""
    return text if len(text) <= 800 or "\n" in text else f"{text[:400]} ... {text[-390:]}"


def set_up(level: int = logging.INFO) -> None:
    """Sends the program's messages, from a level on, to the screen, once a process; of the
    processes of one run the first speaks, and the others tell their own faults."""
    lasting_streams()
    warnings.showwarning = _warned
    rank, _ = processes()
    log.disabled = False  # whatever Hydra was told of logging
    log.setLevel(logging.ERROR if rank else level)
    log.propagate = False
    _Handler.shows = not rank
    if not any(isinstance(handler, _Handler) for handler in log.handlers):
        atexit.register(gc.freeze)  # else Python's end looks through all of torch: a second
        handler = _Handler()
        if rank:
            handler.setFormatter(logging.Formatter(f"process {rank}: %(message)s"))
        log.addHandler(handler)


def tell_once(text: str, *values: Any, also: int = 0) -> None:
    """An error that all processes of a run meet, told by those of a rank up to `also`."""
    log.log(logging.INFO if processes()[0] > also else logging.ERROR, text, *values)


def forget() -> None:
    """Has what was told with `extra=ONCE` told again: a new command line begins."""
    _Handler.said.clear()


def label(text: str) -> None:
    """Puts it before each line from now on: for processes that share a screen, which has no room
    for their bars then."""
    _Handler.label = text


def say(text: str, stream: Any = None) -> None:
    """Prints what a command was asked for, on standard output or another stream."""
    stage()
    print(fitted(printable(text, kept="\n\t"), stream or sys.stdout), file=stream, flush=True)


def refuse(reason: object) -> None:
    """Tells on standard error why a command does not do what it was asked for."""
    say(f"! {reason}", sys.stderr)


def columns(stream: Any = None) -> int:
    """How many signs a line of this terminal holds, standard output's or that of another stream;
    0 where there is none, and a line may have any length."""
    stream = stream or sys.stdout
    isatty = getattr(stream, "isatty", None)
    if not (isatty and isatty()):
        return 0
    given = os.environ.get("COLUMNS", "")
    try:  # of this stream: standard output may be a pipe
        found = int(given) if given.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except OSError:
        found = 0
    return max(found or 80, 20)


def fitted(text: str, stream: Any = None, taken: int = 0) -> str:
    """The text with its long lines broken where the terminal of this stream ends, between words;
    what is left goes on below, set in. A word that is longer stays whole, be it a path or what
    stands in quotes for the shell; columns of a table that find no room follow below it. The first
    `taken` signs of each line are another's."""
    if (room := columns(stream) - taken) <= 0:
        return text
    text = _TABLE.sub(lambda found: _folded(found[0].split("\n"), room), text)
    return "\n".join(_broken(line, room) for line in text.split("\n"))


def _folded(lines: Sequence[str], room: int) -> str:
    """The lines of a `table` as several, of which each fits and begins with the first column; the
    last column ends where its lines do."""
    if max(map(len, lines)) <= room:
        return "\n".join(lines)
    places = [slice(*found.span()) for found in re.finditer("-+", lines[1])]
    places[-1] = slice(places[-1].start, None)
    widths = [max(len(line[place]) for line in lines) for place in places]
    parts = [[0]]
    for i, width in enumerate(widths[1:], 1):
        used = sum(widths[k] + 2 for k in parts[-1])
        if used + width > room and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    cells = [[line[place].ljust(width) for place, width in zip(places, widths, strict=True)]
             for line in lines]  # fmt: skip
    return "\n\n".join(
        "\n".join("  ".join(row[i] for i in part).rstrip() for row in cells) for part in parts
    )


def _broken(line: str, room: int) -> str:
    if len(line) <= room:
        return line
    margin = " " * (len(line) - len(line.lstrip()) + 2)
    held = _QUOTED.sub(lambda found: found[0].replace(" ", "\0"), line)
    return textwrap.fill(
        held, max(room, 2 * len(margin)), subsequent_indent=margin, tabsize=4,
        break_long_words=False, break_on_hyphens=False,
    ).replace("\0", " ")  # fmt: skip


def to_copy(words: Sequence[str]) -> str:
    """A command line, of which a long one is broken so that a shell takes it as it stands."""
    room, lines = (columns() or math.inf) - 2, [""]
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + len(word) > room:
            lines.append("  ")
        lines[-1] += f"{word} "
    return " \\\n".join(line.rstrip() for line in lines)


# bars and stages ---------------------------------------------------------------------------------


class _Bar(tqdm):
    """A bar whose format knows this program's words for pace, time left and time passed; the last
    stands behind the others where nothing has moved for some time."""

    last_print_t = math.inf  # it has moved never yet

    @property
    def format_dict(self) -> dict[str, Any]:
        told = super().format_dict
        clock = duration(told["elapsed"])
        pace = _pace(told["n"], told["initial"], told["total"], told["elapsed"], self.unit)
        if self._time() - self.last_print_t > SILENT:
            pace += f" ({clock})"
        return told | {"pace": pace, "clock": clock}


def _pace(done: int, first: int, total: int | None, seconds: float, unit: str) -> str:
    """`  440 img/s  9s left`: how fast it went from `first` to `done`, pauses included, and, after
    some seconds, how long the rest of `total` takes at that; of a long work, whose first parts may
    be slow, after a minute."""
    if done <= first or seconds <= 0:
        return ""
    rate, told = (done - first) / seconds, ""
    if unit:
        told = f"  {rate:,.0f} {unit}/s" if rate >= 10 else f"  {rate:.2g} {unit}/s"
    if seconds < SOON or not total or total <= done:
        return told
    if seconds < 60 and done - first < 0.02 * total:
        return told
    return f"{told}  {duration((total - done) / rate)} left"


def _bar(what: str, **given: Any) -> _Bar | None:
    """A bar that leaves nothing behind; None where nobody looks, or has no room for one."""
    if not _watched(sys.stderr) or not _speaks():
        return None
    return _Bar(desc=what, dynamic_ncols=True, leave=False, smoothing=0, miniters=1, **given)


def _watched(stream: Any) -> bool:
    """Whether it ends on a terminal, or below a cell of a notebook, where a bar works as well."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")


def _speaks() -> bool:
    return _Handler.shows and not _Handler.label


class _Pulse:
    """Does something every second, beside what goes on, until it is stopped; it rests while the
    process forks: no thread may hold a lock then."""

    living: ClassVar[set["_Pulse"]] = set()

    def __init__(self, act: Callable[[], Any]):
        self.act = act
        self.living.add(self)
        self.beat()

    def beat(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(self.over,), daemon=True)
        self.thread.start()

    def _run(self, over: threading.Event) -> None:
        while not over.wait(SILENT):
            self.act()

    def rest(self) -> None:
        self.over.set()
        self.thread.join()

    def stop(self) -> None:
        self.rest()
        self.living.discard(self)

    @classmethod
    def all_rest(cls) -> None:
        for pulse in [*cls.living]:
            pulse.rest()

    @classmethod
    def all_beat(cls) -> None:
        for pulse in [*cls.living]:
            pulse.beat()


os.register_at_fork(
    before=_Pulse.all_rest,
    after_in_parent=_Pulse.all_beat,
    after_in_child=_Pulse.living.clear,
)


class _Stage:
    """Shows what goes on: on a terminal at once, with a clock; else as a line after a second."""

    def __init__(self, what: str):
        self.what, self.told = what, False
        self.bar = _bar(what, bar_format="{desc} ... {clock}")
        self.pulse = _Pulse(self.show)

    def show(self) -> None:
        if self.bar is not None:
            self.bar.refresh()
        elif not self.told:
            self.told = True
            log.info("%s ...", self.what)

    def end(self) -> None:
        self.pulse.stop()
        if self.bar is not None:
            self.bar.close()


_stage: _Stage | None = None


def stage(what: str = "") -> None:
    """Says what goes on from now on, until the next stage or the next bar; "" ends it."""
    global _stage
    if _stage is not None:
        _stage.end()
        _stage = None
    if what and _speaks():
        _stage = _Stage(what)


@contextmanager
def showing(wanted: bool, what: str) -> Iterator[None]:
    """Shows stages, of which the first is `what`, and bars meanwhile, or none: for a function that
    is called from Python."""
    before, _Handler.shows = _Handler.shows, wanted and not processes()[0]
    try:
        stage(what)
        yield
    finally:
        stage()
        _Handler.shows = before


class Progress:
    """Counts images, or what `unit` says, until they are `total`: the words first, then pace, time
    left and a bar; where there is no terminal, a line now and then."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "img"):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.unit, self.shown = unit, False
        self.bar: _Bar | None = None
        self.pulse: _Pulse | None = None
        self.begun = self.said = time.monotonic()

    def show(self) -> None:
        """Shows it as it is now, in place of the stage that was going on."""
        if not self.shown:
            self.shown = True
            stage()
            self.begun = time.monotonic()
            self.bar = _bar(
                self.what, total=self.total, initial=self.done, unit=self.unit,
                bar_format="{desc}{pace} |{bar}|",
            )  # fmt: skip
            self.pulse = _Pulse(self.bar.refresh) if self.bar is not None else None
        elif self.bar is not None:
            self.bar.refresh()

    def advance(self, count: int) -> None:
        self.done += count
        if not self.shown:  # what came before is no pace: a first step compiles, or warms up
            self.first = self.done
            self.show()
        elif self.bar is not None:
            self.bar.update(count)
        elif (now := time.monotonic()) - self.said >= max(5.0, 0.1 * (now - self.begun)):
            self.line(self.what)

    def say(self, what: str) -> None:
        """Other words, which the bar shows when it moves."""
        self.what = what
        if self.bar is not None:
            self.bar.set_description_str(what, refresh=False)

    def line(self, text: str) -> None:
        """A line of the log, with pace and time left as the bar has them."""
        self.said = time.monotonic()
        passed = self.said - self.begun
        log.info("%s", text + _pace(self.done, self.first, self.total, passed, self.unit))

    def close(self) -> None:
        if self.pulse is not None:
            self.pulse.stop()
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """`45s`, `3m10s`, `2h05m`, `12d04h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


def percent(entry: dict[str, Any] | None) -> str:
    """`97.8 % (95.7 - 98.9)`."""
    if entry is None:
        return "-"
    low, high = entry["ci95"]
    return f"{100 * entry['accuracy']:.1f} % ({100 * low:.1f} - {100 * high:.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns, the first to the left and the others to the right, below a rule that tells
    where each stands; as wide as it is, since files keep it, too: `fitted` folds it. What follows
    it begins after an empty line."""
    widths = [max(1, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    lines = []
    for first, *others in [head, ["-" * width for width in widths], *rows]:
        cells = [first.ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
