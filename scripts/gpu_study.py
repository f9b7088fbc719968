"""Everything that is to be measured on a GPU, by one command that is given again and again:

    python scripts/gpu_study.py DATA --dry-run        # the plan: command lines, in order of value
    python scripts/gpu_study.py DATA --minutes 8      # goes on with it, for eight minutes
    python scripts/gpu_study.py DATA --rehearse       # every line on a CPU, some seconds each

DATA holds cifar-10-batches-py (which is downloaded if it is missing) and one folder of photographs,
with train/<class>/ and val/<class>/. What is done is not done again; what was stopped or killed
goes on. OUT/study has a record and a log of each line. When the minutes are over the line that runs
is told to stop, and has two more for a checkpoint.

Exit codes: 0 all is done, 1 a line failed, 2 refused, 143 the minutes are over and work is left.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_plan import PARTS, RATE, Line, Places, lines, rehearsed
from units import span

from sat.errors import Refused
from sat.loggers.screen import table

ROOT = Path(__file__).parents[1]
SAVING = 120.0  # seconds that a line has to end when it is stopped: a sweep gives its runs 60
DONE, UNDER_WAY, FAILED, LEFT = "done", "under way", "failed", "left"
COLLECT = """\
To bring results into the repository (docs/gpu.md):
    python scripts/report.py {out}
    python scripts/report.py {out} --keep docs/results/runs
    make results
and the tables of {out}/benchmark/*/benchmark.md and {out}/study/projection-imagenet.log."""


class Study:
    """The lines of a plan and how far each has come, by the records of `folder`."""

    def __init__(self, plan: Sequence[Line], out: Path):
        self.plan, self.out, self.folder = plan, out, out / "study"

    def record(self, line: Line) -> dict[str, Any]:
        """What was done of a line: of this one, and not of another of its name."""
        try:
            found = json.loads((self.folder / f"{line.name}.json").read_text())
        except (OSError, ValueError):
            found = {}
        new = {"command": line.command, "state": LEFT, "seconds": 0.0}
        return found if found.get("command") == line.command else new

    def note(self, line: Line, **news: Any) -> None:
        record = {**self.record(line), **news}
        temporary = self.folder / f"{line.name}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, self.folder / f"{line.name}.json")

    def now(self) -> list[tuple[Line, dict[str, Any]]]:
        """Each line as it would run now, with its record."""
        measured = [line.measured(self.out) for line in self.plan]
        return [(line, self.record(line)) for line in measured]

    def next(self, tried: set[str]) -> Line | None:
        """The first line that is not done. What failed in an earlier call, and what was stopped and
        begins anew, comes last: it must not keep others waiting for ever."""
        open_lines = [
            (record["state"] == FAILED or record["state"] == UNDER_WAY and not line.resumes, line)
            for line, record in self.now()
            if record["state"] != DONE and line.name not in tried and RATE not in line.words
        ]
        return min(open_lines, key=lambda entry: entry[0], default=(None, None))[1]

    def attend(self, line: Line, deadline: float, stop: list[int]) -> int:
        """Runs a line to its end or until it must stop; its exit code."""
        before, begun = self.record(line)["seconds"], time.monotonic()
        self.note(line, state=UNDER_WAY)
        with (self.folder / f"{line.name}.log").open("a") as log:
            print(f"$ {line.command}", file=log, flush=True)
            code = attended([sys.executable, *line.words], log, deadline, stop)
        ended = {0: DONE}.get(code, UNDER_WAY if code > 128 or code < 0 and stop else FAILED)
        seconds = before + time.monotonic() - begun
        self.note(line, state=ended, seconds=round(seconds, 1), code=code)
        return code

    def summary(self) -> str:
        """A row for each line that was begun, and those that are left by their names."""
        rows, left = [], []
        for line, record in self.now():
            if record["state"] == LEFT:
                left.append(line.name)
            else:
                rows.append([line.name, record["state"], span(record["seconds"])])
        states = [state for _, state, _ in rows] + [LEFT] * len(left)
        counts = ", ".join(f"{states.count(s)} {s}" for s in (DONE, UNDER_WAY, FAILED, LEFT))
        told = [table(["line", "state", "time so far"], rows)] if rows else []
        told += [f"left: {', '.join(left)}"] if left else []
        told += [
            f"! {line.name} failed ({self.folder / line.name}.log): {line.command}"
            for line, record in self.now()
            if record["state"] == FAILED
        ]
        return "\n".join([*told, counts])


def attended(words: Sequence[str], log: Any, deadline: float, stop: list[int]) -> int:
    """The exit code of a process, which is stopped when the time is over or `stop` holds a signal.

    It is a session of its own: Ctrl-C reaches it once, through here; a second would cost it the
    checkpoint.
    """
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not stop:
        if time.monotonic() > deadline:
            stop.append(signal.SIGTERM)
        else:
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SAVING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that receives the signals that ask this process to stop."""
    told: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, frame: told.append(number)) for n in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def carry_on(study: Study, deadline: float) -> int:
    """One line after the other until none is left, or the time is over; the exit code."""
    study.folder.mkdir(parents=True, exist_ok=True)
    tried: set[str] = set()
    with signals() as stop:
        while not stop and (line := study.next(tried)) is not None:
            if time.monotonic() > deadline:
                stop.append(signal.SIGTERM)
                break
            tried.add(line.name)
            print(f"{line.name} (tail -f {study.folder / line.name}.log)", flush=True)
            print(f"    {line.command}", flush=True)
            code = study.attend(line, deadline, stop)
            ended = study.record(line)
            print(f"    {ended['state']}: exit code {code}, {span(ended['seconds'])}", flush=True)
    states = [record["state"] for _, record in study.now()]
    if FAILED in states:
        return 1
    return 0 if set(states) <= {DONE} else 128 + (stop or [signal.SIGTERM])[0]


def photographs_in(data: Path) -> Path:
    """The one folder of DATA that has train/ and val/. Raises Refused for none or several."""
    folders = sorted(path for path in data.iterdir() if (path / "train").is_dir())
    found = [path for path in folders if (path / "val").is_dir()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise Refused(
            f"{data}: photographs need one folder with train/<class>/ and val/<class>/, here"
            f" {names}; or leave them away: --parts speed,projection,cifar10,overfitting"
        )
    return found[0]


def short(path: Path) -> Path:
    """As it is written in a line, which runs in the repository."""
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def parts(text: str) -> list[str]:
    for part in (chosen := text.split(",")):
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part}: is none of {', '.join(PARTS)}")
    return chosen


def positive(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError
    return number


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_study.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of the images")
    add("--out", type=Path, help="folder of runs and tables (outputs; --rehearse: rehearsal)")
    add("--minutes", type=positive, default=float("inf"), metavar="M", help="then stop")
    add("--parts", type=parts, default=list(PARTS), metavar="P,P", help=f"of {','.join(PARTS)}")
    add("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2],
        metavar="S,S", help="one after the other (0,1,2)")  # fmt: skip
    add("--jobs", type=lambda text: int(positive(text)), default=3, metavar="N",
        help="runs on 32x32 images that share the GPU (3)")  # fmt: skip
    add("--dry-run", action="store_true", help="print the plan, do nothing")
    add("--rehearse", action="store_true", help="tiny runs, for a CPU; --out is another folder")
    own = parser.parse_args(given)
    own.out = short(own.out or Path("rehearsal" if own.rehearse else "outputs"))
    return own


def study_of(own: argparse.Namespace) -> Study:
    if not own.data.is_dir():
        raise Refused(f"{own.data}: no such folder")
    data = short(own.data)
    photographs = photographs_in(own.data) if "photographs" in own.parts else None
    places = Places(data, own.out, own.jobs, photographs and short(photographs))
    plan = lines(places, own.parts, own.seeds)
    return Study([rehearsed(line) for line in plan] if own.rehearse else plan, own.out)


def main(given: Sequence[str] | None = None) -> int:
    begun, own = time.monotonic(), arguments(given)
    try:
        study = study_of(own)
        if own.dry_run:
            for line, record in study.now():
                print(f"# {line.name}: {record['state']}\n{line.command}")
            return 0
        code = carry_on(study, begun + 60 * own.minutes)
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{study.summary()}\n\n{COLLECT.format(out=own.out)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
