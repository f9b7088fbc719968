"""The parts of a benchmark, and the book that they are written into row by row."""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat.bench.units import digits, span

Row = dict[str, Any]  # of numbers; or {"note": a line}
Measurements = Iterator[tuple[str, Callable[[], list[Row]]]]  # name, and what gives rows


@dataclass(frozen=True)
class Part:
    """A table. `measurements(case, own)` gives, in order of value, names and what measures them;
    `cells(row)` are a row's, for `head`; `draw(rows, case, folder)` makes the figure."""

    title: str
    note: str
    head: list[str]
    measurements: Callable[[Any, Namespace], Measurements]
    cells: Callable[[Row], list[str]]
    draw: Callable[[list[Row], Any, Path], None] | None = None


class Book:
    """`benchmark.md` and `benchmark.json` of a folder, and the screen: each row as it is measured.

    What stands there of the same benchmark, stopped before its end, is not measured again.
    """

    def __init__(self, folder: Path, about: dict[str, Any], seconds: float = float("inf")):
        self.folder, self.begun, self.seconds = folder, time.monotonic(), seconds
        self.file, self.text = folder / "benchmark.json", folder / "benchmark.md"
        kept = self._stopped(about)
        self.found: dict[str, Any] = {"about": about, "left": kept.pop("left", ["all"])}
        self.kept = {name: part["rows"] for name, part in kept.items() if name != "about"}
        self.longest = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self.text.write_text("")

    def _stopped(self, about: dict[str, Any]) -> dict[str, Any]:
        try:
            kept = json.loads(self.file.read_text())
            same = all(kept["about"][k] == v for k, v in about.items() if k not in MOMENT)
            return kept if kept["left"] and same else {}
        except (OSError, ValueError, KeyError):
            return {}

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.text.open("a") as file:
            file.write(line + "\n")

    def write(self) -> None:
        self.file.write_text(json.dumps(self.found, indent=1) + "\n")

    def over(self) -> bool:
        """Whether the time is over, or would be with another row as long as the longest."""
        return time.monotonic() - self.begun + self.longest > self.seconds

    def measure(self, name: str, part: Part, case: Any, own: Namespace) -> list[str]:
        """One part; the names of the measurements that are left when the time is over."""
        self.say(f"\n## {part.title}\n\n{part.note}\n")
        rows: list[Row] = []
        self.found[name] = {"rows": rows}
        left: list[str] = []
        widths: list[int] = []
        for key, work in part.measurements(case, own):
            new = [row for row in self.kept.get(name, []) if row["key"] == key]
            if not new and self.over():
                left.append(f"{name} {key}")
                continue
            begun = time.monotonic()
            new = new or [{"key": key, **row} for row in work()]
            self.longest = max(self.longest, time.monotonic() - begun)
            rows += new
            widths = widths or self._head(part, new)
            for row in new:
                self.say(line_of(part.cells(row), widths) if "note" not in row else row["note"])
            self.write()
        if part.draw and any("note" not in row for row in rows):
            part.draw(rows, case, self.folder)
        return left

    def _head(self, part: Part, rows: list[Row]) -> list[int]:
        """Begins the table; the widths of its columns."""
        if not (told := [part.cells(row) for row in rows if "note" not in row]):
            return []
        least = [20, *(8 for _ in part.head[1:])]
        widths = [max(map(len, texts)) for texts in zip(part.head, *told, strict=True)]
        widths = [max(pair) for pair in zip(widths, least, strict=True)]
        rule = [f"{'-' * (w - 1)}{'-:'[i > 0]}" for i, w in enumerate(widths)]
        for line in (part.head, rule):
            self.say(line_of(line, widths))
        return widths


MOMENT = ("time", "command", "load")  # of the account of a machine: another in each call


def line_of(cells: list[str], widths: list[int]) -> str:
    texts = zip(cells, widths, strict=True)
    aligned = [text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(texts)]
    return f"| {' | '.join(aligned)} |"


def quartiles(spread: dict[str, float], factor: float = 1.0) -> str:
    return f"{digits(factor * spread['low'])} to {digits(factor * spread['high'])}"


def described(case: Any) -> str:
    """A case in a line, with the machine."""
    from sat.rundir.environment import environment

    told = environment(case.device)
    words = " ".join(word for word in case.words if not word.startswith("schedule.batch_size"))
    return f"{told['device']}, torch {told['torch']}; {words}, batch {case.batch}"


def unfinished(left: list[str], seconds: float) -> str:
    return f"\n{span(seconds)} are over; left, for the same command again: {', '.join(left)}"
