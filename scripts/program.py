"""What one waits for around a training: whole commands, each in a process of its own.

    python scripts/benchmark.py --parts program

The runs that it asks again and reports on are trainings of one step, made beforehand in a temporary
folder; files lie in the system's cache by then, as they do for who works with them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from pages import grid
from sat.report.runs import read_yaml, runs_in
from steps import digits
from stopwatch import spread

from sat.config import check
from sat.errors import Fault

ROOT = Path(__file__).resolve().parents[1]
RUNS = 100  # of the sweep that is asked again
RESULTS = 1000  # run directories that are reported on
EXPERIMENTS = ("activations", "attack_steps", "longer_training")  # of which the report has tables
AIMS = {"help": 2, "first step": 8, "sweep again": 120, "report": 30}  # seconds; at RUNS, RESULTS
LOOKS = 0.005  # seconds between two looks for the first step
# The default run, cut to one step: that is logged at once, and `auto` chooses as for the whole run.
SHORT = ["schedule.epochs=0.01", "validation.attack.steps=1", "evaluation.attacks.pgd20.steps=2",
         "evaluation.limit=40", "evaluation.masking_checks=40"]  # fmt: skip
TINY = [*SHORT, "model.width=0.125", "dataset.limit=100"]

Call = Callable[[], float]  # seconds of a command


def measure_program(
    words: Sequence[str], rounds: int, progress: Callable[[str], object]
) -> dict[str, Any]:
    """Seconds of each command in every round; `words` (a device) go to all that train."""
    with tempfile.TemporaryDirectory(prefix="sat-program-") as name:
        calls = commands(Path(name), words, progress)
        times: dict[str, list[float]] = {what: [] for what, _ in calls}
        for number in range(rounds):
            for what, call in calls:
                times[what].append(call())
                progress(f"round {number + 1} of {rounds}: {what}")
    rows = [
        {"command": what, "aim": AIMS.get(what), "rounds": taken, "seconds": spread(taken).json()}
        for what, taken in times.items()
    ]
    return {"runs": RUNS, "results": RESULTS, "rows": rows}


def commands(
    folder: Path, words: Sequence[str], progress: Callable[[str], object]
) -> list[tuple[str, Call]]:
    """What is timed, in the order of a round, over runs that are made here, in `folder`."""
    run = [sys.executable, "-m", "sat.run"]
    again = [*run, "-m", f"seed=range({RUNS})", "record.root=sweep", *TINY, *words]
    progress(f"making {RUNS} finished runs")
    seconds(again, folder)
    for experiment in EXPERIMENTS:
        progress(f"making runs of {experiment}")
        asked = ["-m", f"experiment={experiment}", "seed=0,1", "record.root=made"]
        seconds([*run, *asked, *TINY, *words], folder)
    progress(f"making {RESULTS} run directories")
    multiply(folder / "made", folder / "results")
    report = [sys.executable, str(ROOT / "scripts" / "report.py"), "results"]
    finished = [*run, "seed=0", "record.root=sweep", *TINY, *words]
    fresh = (f"first-{number}" for number in count())
    timed = {"help": [*run, "--help"], "import sat.run": [sys.executable, "-c", "import sat.run"],
             "finished run again": finished, "sweep again": again, "report": report}  # fmt: skip
    calls: list[tuple[str, Call]] = [
        (what, partial(seconds, c, folder)) for what, c in timed.items()
    ]
    first = partial(first_step, [*run, *SHORT, *words], folder, fresh)
    return [*calls[:2], ("first step", first), *calls[2:]]


def seconds(command: Sequence[str], folder: Path) -> float:
    """Of a command from its start to its end. Raises Fault where it fails."""
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(folder), text=True,
                          capture_output=True, check=False)  # fmt: skip
    taken = time.perf_counter() - begun
    if done.returncode:
        raise failed(command, done.returncode, done.stderr)
    return taken


def first_step(command: Sequence[str], folder: Path, roots: Iterator[str]) -> float:
    """From the start of a run to its first line of metrics, which is written and flushed once the
    first update is done; the run then goes on to its end, which is not timed."""
    root = next(roots)
    told = folder / f"{root}.txt"
    begun = time.perf_counter()
    with told.open("w") as file:
        running = subprocess.Popen([*command, f"record.root={root}"], cwd=folder, stdout=file,
                                   stderr=file, env=environment(folder))  # fmt: skip
        while running.poll() is None and not has_logged(folder / root):
            time.sleep(LOOKS)
        taken = time.perf_counter() - begun
        code = running.wait()
    if code or not has_logged(folder / root):
        raise failed(command, code, told.read_text())
    return taken


def has_logged(root: Path) -> bool:
    return any(path.stat().st_size for path in root.glob("*/metrics.jsonl"))


def environment(folder: Path) -> dict[str, str]:
    """This one's, with the program on the path and all temporary files in the folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}


def failed(command: Sequence[str], code: int, said: str) -> Fault:
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return Fault(f"{' '.join(command[1:])}: ended with {code}: {last}")


def multiply(made: Path, folder: Path) -> None:
    """RESULTS run directories: copies of those made, as under other seeds. Checkpoints and events
    are left out: they are the bulk of a run, and no report reads them."""
    runs = runs_in(made)
    left = shutil.ignore_patterns("checkpoints", "events.out.*")
    for number in range(RESULTS):
        run, turn = runs[number % len(runs)], number // len(runs)
        config, result = (
            read_yaml(run / "config.yaml"),
            json.loads((run / "result.json").read_text()),
        )
        spec = check({**config, "seed": config["seed"] + 2 * turn})
        copy = Path(shutil.copytree(run, folder / spec.name, ignore=left))
        (copy / "config.yaml").write_text(spec.yaml())
        result |= {"seed": spec.seed, "name": spec.name, "hash": spec.hash}
        (copy / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def program_text(found: dict[str, Any]) -> str:
    runs, results = f"{found['runs']:,} finished runs", f"{found['results']:,} run directories"
    of = {"sweep again": runs, "report": results}
    rows = []
    for row in found["rows"]:
        taken, aim = row["seconds"], row["aim"]
        what = (
            f"{row['command']} ({of[row['command']]})" if row["command"] in of else row["command"]
        )
        quartiles = f"{digits(taken['low'])} to {digits(taken['high'])}"
        rows.append([what, digits(taken["median"]), quartiles, f"{aim}" if aim else ""])
    note = (
        "Seconds of whole commands, each in a new process. `first step` is from the start of"
        " `python -m sat.run` on digits, cut to one step, to the first line of its metrics."
    )
    head = ["command", "median", "quartiles", "aim"]
    return "\n".join(["## Program", "", note, "", grid(head, rows)])
