"""Tells beforehand what a command line of `sat.run` will do and cost; trains and
writes nothing.

    sat-forecast activation=gelu attack.steps=2
    sat-forecast -m activation=relu,silu seed=0,1,2         # a sweep
    sat-forecast --budget 10m experiment=activations dataset=cifar10     # what fits
    sat-forecast experiment=imagenet_resnet50 --tflops 300  # for another machine

`python scripts/forecast.py` is the same.
"""

import logging
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sat import config, sweep
from sat.config import joint
from sat.errors import Fault, Refused
from sat.loggers import screen
from sat.loggers.screen import duration, refuse, say, table
from sat.loggers.usage import Parser, seconds_of

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
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a number


@dataclass(frozen=True)
class Job:
    """What there is to say of a run that is not refused."""

    case: Any
    columns: dict[str, str]
    seconds: tuple[float, float, float] | None  # training, evaluation, masking checks
    note: str  # why these are not known


def forecast(spec: config.Spec, own: Namespace) -> Job:
    """Counts what a run does and keeps; its time is at the rates given, or tried here."""
    from sat.bench.case import Case
    from sat.bench.work import tried, work_of

    screen.stage("counting, and trying the network on this machine")
    case, note, rates = Case(spec), "", own.tflops
    sizes, cost, work, schedule = case.sizes, case.cost, work_of(case), spec.schedule
    precision = schedule.precision
    if precision == "auto":
        precision = "bf16" if rates else "fp32"
    if not rates:
        try:
            rates, precision = tried(case), case.choices["precision"]
        except ValueError as error:
            note = f"{error}; --tflops X tells a time"
    seconds = rates and work.seconds(2 * cost.multiply_adds, rates)
    count, size = tqdm.format_sizeof, partial(tqdm.format_sizeof, suffix="iB", divisor=1024)
    fixed, image = cost.state, cost.most * BYTES[precision] / 4
    if fixed is not None and schedule.fold is not False:
        fixed += cost.parameters * BYTES[precision]  # the copy that attacks search
    most = [max(0, 2**30 * gib - (fixed or 0)) // image for gib in GIB]
    columns = {
        "run": case.spec.name,
        "time": duration(sum(seconds[:2])) if seconds else "-",
        "masking checks": duration(seconds[2]) if seconds else "-",
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
    return Job(case, columns, seconds, note)


# what is printed ------------------------------------------------------------------------------


def summary(jobs: Sequence[Job], refused: Mapping[str, str], own: Namespace) -> str:
    """The totals, what all runs share, a table of what they do not, and what the numbers mean; then
    why each of the `refused` is."""
    rows, lines = [job.columns for job in jobs], []
    if rows:
        mine = [] if len(rows) == 1 else ["run", "time"]  # in the table, whatever they are
        shared = [key for key in rows[0] if key not in mine and len({r[key] for r in rows}) == 1]
        lines += [totals(jobs, len(refused)), ""]
        lines += [f"{key.ljust(26)}{rows[0][key]}" for key in shared]
        if mine:
            told = [key for key in rows[0] if key not in shared]
            lines += ["", table(told, [[row[key] for key in told] for row in rows])]
        lines += ["", *dict.fromkeys(job.note for job in jobs if job.note), LEGEND, rated(own)]
    alone = len(rows) + len(refused) == 1
    lines += [f"! {why}" if alone else f"! {which}: {why}" for which, why in refused.items()]
    return "\n".join(lines)


def rated(own: Namespace) -> str:
    return RATED.format(*own.tflops) if own.tflops else TRIED


def totals(jobs: Sequence[Job], refused: int) -> str:
    """How many runs, and the time of all that aren't the same."""
    runs, count = {job.columns["run"]: job for job in jobs}.values(), len(jobs) + refused
    known = [job.seconds for job in runs if job.seconds]
    line = f"{count} run" + f"s, {len(runs)} distinct" * (count > 1)
    line += f", {refused} refused" * (refused > 0)
    if not known:
        return f"{line}: of unknown time"
    training, evaluation, checks = map(sum, zip(*known, strict=True))
    line += f": {duration(training + evaluation)}"
    if unknown := len(runs) - len(known):
        line += f" and {unknown} of unknown time"
    return line + f", and masking checks {duration(checks)} at most" * (checks > 0)


# the command ----------------------------------------------------------------------------------


def rates(text: str) -> tuple[float, float]:
    """TFLOP/s of the training and of the evaluation: `50,25`, or `50` for both."""
    found = [float(part) for part in text.split(",")]
    if len(found) > 2 or not all(0 < rate < float("inf") for rate in found):
        raise ArgumentTypeError(f"{text}: write one or two rates, finite and above 0")
    return found[0], found[-1]


def arguments(given: Sequence[str]) -> tuple[Namespace, list[str]]:
    """This program's own options, and the words for Hydra."""
    parser = Parser("sat-forecast", "sat-forecast [-m] [override ...] [options]", __doc__)
    add = parser.add_argument
    add("--tflops", type=rates, metavar="X[,Y]", help="TFLOP/s sustained in training and, in"
        " float32, in the evaluation; tries nothing")  # fmt: skip
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
    jobs, refused = list[Job](), dict[str, str]()

    def tell(cfg: Any, choices: dict[str, str], overrides: list[str]) -> None:
        try:
            plain = joint.without(config.resolve(cfg), [*joint.lacking(choices)])
            jobs.append(forecast(config.check({**plain, "choices": choices}), own))
        except (Refused, Fault, OSError) as error:
            number = len(jobs) + len(refused)
            refused[f"job {number} ({' '.join(overrides)})"] = str(error)

    try:
        sweep.each_job(words, tell)
        text = summary(jobs, refused, own)
        if own.budget and not refused:
            from sat.bench.budget import answer

            text = f"{answer(jobs, words, own)}\n\n{rated(own)}"
    except ValueError as error:  # while composing
        refuse(error)
        return 2
    say(text)
    return 2 if refused else 0
