"""What a run says on the screen: a progress bar, or plain lines where there is no terminal."""

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from sat.errors import printable
from sat.launch import lasting_streams, processes

log = logging.getLogger("sat")
NARROW = "{desc}{percentage:3.0f}%, {remaining} left{postfix}"


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


class Progress:
    """Counts images: rate and time left, as a bar on a terminal, else a line now and then."""

    def __init__(self, what: str, total: int, done: int = 0, seconds: float = 5.0):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.seconds = seconds
        self.begun = self.said = time.monotonic()
        self.note = ""
        self.bar = None
        if sys.stderr.isatty() and log.isEnabledFor(logging.INFO) and not _Handler.label:
            self.bar = tqdm(
                total=total, initial=done, desc=what, unit=" images", dynamic_ncols=True,
                leave=False, smoothing=0.1,
            )  # fmt: skip

    def advance(self, images: int) -> None:
        self.done += images
        if self.bar is not None:
            self.bar.update(images)
        elif (now := time.monotonic()) - self.said >= max(self.seconds, 0.1 * (now - self.begun)):
            self.said = now
            rate = (self.done - self.first) / (now - self.begun)
            left = duration((self.total - self.done) / max(rate, 1e-9))
            share = f"{self.done / self.total:4.0%}"
            pace = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            left = f"{left} left" if self.done >= 0.05 * self.total else ""  # a guess before
            line = f"{self.what} {share}  {pace} images/s  {left}  {self.note}"
            log.info("%s", line.rstrip())

    def say(self, note: str) -> None:
        """Something short to stand beside the bar, or in its place where both have no room."""
        self.note = note
        if self.bar is not None:
            narrow = shutil.get_terminal_size().columns < 60 + len(note)
            self.bar.bar_format = NARROW if narrow else None
            self.bar.set_postfix_str(note)

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
