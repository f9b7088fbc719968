"""What one waits for around a training: seconds of whole commands, each in a process of its own,
over runs of one step that are made beforehand; files lie in the system's cache by then.

First step: from the start of `python -m sat.run` on digits to the first line of its metrics.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from sat.bench.book import Measurements, Row
from sat.bench.stopwatch import spread
from sat.errors import Fault

RUNS = 100  # of the sweep that is asked again and reported on
AIMS = {"help": 2, "first step": 8, "sweep again": 120}  # seconds, at 100 runs
# The default run, cut to one step: that is logged at once, and `auto` chooses as for the whole run.
SHORT = ["schedule.epochs=0.01", "validation.attack.steps=1", "evaluation.attacks.pgd20.steps=2",
         "evaluation.limit=40", "evaluation.masking_checks=40"]  # fmt: skip
TINY = [*SHORT, "model.width=0.125", "dataset.limit=100", "record.root=sweep"]
RUN = ["-m", "sat.run"]
OVER_RUNS = ("sweep again", "finished run again", "report")


def measurements(case: Any, own: Namespace) -> Measurements:
    """Rows of the default run and small ones: of the words only the device counts."""
    words = [word for word in own.words if word.startswith("device=")]
    commands = {
        "help": [*RUN, "--help"],
        "import sat.run": ["-c", "import sat.run"],
        "first step": [*RUN, *SHORT, *words],
        "sweep again": [*RUN, "-m", f"seed=range({RUNS})", *TINY, *words],
        "finished run again": [*RUN, "seed=0", *TINY, *words],
        "report": ["-c", "import sat.report.command as r; r.main()", "sweep"],
    }
    with tempfile.TemporaryDirectory(prefix="sat-program-") as folder:
        make_runs = cache(partial(seconds, commands["sweep again"], Path(folder)))
        for what, command in commands.items():
            yield what, partial(measure, what, command, Path(folder), own.rounds, make_runs)


def measure(
    what: str, command: Sequence[str], folder: Path, rounds: int, make_runs: Callable[[], object]
) -> list[Row]:
    if what in OVER_RUNS:
        make_runs()
    taken = [
        first_step(command, folder, f"first-{number}") if what == "first step" else
        seconds(command, folder) for number in range(rounds)
    ]  # fmt: skip
    of = f" ({RUNS} runs)" if what in ("sweep again", "report") else ""
    return [{"name": what + of, "seconds": spread(taken), "aim": AIMS.get(what)}]


def seconds(command: Sequence[str], folder: Path) -> float:
    """Seconds of a command from its start to its end. Raises Fault where it fails."""
    begun = time.perf_counter()
    with (folder / "said.txt").open("w+") as file:
        ended(command, start(command, folder, file), file)
    return time.perf_counter() - begun


def first_step(command: Sequence[str], folder: Path, root: str) -> float:
    """Seconds from the start of a run to its first line of metrics, which is written and flushed
    once the first update is done; the run then goes on to its end, which is not timed."""
    begun = time.perf_counter()
    with (folder / "said.txt").open("w+") as file:
        running = start([*command, f"record.root={root}"], folder, file)
        while running.poll() is None and not has_logged(folder / root):
            time.sleep(0.005)
        taken = time.perf_counter() - begun
        ended(command, running, file)
    return taken


def has_logged(root: Path) -> bool:
    return any(path.stat().st_size for path in root.glob("*/metrics.jsonl"))


def start(command: Sequence[str], folder: Path, said: Any) -> "subprocess.Popen[bytes]":
    """Python with the program on its path and all temporary files in the folder."""
    path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TMPDIR": str(folder)}
    words = [sys.executable, *command]
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=said, stderr=said)


def ended(command: Sequence[str], running: "subprocess.Popen[bytes]", said: Any) -> None:
    """Waits for the end. Raises Fault, with the last line of what it said, where it fails."""
    if code := running.wait():
        said.seek(0)
        last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
        raise Fault(f"{' '.join(command)}: ended with {code}: {last}")
