"""Kills, command lines, damaged files, and the commands that the docs give: `python -m tests.crash
[--many] [--only KIND]`, or `make soak`. What was tried is counted in outputs/.soak.json, where the
next go goes on."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does, for `warm`

from . import lines
from .documented import Documented
from .files import KINDS, Files
from .kills import ROOT, Kills

COUNTS = ROOT / "outputs" / ".soak.json"
Attempt = Callable[[int], tuple[int, list[str]]]
FEW = {"kills": 10, "lines": 200, "lines of Hydra": 24, "lines as processes": 10}
MANY = {"kills": 200, "lines": 10_000, "lines of Hydra": 500, "lines as processes": 300}
FEW |= {"documented": 10}
MANY |= {"documented": 100}
FEW |= {f"files: {kind}": 5 for kind in KINDS}
MANY |= {f"files: {kind}": 1000 for kind in KINDS}


class Makers:
    """What tries each kind, made when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, None

    def of(self, kind: str) -> Attempt:
        if kind == "kills":
            return Kills(self.folder / "kills").attempt
        if kind == "documented":
            return Documented(self.folder).attempt
        if kind == "lines as processes":
            return lines.attempt_process
        if kind.startswith("lines"):
            return lambda number: lines.attempt(number, kind == "lines of Hydra")
        self.files = self.files or Files(self.folder / "files")
        return lambda number: self.files.attempt(kind.removeprefix("files: "), number)


def soak(kind: str, attempt: Attempt, wanted: int, first: int | None) -> dict:
    """Tries so many more of a kind, from where the last go ended or from a number; the account."""
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    told = counts.setdefault(kind, {"next": 0, "tried": 0, "wrong": 0})
    number, tried, wrong = told["next"] if first is None else first, 0, 0
    while tried < wanted:
        count, complaints = attempt(number)
        for line in complaints:
            print(f"! {kind} {number}: {line}", flush=True)
        tried, wrong, number = tried + count, wrong + bool(complaints), number + 1
        if first is None:
            told |= {"next": number, "tried": told["tried"] + count}
            told["wrong"] += bool(complaints)
            COUNTS.parent.mkdir(exist_ok=True)
            COUNTS.with_suffix(".tmp").write_text(json.dumps(counts, indent=2) + "\n")
            os.replace(COUNTS.with_suffix(".tmp"), COUNTS)
    print(f"{kind}: {tried} tried, {wrong} wrong; {told['tried']} and {told['wrong']} in all")
    return {"tried": tried, "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--many", action="store_true", help="hours, in place of minutes")
    parser.add_argument("--only", default="", help="the kinds whose names begin so")
    parser.add_argument("--number", type=int, help="one trial by its number, not counted")
    given = parser.parse_args()
    kinds = [kind for kind in FEW if kind.startswith(given.only)]
    if not kinds:
        print(f"--only {given.only}: no such kind; there are: {', '.join(FEW)}", file=sys.stderr)
        return 2
    os.environ["HYDRA_FULL_ERROR"] = "1"
    wanted = MANY if given.many else FEW
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.chdir(folder)
        makers = Makers(Path(folder))
        told = [
            soak(kind, makers.of(kind), 1 if given.number is not None else wanted[kind],
                 given.number)
            for kind in kinds
        ]  # fmt: skip
        os.chdir(ROOT)
    return int(any(each["wrong"] for each in told))


if __name__ == "__main__":
    sys.exit(main())
