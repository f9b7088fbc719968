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
import textwrap
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat import config, sweep
from sat.bench.units import count, seconds_of, size
from sat.config import Spec
from sat.errors import Fault, Refused, refusing
from sat.loggers import screen
from sat.loggers.screen import columns, duration, refuse, say, table
from sat.loggers.usage import Parser

LEGEND = """\
Multiply-adds: of an image's forward. A unit is a forward, an input gradient or a weight gradient \
of an image; PGD-k trains at 2k + 3. Gradients of the input are counted image by image, of \
validations (with their probe) and of the evaluation: at most so many, as if every image were \
right when clean and stood, and best and last were two; an ensemble counts as 170 an image, as \
`strong` usually needs, and one more for each wrong class, up to 100, where there are more than \
ten; `autoattack` counts as seven times 170.
Memory: weights, gradients, optimiser, average and the copy that attacks search; activations: what \
an update of a batch has beside them; a kernel's own scratch memory comes on top.
The time is of training, validations and evaluation. Beside it: masking checks (at most so long), \
reading and decoding images, compilation, and the start of the program (some seconds)."""
TRIED = "Time: this network tried on this machine, as busy as it is now."
RATED = """\
Time: at {:g} TFLOP/s sustained in training and {:g} in the evaluation, which computes in float32; \
2 FLOP a multiply-add for each unit. Precision auto is taken to be bf16."""
GIB = (24, 80, 141)  # of a GPU


@dataclass
class Told:
    """What there is to say of one job: why it is refused, or all else."""

    overrides: list[str]
    refused: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    parts: tuple[float, float, float] | None = None  # seconds: training, evaluation, checks
    note: str = ""
    spec: Any = None
    sizes: Any = None

    @property
    def name(self) -> str:
        return self.columns["run"]


def forecast(spec: Spec, told: Told, own: Namespace, trains: bool) -> None:
    """Fills in what is told of a run, or of its evaluation alone."""
    from sat.bench.costs import cost_of, gradients_of, sizes_of, without_images, work_of

    told.spec = spec = without_images(spec)
    told.sizes = sizes = sizes_of(spec.dataset)
    cost, work, schedule = cost_of(spec, sizes), work_of(spec, sizes, trains), spec.schedule
    precision, pace, told.note = paced(spec, sizes, cost, work.step.update, own)
    if pace is not None:
        told.parts = pace.seconds(work)
    fixed = cost.fixed(schedule, precision)
    most = [(2**30 * gib - (fixed or 0)) // cost.beside(1, precision) for gib in GIB]
    told.columns = {
        "run": spec.name,
        "parameters": count(cost.parameters),
        "multiply-adds": count(cost.multiply_adds),
        "training images": count(sizes.train),
        "epochs": f"{work.updates * schedule.batch_size / sizes.train:.4g}",
        "updates": count(work.updates),
        "attack steps": str(gradients_of(spec.attack, sizes.classes)) if work.updates else "-",
        "units an image": f"{sum(work.step):g}" if work.updates else "-",
        "training units": count(work.training),
        "validation gradients": count(work.validation),
        "evaluation gradients": count(work.evaluation),
        "precision": precision,
        "memory": size(fixed),
        "activations": size(cost.beside(-(-schedule.batch_size // schedule.parts), precision)),
        f"batch in {', '.join(map(str, GIB))} GiB": " ".join(count(max(0, n)) for n in most),
        "masking checks": duration(told.parts[2]) if told.parts else "-",
        "time": duration(sum(told.parts[:2])) if told.parts else "-",
    }


def paced(spec: Spec, sizes: Any, cost: Any, update: float, own: Namespace) -> tuple[str, Any, str]:
    """The precision of the training, whose update has so many units an image; seconds an image, and
    why there are none."""
    from sat.acceleration.auto import auto_precision, is_small
    from sat.acceleration.device import find_device
    from sat.bench.pace import from_rate, tried

    asked = spec.schedule.precision
    if own.tflops:
        return "bf16" if asked == "auto" else asked, from_rate(cost, update, *own.tflops), ""
    try:
        with refusing("device"):
            device = find_device(spec.device)
        if asked == "auto":
            small = is_small(cost.multiply_adds * spec.schedule.batch_size)
            asked = auto_precision(device.type, cost.depthwise, small)
        return asked, tried(spec, sizes, cost), ""
    except ValueError as error:
        return "fp32" if asked == "auto" else asked, None, f"{error}; --tflops X tells a time"


# what is printed ------------------------------------------------------------------------------


def summary(jobs: list[Told], own: Namespace) -> str:
    """What all runs share, a table of what they do not, the totals, and what the numbers mean."""
    good, lines = [job for job in jobs if not job.refused], []
    if good:
        rows = [job.columns for job in good]
        mine = [] if len(rows) == 1 else ["run", "time"]  # in the table, whatever they are
        shared = [key for key in rows[0] if key not in mine and len({r[key] for r in rows}) == 1]
        lines += [f"{key.ljust(26)}{rows[0][key]}" for key in shared]
        if mine:
            told = [key for key in rows[0] if key not in shared]
            lines += ["", table(told, [[row[key] for key in told] for row in rows])]
        notes = dict.fromkeys(job.note for job in good if job.note)
        lines += ["", totals(jobs, own.gpus), "", *notes, prose(LEGEND), rated(own)]
    for number, job in enumerate(jobs):
        if job.refused:
            which = f"job {number} ({' '.join(job.overrides)}): " * (len(jobs) > 1)
            lines.append(f"! {which}{job.refused}")
    return "\n".join(lines)


def rated(own: Namespace) -> str:
    return prose(RATED.format(*own.tflops) if own.tflops else TRIED)


def prose(text: str) -> str:
    """Its paragraphs in lines of at most 100 signs."""
    room = min(columns() or 100, 100)
    return "\n".join(textwrap.fill(line, room) for line in text.split("\n"))


def totals(jobs: list[Told], gpus: int) -> str:
    """How many runs, and the time of all that aren't the same."""
    runs = {job.name: job for job in jobs if not job.refused}.values()
    each = [sum(job.parts[:2]) for job in runs if job.parts]
    line = f"{len(jobs)} run{'s' * (len(jobs) != 1)}" + f", {len(runs)} distinct" * (len(jobs) > 1)
    if refused := sum(bool(job.refused) for job in jobs):
        line += f", {refused} refused"
    line += f": {duration(sum(each))}" if each else ": of unknown time"
    if 0 < len(each) < len(runs):
        line += f" and {len(runs) - len(each)} of unknown time"
    if checks := sum(job.parts[2] for job in runs if job.parts):
        line += f", and masking checks {duration(checks)} at most"
    if each and gpus > 1:
        line += f"; on {gpus} GPUs, each run on one: {duration(shared_out(each, gpus))}"
    return line


def shared_out(seconds: list[float], gpus: int) -> float:
    """When the last of the runs ends, if each in its turn takes the GPU that is free first."""
    free = [0.0] * gpus
    for run in seconds:
        free[free.index(min(free))] += run
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
    add("--gpus", type=int, default=1, help="that share the runs of a sweep (1)")
    add("--budget", type=seconds_of, metavar="10m", help="what of the sweep fits on one device")
    add("--spread", type=Path, metavar="PLACE", help="finished runs, a folder or a file of kept"
        " ones, whose seeds tell what --budget can show (record.root)")  # fmt: skip
    own, words = parser.parse_known_args(given)
    if own.gpus < 1:
        parser.error(f"--gpus {own.gpus}: must be at least 1")
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
    jobs: list[Told] = []

    def tell(cfg: Any, choices: dict[str, str], overrides: list[str]) -> None:
        jobs.append(told := Told(overrides))
        try:
            if cfg.evaluate is None:
                plain = sweep.without(config.resolve(cfg), [*sweep.lacking(choices)])
                spec = config.check({**plain, "choices": choices})
            else:
                from sat.evaluation.reevaluate import reevaluated

                spec = reevaluated(cfg, choices, overrides)
            screen.stage("counting, and trying the network on this machine")
            forecast(spec, told, own, trains=cfg.evaluate is None)
        except (Refused, Fault, OSError) as error:
            told.refused = str(error)

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
