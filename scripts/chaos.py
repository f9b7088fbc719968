"""Kills a sweep and its worker processes at random, starts it again until it ends, and compares
what is left with a sweep in peace: python scripts/chaos.py --runs 40 --kills 12

Exit code 0: every run is equal to the bit, and what had finished was not touched again.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sat.rundir.record import is_running
from sat.sweep import is_alive

# About a second of training each, so that most kills find one.
TINY = [
    "dataset.limit=160", "dataset.holdout=30", "model.width=0.0625", "schedule.epochs=25",
    "schedule.batch_size=32", "validation.every=5", "validation.attack.steps=2",
    "evaluation.attacks.pgd20.steps=3", "evaluation.limit=50", "schedule.precision=fp32",
    "evaluation.masking_checks=0", "record.checkpoint_minutes=0", "device=cpu",
]  # fmt: skip
TIMES = {"seconds", "wall_seconds", "images_per_second", "train/images_per_second"}
TIMES |= {"environment", "overrides", "lengths"}
PATIENCE = 1800.0  # seconds until a sweep that does not end is given up
ORPHANS = 120.0  # seconds; who has lost its command line writes a checkpoint and ends


class Sweep:
    """One command line, and what was seen of its runs from outside."""

    def __init__(self, root: Path, runs: int, workers: int, seed: int):
        self.root, self.random = root, random.Random(seed)
        self.arguments = [
            sys.executable, "-m", "sat.run", "-m", "hydra/launcher=joblib",
            f"hydra.launcher.n_jobs={workers}", *TINY, f"record.root={root / 'outputs'}",
            f"seed={','.join(map(str, range(runs)))}",
        ]  # fmt: skip
        self.counts = {"workers killed": 0, "sweeps killed": 0, "starts": 0}
        self.finished: dict[Path, dict[Path, tuple[int, bytes]]] = {}
        self.workers: set[int] = set()

    def start(self) -> subprocess.Popen:
        self.counts["starts"] += 1
        log = open(self.root / "log.txt", "ab")
        with log:
            return subprocess.Popen(
                self.arguments, stdout=log, stderr=log, cwd=Path(__file__).parents[1],
                start_new_session=True,
            )  # fmt: skip

    def training(self) -> list[int]:
        """The processes that train right now, by the locks of runs that have no result."""
        found = []
        for lock in self.root.glob("outputs/*/lock"):
            run = lock.parent
            if (run / "metrics.jsonl").exists() and not (run / "result.json").exists():
                found += [int(number) for number in re.findall(r"process (\d+)", lock.read_text())]
        self.workers.update(found)
        return [process for process in found if is_alive(process)]

    def look(self) -> None:
        """Keeps what each finished run was when it was first seen finished."""
        for result in self.root.glob("outputs/*/result.json"):
            run = result.parent
            if run in self.finished or is_running(run):
                continue
            if json.loads(result.read_text())["status"] == "finished":
                self.finished[run] = content(run)

    def wait(self, process: subprocess.Popen, seconds: float, until_training: bool) -> None:
        """Until it ends, or something trains, or that long."""
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            self.look()
            if until_training and self.training():
                return
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen) -> None:
        """A worker process, or the command line alone, or all of its processes."""
        victim = self.random.choice(["worker", "worker", "command", "all"])
        training = self.training()
        if victim == "worker" and training:
            self.counts["workers killed"] += 1
            os.kill(self.random.choice(training), signal.SIGKILL)
        elif process.poll() is None:
            self.counts["sweeps killed"] += 1
            if victim == "all":
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()

    def survive(self, kills: int) -> int:
        """Starts it until it ends by itself without a fault; its exit code."""
        process = self.start()
        for _ in range(kills):
            self.wait(process, PATIENCE, until_training=True)
            self.wait(process, self.random.uniform(0, 1.5), until_training=False)
            self.kill(process)
            if process.poll() is not None:
                process = self.start()
        self.wait(process, PATIENCE, until_training=False)
        if process.poll() == 1:  # a worker was killed twice in a row: one line, and it goes on
            process = self.start()
            self.wait(process, PATIENCE, until_training=False)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        self.look()
        return process.wait()


def content(run: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def timeless(value: Any) -> Any:
    """Without what is another's at each run: times, and where and how it was asked for."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def outcome(run: Path) -> dict[str, Any]:
    """All numbers of a run, weights included, to be compared to the bit."""
    import torch

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = {
        name: {
            key: value.numpy().tobytes()
            for key, value in torch.load(
                run / f"checkpoints/{name}.pt", map_location="cpu", weights_only=True
            )["model"].items()
        }
        for name in ("last", "best")
    }
    result = json.loads((run / "result.json").read_text())
    return {"result": timeless(result), "metrics": timeless(rows), "weights": weights}


def differences(torn: Sweep, whole: Path, runs: int) -> list[str]:
    """What is not as it should be, a line each."""
    found = [
        f"{path}: was changed after the run had finished"
        for run, files in torn.finished.items()
        if (now := content(run)) != files
        for path in sorted(files.keys() | now.keys())
        if files.get(path) != now.get(path)
    ]
    if len(torn.finished) != runs:
        found.append(f"{len(torn.finished)} of {runs} runs finished")
    for run in torn.finished:
        if outcome(run) != outcome(whole / run.name):
            found.append(f"{run.name}: differs from the run in peace")
        found += [f"{path}: is left over" for path in run.rglob("*.tmp")]
    until = time.monotonic() + ORPHANS
    while (left := [process for process in torn.workers if is_alive(process)]) and (
        time.monotonic() < until
    ):
        time.sleep(0.1)
    return found + [f"process {process} still lives" for process in left]


def chaos(folder: Path, runs: int, kills: int, workers: int, seed: int) -> list[str]:
    """The lines that tell of faults; prints what was done."""
    for name in ("whole", "torn"):
        (folder / name).mkdir(parents=True)
    whole = Sweep(folder / "whole", runs, workers, seed)
    if code := whole.survive(0):
        return [f"the sweep in peace ended with {code}: see {whole.root / 'log.txt'}"]
    torn = Sweep(folder / "torn", runs, workers, seed)
    code = torn.survive(kills)
    found = [f"the last start ended with {code}"] if code else []
    found += differences(torn, whole.root / "outputs", runs)
    counts = ", ".join(f"{count} {what}" for what, count in torn.counts.items())
    print(f"{runs} runs, seed {seed}: {counts}; {len(found)} differences")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sat-chaos-") as folder:
        found = chaos(Path(folder), given.runs, given.kills, given.workers, given.seed)
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
