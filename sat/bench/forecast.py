"""Tells beforehand what a command line of `sat.run` will do and cost; trains and
writes nothing.

    sat-forecast activation=gelu attack.steps=2
    sat-forecast -m activation=relu,silu seed=0,1,2         # a sweep
    sat-forecast --budget 10m experiment=activations dataset=cifar10     # what fits
    sat-forecast experiment=imagenet_resnet50 --tflops 300  # for another machine
    sat-forecast -m experiment=depth --measured outputs/benchmark --gpus 8

`python scripts/forecast.py` is the same.
"""

import json
import logging
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapreplace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sat import config, sweep
from sat.config import joint
from sat.errors import Fault, Refused
from sat.loggers import screen
from sat.loggers.screen import duration, refuse, say, table
from sat.loggers.usage import Parser, positive, seconds_of

LEGEND = """\
Units are forwards, input gradients and weight gradients of an image; PGD-k trains at 2k + 3. \
Gradients are of the input, with the forwards beside them, at most: as if every image were right \
when clean and stood (`strong` counts as 187 an image, `autoattack` as 1,190).
Memory: weights, gradients, optimiser, average and the copy that attacks search; activations: what \
an update of a batch has beside them; a kernel's own scratch memory comes on top.
The time is of training, validations and evaluation, without masking checks (at most so long), the \
reading of images, averaging's statistics (swa_start), compilation, and the start of the program."""
TRIED = "Time: this network tried on this machine, as busy as it is now."
RATED = """\
Time: at {:g} TFLOP/s sustained in training and {:g} in the evaluation, which computes in float32; \
2 FLOP a multiply-add for each unit. Precision auto is taken to be bf16."""
GIB = (24, 80, 141)  # of a GPU


@dataclass
class Job:
    """What there is to say of one job: why it is refused, or all else."""

    overrides: list[str]
    refused: str = ""
    case: Any = None
    columns: dict[str, str] = field(default_factory=dict)
    seconds: tuple[float, float, float] | None = None  # training, evaluation, masking checks
    note: str = ""  # why these are not known


def forecast(job: Job, spec: config.Spec, own: Namespace) -> None:
    """Fills in what is told of a run."""
    from sat.bench.case import Case
    from sat.bench.work import tried, work_of

    screen.stage("counting, and trying the network on this machine")
    job.case = case = Case(spec)
    sizes, cost, work, schedule = case.sizes, case.cost, work_of(case), spec.schedule
    rates, supposed = own.tflops, "bf16" if own.tflops else "fp32"
    precision = supposed if schedule.precision == "auto" else schedule.precision
    if not own.tflops:
        try:
            rates, precision = tried(case), case.choices["precision"]
        except ValueError as error:
            job.note = f"{error}; --tflops X tells a time"
    job.seconds = rates and work.seconds(2 * cost.multiply_adds, rates)
    count, size = tqdm.format_sizeof, partial(tqdm.format_sizeof, suffix="iB", divisor=1024)
    fixed, image = cost.fixed(schedule, precision), cost.beside(1, precision)
    most = [max(0, 2**30 * gib - (fixed or 0)) // image for gib in GIB]
    job.columns = {
        "run": case.spec.name,
        "time": duration(sum(job.seconds[:2])) if job.seconds else "-",
        "masking checks": duration(job.seconds[2]) if job.seconds else "-",
        "parameters": count(cost.parameters),
        "multiply-adds": count(cost.multiply_adds),
        "training images": f"{sizes.train:,}",
        "epochs": f"{work.updates * schedule.batch_size / sizes.train:.4g}",
        "updates": f"{work.updates:,}",
        "units an image": f"{work.units:g}",
        "validation gradients": count(work.validation),
        "evaluation gradients": count(work.evaluation),
        "precision": precision,
        "memory": "-" if fixed is None else size(fixed),
        "activations": size(-(-schedule.batch_size // schedule.parts) * image),
        f"batch in {', '.join(map(str, GIB))} GiB": " ".join(f"{number:,.0f}" for number in most),
    }


# what is printed ------------------------------------------------------------------------------


def summary(jobs: list[Job], own: Namespace) -> str:
    """The totals, what all runs share, a table of what they do not, and what the numbers mean."""
    good, lines = [job for job in jobs if not job.refused], []
    if good:
        rows = [job.columns for job in good]
        mine = [] if len(rows) == 1 else ["run", "time"]  # in the table, whatever they are
        shared = [key for key in rows[0] if key not in mine and len({r[key] for r in rows}) == 1]
        lines += [totals(jobs, own.gpus), ""]
        lines += [f"{key.ljust(26)}{rows[0][key]}" for key in shared]
        if mine:
            told = [key for key in rows[0] if key not in shared]
            lines += ["", table(told, [[row[key] for key in told] for row in rows])]
        notes = dict.fromkeys(job.note for job in good if job.note)
        lines += ["", *notes, LEGEND, rated(own)]
    for number, job in enumerate(jobs):
        if job.refused:
            which = f"job {number} ({' '.join(job.overrides)}): " * (len(jobs) > 1)
            lines.append(f"! {which}{job.refused}")
    return "\n".join(lines)


def rated(own: Namespace) -> str:
    return RATED.format(*own.tflops) if own.tflops else TRIED


def totals(jobs: list[Job], gpus: int) -> str:
    """How many runs, and the time of all that aren't the same."""
    runs = {job.columns["run"]: job for job in jobs if not job.refused}.values()
    known = [job.seconds for job in runs if job.seconds]
    each = [training + evaluation for training, evaluation, _ in known]
    line = f"{len(jobs)} run{'s' * (len(jobs) != 1)}" + f", {len(runs)} distinct" * (len(jobs) > 1)
    if refused := sum(bool(job.refused) for job in jobs):
        line += f", {refused} refused"
    line += f": {duration(sum(each))}" if each else ": of unknown time"
    if 0 < len(each) < len(runs):
        line += f" and {len(runs) - len(each)} of unknown time"
    if checks := sum(checks for _, _, checks in known):
        line += f", and masking checks {duration(checks)} at most"
    if each and gpus > 1:
        line += f"; on {gpus} GPUs, each run on one: {duration(shared_out(each, gpus))}"
    return line


def shared_out(seconds: list[float], gpus: int) -> float:
    """When the last of the runs ends, if each in its turn takes the GPU that is free first."""
    free = [0.0] * gpus
    for run in seconds:
        heapreplace(free, free[0] + run)
    return max(free)


# the command ----------------------------------------------------------------------------------


def rates(text: str) -> tuple[float, float]:
    """TFLOP/s of the training and of the evaluation: `50,25`, or `50` for both."""
    found = [float(part) for part in text.split(",")]
    if len(found) > 2 or not all(0 < rate < float("inf") for rate in found):
        raise ArgumentTypeError(f"{text}: write one or two rates, finite and above 0")
    return found[0], found[-1]


def measured(folder: Path) -> tuple[float, float]:
    """TFLOP/s of single-step training as fast as this program does it, and in float32, in which the
    evaluation computes, by the benchmark of a folder."""
    try:
        found = json.loads((folder / "benchmark.json").read_text())["steps"]
        own = [row for row in found if row.get("k") == 1 and row["name"].startswith("sat")]
        exact = [row for row in own if row["about"]["choices"]["precision"] == "fp32"]
        return max(row["TFLOP/s"] for row in own), max(row["TFLOP/s"] for row in exact)
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"--measured {folder}: holds no benchmark of steps, k = 1") from error


def arguments(given: Sequence[str]) -> tuple[Namespace, list[str]]:
    """This program's own options, and the words for Hydra."""
    parser = Parser("sat-forecast", "sat-forecast [-m] [override ...] [options]", __doc__)
    add = parser.add_argument
    add("--tflops", type=rates, metavar="X[,Y]", help="TFLOP/s sustained in training and, in"
        " float32, in the evaluation; tries nothing")  # fmt: skip
    add("--measured", type=Path, metavar="DIR", help="those of a benchmark's folder")
    add("--gpus", type=positive, default=1, help="that share the runs of a sweep (1)")
    add("--budget", type=seconds_of, metavar="10m", help="what of the sweep fits on one device")
    add("--spread", type=Path, metavar="PLACE", help="finished runs, a folder or a file of kept"
        " ones, whose seeds tell what --budget can show (record.root)")  # fmt: skip
    own, words = parser.parse_known_args(given)
    for word in words:
        if word[:1] == "-" and word.split("=")[0] not in ("-m", "--multirun", "--config-dir"):
            parser.error(f"{word}: no such option")
    return own, ["-m", *words] if own.budget and "-m" not in words else words


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 2 where a run or the command line is refused."""
    screen.set_up(logging.ERROR)
    own, words = arguments(sys.argv[1:] if given is None else given)
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # a reader of timm's would download
        os.environ[key] = "1"
    screen.stage("composing the runs")
    jobs: list[Job] = []

    def tell(cfg: Any, choices: dict[str, str], overrides: list[str]) -> None:
        jobs.append(job := Job(overrides))
        try:
            plain = joint.without(config.resolve(cfg), [*joint.lacking(choices)])
            forecast(job, config.check({**plain, "choices": choices}), own)
        except (Refused, Fault, OSError) as error:
            job.refused = str(error)

    try:
        if own.measured:
            own.tflops = measured(own.measured)
        sweep.each_job(words, tell)
        text = summary(jobs, own)
        if own.budget and not any(job.refused for job in jobs):
            from sat.bench.budget import answer

            text = f"{answer(jobs, words, own)}\n\n{rated(own)}"
    except ValueError as error:  # while composing
        refuse(error)
        return 2
    say(text)
    return 2 if any(job.refused for job in jobs) else 0
