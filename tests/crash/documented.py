"""The commands of README and docs/ as real processes, one after the other, on networks and sets
that take seconds: what is smaller than the page says is added behind its words. Those that need
images to be downloaded, a cluster or a tracker are composed alone (tests/test_docs.py)."""

import os
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np

from ..commands import PAGES, commands, words
from .asked import DEADLINE, TINY, Answer
from .kills import ROOT, photographs

ELSEWHERE = re.compile(
    "cifar10|imagenet|recipe=|extra=|torchrun|slurm|sweeper|mlflow|wandb|autoattack|theirs|make |"
    "gpu_plan|--config-dir|--card|RUN,"
)
VARIABLE = re.compile("[A-Z_]+=")  # of the environment, before a command
PLACES = {"outputs/RUN": "outputs/A", "DATA": "photographs", "FOLDER": "photographs"}


class Documented:
    """Two runs, a folder of photographs and arrays, and the commands that are tried on them."""

    def __init__(self, folder: Path):
        self.folder = folder
        lines = [line for page in PAGES for line in commands(page)]
        self.lines = [line for line in dict.fromkeys(lines) if not ELSEWHERE.search(line)]
        photographs(folder / "photographs")
        draw = np.random.default_rng(0)
        arrays = {f"x_{part}": draw.integers(0, 256, (60, 8, 8), np.uint8)
                  for part in ("train", "test")}  # fmt: skip
        arrays |= {f"y_{part}": np.arange(60) % 3 for part in ("train", "test")}
        for name in ("mine.npz", "arrays.npz"):
            np.savez(folder / name, **arrays)
        for name, activation in (("A", "silu"), ("B", "relu")):
            done = self.run(["python", "-m", "sat.run", f"activation={activation}", *TINY])
            assert done.code == 0, done.err
            (run,) = folder.glob("outputs/*-s0-*/")
            (run / "experiments.txt").write_text("activations\n")
            run.rename(run.with_name(name))
        done = self.run(["sat-report", "outputs", "--keep", "runs.jsonl"])
        assert done.code == 0, done.err

    def attempt(self, number: int) -> tuple[int, list[str]]:
        """What is wrong with the answer to one of the commands."""
        line = self.lines[number % len(self.lines)]
        for place, there in PLACES.items():
            line = line.replace(place, there)
        answer = self.run(smaller(words(line)))
        found = answer.complaints() if answer.code else []
        return 1, [f"{line}: {complaint}" for complaint in found]

    def run(self, given: list[str]) -> Answer:
        """A command in the folder, by this Python and this checkout; a benchmark whose budget is
        over has done what it was asked for."""
        own = dict(word.split("=", 1) for word in takewhile(VARIABLE.match, given))
        given = given[len(own) :]
        if given[0] != "python":
            module = "sat.run" if given[0] == "sat" else "sat.report.command"
            given = ["python", "-m", module, *given[1:]]
        elif given[1].startswith("scripts/"):
            given = ["python", str(ROOT / given[1]), *given[2:]]
        done = subprocess.run(
            [sys.executable, *given[1:]], cwd=self.folder, capture_output=True, text=True,
            timeout=DEADLINE, env=os.environ | {"PYTHONPATH": str(ROOT)} | own,
        )  # fmt: skip
        left = done.returncode == 143 and "The time is over" in done.stdout
        return Answer(0 if left else done.returncode, done.stdout, done.stderr)


def smaller(given: list[str]) -> list[str]:
    """The words with what makes them a matter of seconds, where they don't say otherwise."""
    if any("benchmark.py" in word for word in given):
        return [*given, "--budget", "20s"]
    if "sat.run" not in given or "--help" in given:
        return given
    keys = {word.partition("=")[0] for word in given}
    added = [word for word in TINY if word.partition("=")[0] not in keys]
    if "evaluate" in keys:
        added = ["evaluation.limit=20", "device=cpu"]
    elif "evaluation" in keys:
        added = [word for word in added if "pgd20" not in word]
    if re.search(r"attack=none|dataset=(imagefolder|npz)", " ".join(given)):
        added = [word for word in added if not re.match(r"dataset\.(limit|holdout)", word)]
    return [*given, *added]
