"""What one waits for around a training: whole commands, each in a process of its own, over runs of
one step that are made beforehand; files lie in the system's cache by then."""

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sat.bench.part import Measurements, Part, Row, quartiles
from sat.bench.stopwatch import spread
from sat.bench.units import digits
from sat.errors import Fault

RUNS = 100  # of the sweep that is asked again and reported on
AIMS = {"help": 2, "first step": 8, "sweep again": 120}  # seconds, at 100 runs
# The default run, cut to one step: that is logged at once, and `auto` chooses as for the whole run.
SHORT = ["schedule.epochs=0.01", "validation.attack.steps=1", "evaluation.attacks.pgd20.steps=2",
         "evaluation.limit=40", "evaluation.masking_checks=40"]  # fmt: skip
TINY = [*SHORT, "model.width=0.125", "dataset.limit=100", "record.root=sweep"]
RUN = [sys.executable, "-m", "sat.run"]
HEAD = ["command", "seconds", "quartiles", "aim"]
NOTE = """\
Seconds of whole commands, each in a new process. First step: from the start of `python -m sat.run`
on digits, cut to one step, to the first line of its metrics."""


def measurements(case: Any, own: Namespace) -> Measurements:
    """Of the default run and small ones: of the words only the device counts."""
    words = [word for word in own.words if word.startswith("device=")]
    commands = {
        "help": [*RUN, "--help"],
        "import sat.run": [sys.executable, "-c", "import sat.run"],
        "first step": [*RUN, *SHORT, *words],
        "finished run again": [*RUN, "seed=0", *TINY, *words],
        "sweep again": [*RUN, "-m", f"seed=range({RUNS})", *TINY, *words],
        "report": [sys.executable, "-c", "import sat.report.command as r; r.main()", "sweep"],
    }
    with tempfile.TemporaryDirectory(prefix="sat-program-") as folder:
        for what, command in commands.items():
            if what == "finished run again":
                seconds(commands["sweep again"], Path(folder))
            yield what, partial(measure, what, command, Path(folder), own.rounds)


def measure(what: str, command: Sequence[str], folder: Path, rounds: int) -> list[Row]:
    if what == "first step":
        taken = [first_step(command, folder, f"first-{number}") for number in range(rounds)]
    else:
        taken = [seconds(command, folder) for _ in range(rounds)]
    of = f" ({RUNS} runs)" if what in ("sweep again", "report") else ""
    row = {"command": what + of, "aim": AIMS.get(what), "rounds": taken, "seconds": spread(taken)}
    return [row]


def seconds(command: Sequence[str], folder: Path) -> float:
    """Of a command from its start to its end. Raises Fault where it fails."""
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(folder), text=True,
                          capture_output=True, check=False)  # fmt: skip
    taken = time.perf_counter() - begun
    if done.returncode:
        raise failed(command, done.returncode, done.stderr)
    return taken


def first_step(command: Sequence[str], folder: Path, root: str) -> float:
    """From the start of a run to its first line of metrics, which is written and flushed once the
    first update is done; the run then goes on to its end, which is not timed."""
    begun = time.perf_counter()
    with (folder / f"{root}.txt").open("w+") as file:
        running = subprocess.Popen([*command, f"record.root={root}"], cwd=folder, stdout=file,
                                   stderr=file, env=environment(folder))  # fmt: skip
        while running.poll() is None and not has_logged(folder / root):
            time.sleep(0.005)
        taken = time.perf_counter() - begun
        if (code := running.wait()) or not has_logged(folder / root):
            file.seek(0)
            raise failed(command, code, file.read())
    return taken


def has_logged(root: Path) -> bool:
    return any(path.stat().st_size for path in root.glob("*/metrics.jsonl"))


def environment(folder: Path) -> dict[str, str]:
    """This one's, with the program on the path and all temporary files in the folder."""
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}


def failed(command: Sequence[str], code: int, said: str) -> Fault:
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return Fault(f"{' '.join(command[1:])}: ended with {code}: {last}")


def cells(row: Row) -> list[str]:
    taken, aim = row["seconds"], row["aim"]
    return [row["command"], digits(taken["median"]), quartiles(taken), f"{aim}" if aim else "-"]


PART = Part("Program", NOTE, HEAD, measurements, cells)
