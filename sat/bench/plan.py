"""Goes through a list of command lines with budgets, by one command that is given again and again:

    python scripts/gpu_plan.py DATA --dry-run        # scripts/gpu_plan.txt, as it would run here
    python scripts/gpu_plan.py DATA --minutes 8      # goes on with it, for eight minutes

Lines are `minutes: words after python`; {data} is DATA, {out} is --out; the list is gone through
once for each {seed}, and what names none is done with the first. What is done is not done again;
what was stopped goes on, and what failed is tried again, last. A line that has used up its minutes,
or finds the call's own over, is told to stop, and has two more for a checkpoint. Finished runs are
gathered in --out/runs.jsonl, which `make results NEW=FILE` adds to docs/results.md.

Exit codes: 0 all is done, 1 a line failed, 2 refused, 143 work is left, 130 after Ctrl-C.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sat.errors import Refused
from sat.loggers.screen import refuse
from sat.loggers.usage import Parser
from sat.report.runs import finished, keep

SAVING = 120.0  # seconds that a line has to end when it is stopped: a sweep gives its runs 60
DONE, STOPPED, FAILED, LEFT = "done", "stopped", "failed", "left"


def lines(text: str, own: Namespace) -> dict[str, float]:
    """Every command of the list for every seed, in order, and its minutes. Raises Refused for one
    of no budget."""
    found: dict[str, float] = {}
    written = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    for seed in own.seeds.split(","):
        for line in written:
            minutes, _, words = line.partition(":")
            try:
                command = words.strip().format(data=own.data, out=own.out, seed=seed)
                found.setdefault(command, float(minutes))
            except (KeyError, ValueError) as error:
                raise Refused(
                    f"{line}: write `minutes: words`, with {{data}} {{out}} {{seed}}"
                ) from error
    return found


def attend(command: str, log: Path, seconds: float) -> str:
    """What became of a line: it may take so long, and is then told to stop."""
    with log.open("a") as file:
        print(f"$ python {command}", file=file, flush=True)
        words = [sys.executable, *shlex.split(command)]
        running = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
    try:
        with suppress(subprocess.TimeoutExpired):
            running.wait(seconds)
    finally:  # Ctrl-C and SIGTERM end this command, and the line with it
        if running.poll() is None:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(SAVING)
            running.kill()
            running.wait()
    stopped = running.returncode in (130, 143, -signal.SIGTERM, -signal.SIGKILL)
    return DONE if running.returncode == 0 else STOPPED if stopped else FAILED


def carry_on(plan: dict[str, float], ledger: Path, seconds: float) -> dict[str, str]:
    """One line after the other until none is left or the time is over; the state of each, which the
    ledger, a file, keeps."""
    states: dict[str, str] = {}
    with suppress(OSError, ValueError):
        states = json.loads(ledger.read_text())
    end = time.monotonic() + seconds
    ledger.parent.mkdir(parents=True, exist_ok=True)
    for command in sorted(plan, key=lambda command: states.get(command) == FAILED):
        left = end - time.monotonic()
        if states.get(command) == DONE or left <= 0:
            continue
        print(f"python {command}", flush=True)
        states[command] = attend(command, ledger.with_suffix(".log"), min(left, 60 * plan[command]))
        print(f"    {states[command]}", flush=True)
        ledger.write_text(json.dumps(states, indent=1) + "\n")
        try:  # one small file beside the runs, all that a report needs
            keep(finished(ledger.parent), ledger.parent / "runs.jsonl")
        except (Refused, OSError) as error:
            print(f"    {error}", flush=True)
    return {command: states.get(command, LEFT) for command in plan}


def arguments(given: Sequence[str] | None, plan: Path) -> Namespace:
    parser = Parser("gpu_plan.py", None, __doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of the images")
    add("--plan", type=Path, default=plan, help=f"the list ({plan.name})")
    add("--out", type=Path, default=Path("outputs"), help="folder of runs and tables (outputs)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="then stop")
    add("--seeds", default="0,1,2", metavar="S,S", help="one after the other (0,1,2)")
    add("--dry-run", action="store_true", help="print the lines, do nothing")
    return parser.parse_args(given)


def main(plan: Path, given: Sequence[str] | None = None) -> int:
    own = arguments(given, plan)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        found = lines(own.plan.read_text(), own)
    except (Refused, OSError) as error:
        refuse(error)
        return 2
    if own.dry_run:
        print("\n".join(f"python {command}" for command in found))
        return 0
    ledger = own.out / f"{own.plan.stem}.json"
    try:
        states = [*carry_on(found, ledger, 60 * own.minutes).values()]
    except KeyboardInterrupt:
        return 130
    counts = ", ".join(f"{states.count(s)} {s}" for s in (DONE, STOPPED, FAILED, LEFT))
    print(f"{counts}; what they said: {ledger.with_suffix('.log')}")
    return 1 if FAILED in states else 0 if {*states} <= {DONE} else 143
