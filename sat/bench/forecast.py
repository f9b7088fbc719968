"""Tells beforehand what a command line of `sat.run` will do and cost; trains and writes nothing.

    sat-forecast activation=gelu attack.steps=2
    sat-forecast -m activation=relu,silu seed=0,1,2              # a sweep
    sat-forecast --budget 10m experiment=activations dataset=cifar10    # what fits ten minutes
    sat-forecast experiment=imagenet_resnet50 --tflops 300       # for another machine
    sat-forecast -m experiment=depth --measured outputs/benchmark --gpus 8

`python scripts/forecast.py` is the same.
"""

import argparse
import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat import config, sweep
from sat.bench.units import count, seconds_of, size
from sat.config import Spec
from sat.errors import Fault, Refused, refusing
from sat.loggers.screen import duration, table

LEGEND = """\
Multiply-adds: of an image's forward. Gradients are counted image by image: of the training, k of
the input and one of the weights for PGD-k; of validations (with their probe) and of the evaluation
at most so many, as if every image were right when clean and stood, and best and last were two.
Memory: weights, gradients, optimiser, average and the copy that attacks search; activations: what
an update of a batch has beside them; a kernel's own scratch memory comes on top.
The time is of training, validations and evaluation. Beside it: masking checks (at most so long),
reading and decoding images, compilation, and the start of the program (some seconds)."""
ENSEMBLE = "+: and what an ensemble needs, which goes by the image and can't be told: {}."
TRIED = "Time: this network tried on this machine, as busy as it is now."
RATED = """\
Time: at {:g} TFLOP/s sustained in training and {:g} in the evaluation, which computes in float32;
2 FLOP a multiply-add; a forward is one unit, an input gradient two, an update three. Precision
auto is taken to be bf16."""
GIB = (24, 80, 141)  # of a GPU


@dataclass
class Told:
    """What there is to say of one job."""

    job: int
    overrides: list[str]
    name: str = ""
    state: str = ""
    refused: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    parts: tuple[float, float, float] | None = None  # seconds: training, evaluation, checks
    missing: float | None = None  # seconds of what is left of it
    notes: list[str] = field(default_factory=list)
    spec: Any = None
    sizes: Any = None


def standing(spec: Spec) -> tuple[str, int]:
    """What of the run is there, and the updates that its checkpoint has behind it.

    Raises Refused or Fault, as the program itself does, for a run that failed or is damaged.
    """
    from sat.evaluation import results
    from sat.rundir import checkpoint
    from sat.rundir.lock import is_running
    from sat.rundir.result import read_result

    directory, step = Path(spec.record.root) / spec.name, 0
    if (done := results.finished(spec)) is not None:
        return "finished", done.steps
    if spec.record.fresh:
        return "not begun", 0
    if (result := read_result(directory)) is not None:
        return "trained", result["steps"]
    begun = False
    for name in ("previous.pt", "last.pt"):
        try:
            step, begun = checkpoint.read(directory / "checkpoints" / name)["step"], True
        except (OSError, ValueError, KeyError):
            continue
    return "running" if is_running(directory) else "stopped" if begun else "not begun", step


def forecast(spec: Spec, told: Told, rates: Namespace) -> None:
    """Fills in what is told of a run."""
    from sat.bench.costs import cost_of, gradients_of, sizes_of, without_images, work_of

    told.spec = spec = without_images(spec)
    told.name, (told.state, step) = spec.name, standing(spec)
    told.sizes = sizes = sizes_of(spec.dataset)
    cost, work = cost_of(spec, sizes), work_of(spec, sizes)
    precision, pace, why = paced(spec, sizes, cost, rates)
    more = lambda *names: "+" * any(name in work.untold for name in names)  # noqa: E731
    judged, k = more(*spec.evaluation.measured_by), gradients_of(spec.attack)
    told.notes = [why] * bool(why) + [ENSEMBLE.format(name) for name in work.untold]
    time = checks = "-"
    if pace is not None:
        training, measuring = pace.training(work), pace.measuring(work)
        told.parts = training, measuring + pace.attacking(work), pace.doubting(work)
        left = 1 - step / work.updates if work.updates and told.state != "trained" else 0
        told.missing = 0.0 if told.state == "finished" else training * left + measuring
        time = duration(training + measuring) + (judged or more("attack", "validation"))
        checks = duration(told.parts[2])
    fixed = cost.fixed(spec.schedule, precision)
    part = -(-spec.schedule.batch_size // spec.schedule.parts)
    most = [(2**30 * gib - (fixed or 0)) // cost.beside(1, precision) for gib in GIB]
    told.columns = {
        "parameters": count(cost.parameters),
        "multiply-adds": count(cost.multiply_adds),
        "training images": count(sizes.train),
        "epochs": f"{work.images / sizes.train:.4g}",
        "updates": count(work.updates),
        "attack steps": "-" if k is None or not work.updates else str(k),
        "training gradients": count(work.training) + more("attack"),
        "validation gradients": count(work.validation) + more("validation"),
        "evaluation gradients": count(work.evaluation) + judged,
        "precision": precision,
        "memory": size(fixed),
        "activations": size(cost.beside(part, precision)),
        f"batch in {', '.join(map(str, GIB))} GiB": " ".join(count(max(0, n)) for n in most),
        "masking checks": checks,
        "time": time,
    }


def paced(spec: Spec, sizes: Any, cost: Any, rates: Namespace) -> tuple[str, Any, str]:
    """The precision of the training, seconds an image, and why there are none."""
    from sat.acceleration.auto import auto_precision, is_small
    from sat.acceleration.device import find_device
    from sat.bench.pace import from_rate, tried

    asked = spec.schedule.precision
    if rates.tflops:
        return "bf16" if asked == "auto" else asked, from_rate(cost, *rates.tflops), ""
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
        rows = [{"run": job.name, "state": job.state, **job.columns} for job in good]
        mine = [] if len(rows) == 1 else ["run", "state", "time"]  # in the table, whatever they are
        shared = [key for key in rows[0] if key not in mine and len({r[key] for r in rows}) == 1]
        lines += [f"{key.ljust(24)}{rows[0][key]}" for key in shared]
        if mine:
            told = [key for key in rows[0] if key not in shared]
            lines += ["", table(told, [[row[key] for key in told] for row in rows])]
        lines += ["", totals(jobs, own.gpus), ""]
        lines += list(dict.fromkeys(note for job in good for note in job.notes))
        lines += [LEGEND, RATED.format(*own.tflops) if own.tflops else TRIED]
    for job in jobs:
        if job.refused:
            which = f"job {job.job} ({' '.join(job.overrides)}): " * (len(jobs) > 1)
            lines.append(f"! {which}{job.refused}")
    return "\n".join(lines)


def totals(jobs: list[Told], gpus: int) -> str:
    """How many runs, how far they are, and the time of what is still missing."""
    runs = {job.name: job for job in jobs if not job.refused}.values()
    states = [job.state for job in runs] + ["refused" for job in jobs if job.refused]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    known = [job for job in runs if job.missing is not None]
    each = [job.missing or 0 for job in known]
    missing = ("nothing" if known and not any(each) else duration(sum(each))) if known else "-"
    plus = "+" * any(job.columns["time"].endswith("+") and job.missing for job in known)
    more = f" and {len(runs) - len(known)} of unknown time" if 0 < len(known) < len(runs) else ""
    asked = f"{len(jobs)} run{'s' * (len(jobs) != 1)}"
    distinct = f", {len(runs)} distinct" * (len(jobs) > 1)
    line = f"{asked}{distinct}: {counts}; still missing: {missing}{plus}{more}"
    if any(each) and gpus > 1:
        line += f"; on {gpus} GPUs, each run on one: {duration(shared_out(each, gpus))}{plus}"
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
        raise argparse.ArgumentTypeError(f"{text}: write one or two rates, finite and above 0")
    return found[0], found[-1]


def measured(folder: Path) -> tuple[float, float]:
    """TFLOP/s of single-step training as fast as this program does it, and in float32, in which the
    evaluation computes, by the benchmark of a folder."""
    try:
        found = json.loads((folder / "benchmark.json").read_text())["steps"]
        own = [row for row in found if row.get("k") == 1 and row["name"].startswith("sat")]
        exact = [row for row in own if row["about"]["choices"]["precision"] == "fp32"]
        fastest = (max(row["TFLOP/s"] for row in rows) for rows in (own, exact))
        training, evaluation = fastest
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"--measured {folder}: holds no benchmark of steps, k = 1") from error
    return training, evaluation


def arguments(given: Sequence[str]) -> tuple[Namespace, list[str]]:
    """This program's own options, and the words for Hydra."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, usage="forecast.py [-m] [override ...] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
    return own, ["-m", *words] if own.budget and "-m" not in words else words


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 2 where a run or the command line is refused."""
    own, words = arguments(sys.argv[1:] if given is None else given)
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # a reader of timm's would download
        os.environ[key] = "1"
    logging.getLogger("sat").setLevel(logging.ERROR)
    jobs: list[Told] = []

    def tell(cfg: Any, choices: dict[str, str], overrides: list[str]) -> None:
        jobs.append(told := Told(len(jobs), overrides))
        try:
            if cfg.evaluate is None:
                plain = sweep.without(config.resolve(cfg), [*sweep.lacking(choices)])
                spec = config.check({**plain, "choices": choices})
            else:
                from sat.evaluation.reevaluate import reevaluated

                spec = reevaluated(cfg, choices, overrides)
            forecast(spec, told, own)
        except (Refused, Fault, OSError) as error:
            told.refused = str(error)

    try:
        if own.measured:
            own.tflops = measured(own.measured)
        sweep.each_job(words, tell)
        text = summary(jobs, own)
        if own.budget and not any(job.refused for job in jobs):
            from sat.bench.budget import answer

            rated = RATED.format(*own.tflops) if own.tflops else TRIED
            text = f"{answer(jobs, words, own)}\n\n{rated}"
    except ValueError as error:  # while composing
        print(error, file=sys.stderr)
        return 2
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if any(job.refused for job in jobs) else 0
