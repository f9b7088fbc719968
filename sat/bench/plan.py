"""Goes through a list of command lines with budgets, by one command that is given again and again:

    python scripts/gpu_plan.py DATA --dry-run        # scripts/gpu_plan.txt, as it would run here
    python scripts/gpu_plan.py DATA --minutes 8      # goes on with it, for eight minutes

Lines are `minutes: words after python`; {data} is DATA, {photographs} the one folder in it with
train/ and val/ (without one its lines are left out), {out} is --out, {jobs} is --jobs. The list is
gone through once for each {seed}; what names none is done with the first. What is done is not done
again; what was stopped or killed goes on, and comes last if it failed. A line that has used up its
minutes, or finds the call's own over, is told to stop, and has two more for a checkpoint.

Exit codes: 0 all is done, 1 a line failed, 2 refused, 143 work is left, 130 after Ctrl-C.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sat.bench.units import span
from sat.errors import Refused

SAVING = 120.0  # seconds that a line has to end when it is stopped: a sweep gives its runs 60
DONE, STOPPED, FAILED, LEFT = "done", "stopped", "failed", "left"
Lines = dict[str, float]  # commands, and their minutes


def lines(text: str, places: dict[str, Any], seeds: Sequence[int]) -> Lines:
    """Every command of the list for every seed, in order. Raises Refused for one of no budget."""
    found: Lines = {}
    for seed in seeds:
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            minutes, _, words = line.partition(":")
            try:
                command = words.strip().format_map(places | {"seed": seed})
                found.setdefault(command, float(minutes))
            except KeyError:  # of a place that is not here
                continue
            except ValueError as error:
                raise Refused(f"{line}: write `minutes: words`") from error
    return found


class Ledger:
    """How far each line has come: a file, written whole after each change."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self.kept: dict[str, dict[str, Any]] = json.loads(file.read_text())
        except (OSError, ValueError):
            self.kept = {}

    def state(self, command: str) -> str:
        return self.kept.get(command, {}).get("state", LEFT)

    def note(self, command: str, state: str, seconds: float = 0.0, code: int | None = None) -> None:
        spent = self.kept.get(command, {}).get("seconds", 0.0) + seconds
        self.kept[command] = {"state": state, "seconds": round(spent, 1), "code": code}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.kept, indent=1) + "\n")
        os.replace(temporary, self.file)


def attend(command: str, log: Path, deadline: float, told: list[int]) -> int:
    """The exit code of a line, which is stopped at the deadline or when `told` holds a signal.

    It is a session of its own: Ctrl-C reaches it once, through here; a second would cost it the
    checkpoint.
    """
    with log.open("a") as file:
        print(f"$ python {command}", file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, *shlex.split(command)], stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    while process.poll() is None and not told and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SAVING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        return 128 + signal.SIGTERM if process.wait() else 0
    return process.returncode


def carry_on(plan: Lines, ledger: Ledger, seconds: float) -> int:
    """One line after the other until none is left, or the time is over; the exit code."""
    told: list[int] = []
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {n: signal.signal(n, lambda number, _: told.append(number)) for n in signals
              if signal.getsignal(n) != signal.SIG_IGN}  # fmt: skip
    end, log = time.monotonic() + seconds, ledger.file.with_suffix(".log")
    ledger.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        for command in sorted(plan, key=lambda command: ledger.state(command) == FAILED):
            if ledger.state(command) == DONE or told or (begun := time.monotonic()) >= end:
                continue
            print(f"python {command}", flush=True)
            ledger.note(command, STOPPED)
            code = attend(command, log, min(end, begun + 60 * plan[command]), told)
            state = DONE if not code else STOPPED if code in (130, 143) else FAILED
            ledger.note(command, state, time.monotonic() - begun, code)
            print(f"    {state}: {span(ledger.kept[command]['seconds'])} so far", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    states = [ledger.state(command) for command in plan]
    told = told or [signal.SIGTERM]
    return 1 if FAILED in states else 0 if set(states) <= {DONE} else 128 + told[0]


def summary(plan: Lines, ledger: Ledger) -> str:
    states = [ledger.state(command) for command in plan]
    failed = [f"! failed: python {line}" for line in plan if ledger.state(line) == FAILED]
    counts = ", ".join(f"{states.count(s)} {s}" for s in (DONE, STOPPED, FAILED, LEFT))
    return "\n".join([*failed, f"{counts}; what they said: {ledger.file.with_suffix('.log')}"])


def places_of(own: Namespace) -> dict[str, Any]:
    """What the lines may name. Raises Refused where the images are not there."""
    if not own.data.is_dir():
        raise Refused(f"{own.data}: no such folder")
    places = {"data": own.data, "out": own.out, "jobs": own.jobs}
    found = [train.parent for train in own.data.glob("*/train") if (train / "../val").is_dir()]
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise Refused(f"{own.data}: more than one folder of photographs: {names}")
    return places | ({"photographs": found[0]} if found else {})


def arguments(given: Sequence[str] | None, plan: Path) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_plan.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of the images")
    add("--plan", type=Path, default=plan, help=f"the list ({plan.name})")
    add("--out", type=Path, default=Path("outputs"), help="folder of runs and tables (outputs)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="then stop")
    add("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2],
        metavar="S,S", help="one after the other (0,1,2)")  # fmt: skip
    add("--jobs", type=int, default=3, help="runs on 32x32 images that share the GPU (3)")
    add("--dry-run", action="store_true", help="print the lines, do nothing")
    return parser.parse_args(given)


def main(plan: Path, given: Sequence[str] | None = None) -> int:
    own = arguments(given, plan)
    try:
        found = lines(own.plan.read_text(), places_of(own), own.seeds)
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    ledger = Ledger(own.out / f"{own.plan.stem}.json")
    if own.dry_run:
        for line in found:
            print(f"# {ledger.state(line)}\npython {line}")
        return 0
    code = carry_on(found, ledger, 60 * own.minutes)
    print(summary(found, ledger))
    return code
