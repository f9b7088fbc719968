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
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat.errors import Refused, on_signals  # noqa: E402
from sat.loggers.usage import Parser  # noqa: E402
from sat.report.runs import finished, keep  # noqa: E402

SAVING = 120.0  # seconds that a line has to end when it is stopped: a sweep gives its runs 60
LIST = Path(__file__).with_suffix(".txt")


def arguments(given: list[str] | None = None) -> Namespace:
    """What the command line says; `plan` is every command for every seed, and its minutes."""
    parser = Parser("gpu_plan.py", None, __doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of the images")
    add("--plan", dest="list", type=Path, default=LIST, help=f"the list ({LIST.name})")
    add("--out", type=Path, default=Path("outputs"), help="folder of runs and tables (outputs)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="then stop")
    add("--seeds", default="0,1,2", metavar="S,S", help="one after the other (0,1,2)")
    add("--dry-run", action="store_true", help="print the lines, do nothing")
    own, line = parser.parse_args(given, Namespace(plan={})), ""
    for place in (own.data, own.out):
        if shlex.quote(str(place)) != str(place) or place.is_file():
            parser.error(f"{place}: stands in command lines; name a folder without odd signs")
    try:
        lines = [each for each in own.list.read_text().splitlines() if each.split("#")[0].strip()]
        for seed, line in product(own.seeds.split(","), lines):
            minutes, _, words = line.partition(":")
            command = words.strip().format(data=own.data, out=own.out, seed=seed)
            own.plan[command] = float(minutes)
            if not shlex.split(command):  # a quote may be open
                raise ValueError("no words")
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        wanted = f"{error}; write `minutes: words`, with {{data}} {{out}} {{seed}}"
        parser.error(f"--plan {own.list}: " + f"`{line}`: " * bool(line) + wanted)
    return own


def attend(command: str, log: Path, seconds: float) -> str:
    """What became of a line: it may take so long, and is then told to stop."""
    with log.open("a") as file:
        print(f"$ python {command}", file=file, flush=True)
        words = [sys.executable, *shlex.split(command)]
        running = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    told = True
    try:
        with suppress(subprocess.TimeoutExpired):
            told = running.wait(seconds) is None
    finally:  # a signal ends this command, and the line with it; one that has ended hears nothing
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(SAVING)
        running.kill()
    code = running.wait()  # -9 of itself: the memory was full, say, and would be again
    stopped = code in (130, 143, -15) or told and code == -9
    return "done" if code == 0 else "stopped" if stopped else "failed"


def carry_on(plan: dict[str, float], ledger: Path, seconds: float) -> list[str]:
    """One line after the other until the time is over; the state of each, which the ledger, a file,
    keeps."""
    states, end = dict[str, str](), time.monotonic() + seconds
    with suppress(OSError, ValueError, TypeError):
        states = dict(json.loads(ledger.read_text()))
    ledger.parent.mkdir(parents=True, exist_ok=True)
    for command in sorted(plan, key=lambda command: states.get(command) == "failed"):
        left = end - time.monotonic()
        if states.get(command) == "done" or left <= 0:
            continue
        print(f"python {command}", flush=True)
        states[command] = attend(command, ledger.with_suffix(".log"), min(left, 60 * plan[command]))
        print(f"    {states[command]}", flush=True)
        ledger.write_text(json.dumps(states, indent=1) + "\n")
        try:  # one small file beside the runs, all that a report needs
            keep(finished(ledger.parent), ledger.parent / "runs.jsonl")
        except (Refused, OSError) as error:
            print(f"    {error}", flush=True)
    return [states.get(command, "left") for command in plan]


def main(given: list[str] | None = None) -> int:
    own = arguments(given)
    if own.dry_run:
        print(*(f"python {command}" for command in own.plan), sep="\n")
        return 0
    on_signals(lambda number, _: sys.exit(128 + number))
    states = carry_on(own.plan, ledger := own.out / f"{own.list.stem}.json", 60 * own.minutes)
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("done", "stopped", "failed", "left"))
    print(f"{counts}; what they said: {ledger.with_suffix('.log')}")
    return 1 if "failed" in states else 0 if {*states} <= {"done"} else 143


if __name__ == "__main__":
    sys.exit(main())
