"""Tables that are told and written row by row, when a row is measured.

A row is its columns as they are printed: text, numbers, and spreads (median and quartiles). Two
more keys aren't printed: `key`, the measurement that gave it, and `about`, what else there is to
know. A row that is only {"note": ...} is a line of text.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sat.errors import first_line, is_out_of_memory
from sat.loggers.screen import say, stage

Row = dict[str, Any]
# The most valuable first: name, cost beside the others of its part, and what gives rows.
Measurements = Iterator[tuple[str, float, Callable[[], list[Row]]]]
SILENT = ("key", "about", "note")
MOMENT = ("time", "command")  # of the account of a machine: another in each call


class Book:
    """`benchmark.md` and `benchmark.json` of a folder, and the screen; `about` is what was
    measured, and where.

    What stands there of the same benchmark, stopped before its end, is not measured again; after
    `until`, of the monotonic clock, nothing is begun.
    """

    def __init__(self, folder: Path, about: dict[str, Any], until: float = float("inf")):
        self.until, self.left = until, list[str]()
        self.file, self.text = folder / "benchmark.json", folder / "benchmark.md"
        self.kept = self._stopped(about)
        self.found: dict[str, Any] = {"about": about, "left": ["all"]}
        folder.mkdir(parents=True, exist_ok=True)
        self.text.write_text("")
        self.say("# Benchmark\n")
        for key, value in about.items():
            self.say(f"- {key}: {value:,}" if isinstance(value, int) else f"- {key}: {value}")

    def _stopped(self, about: dict[str, Any]) -> dict[str, Any]:
        try:
            kept = json.loads(self.file.read_text())
            same = all(kept["about"][k] == v for k, v in about.items() if k not in MOMENT)
            return kept if kept["left"] and same else {}
        except (OSError, ValueError, KeyError):
            return {}

    def say(self, line: str) -> None:
        say(line)
        with self.text.open("a") as file:
            file.write(line + "\n")

    def measure(self, part: str, note: str, measurements: Measurements) -> None:
        """One table. Measurements are left when the time is over, or where they would take longer
        than it is, by those before; of what is compiled and can't be there is a note."""
        self.say(f"\n## {part.capitalize()}\n\n{note}")
        rows = self.found[part] = list[Row]()
        head, slowest = list[str](), 0.0
        for key, cost, work in measurements:
            new = [row for row in self.kept.get(part, []) if row["key"] == key]
            begun = time.monotonic()
            if not new and begun + slowest * cost > self.until:
                self.left.append(f"{part} {key}")
                continue
            if not new:
                stage(f"{part}: {key}")
                try:
                    new = [{"key": key, **row} for row in work()]
                except Exception as error:  # torch's compiler raises many kinds
                    if not key.endswith("compiled"):
                        raise
                    new = [{"key": key, "note": left_out(key, error)}]
                slowest = max(slowest, (time.monotonic() - begun) / max(cost, 1))
            rows += new
            head = self._tell(new, head)
            self.write()

    def _tell(self, rows: list[Row], head: list[str]) -> list[str]:
        """Prints rows, below a head where they have columns that it lacks; the head from now on."""
        columns = dict.fromkeys(key for row in rows for key in row if key not in SILENT)
        if not {*columns} <= {*head}:
            head = [*columns]
            self.say("\n" + line_of(head, head))
            self.say(line_of(head, ["---", *("---:" for _ in head[1:])]))
        for row in rows:
            cells = [cell(row.get(key)) for key in head]
            self.say(row["note"] if "note" in row else line_of(head, cells))
        return head

    def write(self) -> None:
        self.file.write_text(json.dumps(self.found, indent=1) + "\n")

    def close(self) -> int:
        """Tells what is left; the exit code."""
        if self.left:
            left = ", ".join(self.left)
            self.say(f"\nThe time is over; left, for the same command again: {left}")
        self.found["left"] = self.left
        self.write()
        return 143 if self.left else 0


def left_out(what: str, error: Exception) -> str:
    """A line of what can't be timed; memory that runs out is raised again."""
    if is_out_of_memory(error):
        raise error
    return f"{what} is left out: it failed ({first_line(error)})"


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return "{} ({} to {})".format(*(digits(value[key]) for key in ("median", "low", "high")))
    return "-" if value is None else value if isinstance(value, str) else digits(value)


def digits(number: float) -> str:
    """Three of a number."""
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:.3g}"


def line_of(head: list[str], cells: list[str]) -> str:
    """Aligned below its head, where a cell isn't wider."""
    first, *rest = cells
    aligned = [text.rjust(max(8, len(name))) for name, text in zip(head[1:], rest, strict=True)]
    return f"| {' | '.join([first.ljust(34), *aligned])} |"
