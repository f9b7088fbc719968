"""What a run says on the screen: a progress bar, or plain lines where there is no terminal."""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from sat.errors import printable
from sat.launch import lasting_streams, processes

log = logging.getLogger("sat")
SILENT = 1.0  # seconds at most


class _Handler(logging.Handler):
    """Prints messages on standard output without tearing a progress bar."""

    label = ""

    def emit(self, record: logging.LogRecord) -> None:
        bad = record.levelno >= logging.WARNING
        stream = sys.stderr if bad else sys.stdout
        text = printable(self.format(record), kept="\n\t")
        text = f"! {_cut(text)}" if bad else text
        if self.label:
            text = "\n".join(f"{self.label} | {line}" for line in text.strip("\n").splitlines())
        tqdm.write(text + "\n", file=stream, end="")  # one write: others may use the screen, too
        stream.flush()


def _warned(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """What a package warns of, as a line of ours."""
    log.warning("%s: %s", category.__name__, " ".join(str(message).split()))


def _cut(text: str) -> str:
    """A line of bearable length: a message begins with the key and ends with the remedy, and what
    was given may be as long as it likes."""
    return text if len(text) <= 800 or "\n" in text else f"{text[:400]} ... {text[-390:]}"


def set_up() -> None:
    """Sends the program's messages to the screen, once a process; of the processes of one run the
    first speaks, and the others tell their own faults."""
    lasting_streams()
    warnings.showwarning = _warned
    rank, _ = processes()
    log.disabled = False  # whatever Hydra was told of logging
    log.setLevel(logging.ERROR if rank else logging.INFO)
    log.propagate = False
    if not any(isinstance(handler, _Handler) for handler in log.handlers):
        handler = _Handler()
        if rank:
            handler.setFormatter(logging.Formatter(f"process {rank}: %(message)s"))
        log.addHandler(handler)


def tell_once(text: str, *values: Any, also: int = 0) -> None:
    """An error that all processes of a run meet, told by those of a rank up to `also`."""
    log.log(logging.INFO if processes()[0] > also else logging.ERROR, text, *values)


def label(text: str) -> None:
    """Puts it before each line from now on: for processes that share a screen, which has no room
    for their bars then."""
    _Handler.label = text


# bars and stages ---------------------------------------------------------------------------------


class _Bar(tqdm):
    """A bar whose format knows this program's words for pace, time left and time passed."""

    @property
    def format_dict(self) -> dict[str, Any]:
        told = super().format_dict
        done, passed = told["n"] - told["initial"], max(told["elapsed"], 1e-9)
        rate = told["rate"] or done / passed
        left = ""
        if done and told["total"]:
            left = f"  {duration((told['total'] - told['n']) / rate)} left"
        return told | {"pace": _pace(rate, self.unit), "left": left, "clock": duration(passed)}


def _pace(rate: float, unit: str) -> str:
    if not (rate and unit):
        return ""
    return f"  {rate:,.0f} {unit}/s" if rate >= 10 else f"  {rate:.2g} {unit}/s"


def _bar(what: str, **given: Any) -> _Bar | None:
    """A bar that leaves nothing behind; None where nobody looks, or has no room for one."""
    if not sys.stderr.isatty() or not _speaks():
        return None
    return _Bar(desc=what, dynamic_ncols=True, leave=False, smoothing=0.1, **given)


def _speaks() -> bool:
    return log.isEnabledFor(logging.INFO) and not _Handler.label


class _Stage(threading.Thread):
    """Shows what goes on: on a terminal at once, with a clock; else as a line after a second."""

    def __init__(self, what: str):
        super().__init__(daemon=True)
        self.what, self.over = what, threading.Event()
        self.bar = _bar(what, bar_format="{desc} ... {clock}")

    def run(self) -> None:
        while not self.over.wait(SILENT):
            if self.bar is None:
                log.info("%s ...", self.what)
                return
            self.bar.refresh()

    def rest(self) -> None:
        """Stops the clock."""
        self.over.set()
        self.join()

    def end(self) -> None:
        self.rest()
        if self.bar is not None:
            self.bar.close()


_stage: _Stage | None = None


def _rest() -> None:
    if _stage is not None:
        _stage.rest()


os.register_at_fork(before=_rest)  # no thread may hold a lock then


def stage(what: str = "") -> None:
    """Says what goes on from now on, until the next stage or the next bar; "" ends it."""
    global _stage
    if _stage is not None:
        _stage.end()
        _stage = None
    if what and _speaks():
        _stage = _Stage(what)
        _stage.start()


class Progress:
    """Counts images, or what `unit` says, until they are `total`: the words first, then pace, time
    left and a bar; where there is no terminal, a line now and then."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "img"):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.unit, self.shown = unit, False
        self.bar: _Bar | None = None
        self.begun = self.said = time.monotonic()

    def show(self) -> None:
        """Shows it as it is now, in place of the stage that was going on."""
        if not self.shown:
            self.shown = True
            stage()
            self.bar = _bar(
                self.what, total=self.total, initial=self.done, unit=self.unit,
                bar_format="{desc}{pace}{left} |{bar}|",
            )  # fmt: skip
        elif self.bar is not None:
            self.bar.refresh()

    def advance(self, count: int) -> None:
        if not self.shown:
            self.show()
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif (now := time.monotonic()) - self.said >= max(5.0, 0.1 * (now - self.begun)):
            self.line(self.what)

    def say(self, what: str) -> None:
        """Other words, which the bar shows when it moves."""
        self.what = what
        if self.bar is not None:
            self.bar.set_description_str(what, refresh=False)

    def line(self, text: str) -> None:
        """A line of the log, with pace and time left."""
        now = time.monotonic()
        self.said = now
        rate = (self.done - self.first) / max(now - self.begun, 1e-9)
        left = ""
        if rate and self.total > self.done >= 0.05 * self.total:  # a guess before
            left = f"  {duration((self.total - self.done) / rate)} left"
        log.info("%s", f"{text}{_pace(rate, self.unit)}{left}")

    def close(self) -> None:
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
    return f"{entry['accuracy']:.1%} ({low:.1%} - {high:.1%})".replace("%", " %")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    cells = lambda row: [  # noqa: E731
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines = ["  ".join(cells(row)).rstrip() for row in [head, *rows]]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
