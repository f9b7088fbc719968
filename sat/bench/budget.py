"""What of a command line fits a time: epochs, images and seeds, and what so many seeds can show.

Training takes as long as epochs and images are many, the evaluation as test images are; a third of
the time at most is for the evaluation. Epochs go down to a quarter of those asked for before
training images do.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sat.errors import Refused
from sat.loggers.screen import duration, table, to_copy
from sat.report.tables import read
from sat.statistics import detectable, seeds_needed

SEEDS = (1, 2, 3, 5, 10)
BEGINNING = 5.0  # seconds of a run before its first step, in a sweep that is under way
LEAST_EPOCHS, LEAST_IMAGES, LEAST_TESTED = 0.25, 0.1, 100  # shares, and a number
POINTS = 2.0  # of robust accuracy: a difference that people look for


class Plan(NamedTuple):
    """The runs of so many seeds, with what each has; `seconds` are of all of them."""

    seeds: int
    epochs: float | None  # None: runs differ in them, so they stay
    images: int  # for training, those held out among them
    tested: int
    seconds: float

    def words(self, asked: "Plan") -> list[str]:
        """Overrides that make the plan of what was asked for."""
        keys = "schedule.epochs", "dataset.limit", "evaluation.limit"
        cuts = zip(keys, self[1:4], asked[1:4], strict=True)
        seeds = ",".join(map(str, range(self.seeds)))
        return [f"seed={seeds}", *(f"{key}={mine}" for key, mine, whole in cuts if mine != whole)]


def plans(jobs: Sequence[Any], budget: float) -> tuple[Plan, list[Plan]]:
    """One seed of the runs as they are asked for; and for each number of seeds the most that fits,
    those with which too little does left out."""
    seed = jobs[0].case.spec.seed
    runs = {job.columns["run"]: job for job in jobs if job.case.spec.seed == seed}.values()
    if unknown := [job.note for job in runs if job.seconds is None]:
        raise Refused(f"--budget: {unknown[0]}")
    training, measuring, checks = map(sum, zip(*(job.seconds for job in runs), strict=True))
    fixed, epochs = checks + BEGINNING * len(runs), {job.case.spec.schedule.epochs for job in runs}
    sizes, limit = jobs[0].case.sizes, jobs[0].case.spec.evaluation.limit
    asked = Plan(1, epochs.pop() if len(epochs) == 1 else None, sizes.train + sizes.held_out,
                 min(limit or sizes.test, sizes.test), training + measuring + fixed)  # fmt: skip
    least = min(1.0, max(LEAST_EPOCHS, 1 / asked.epochs)) if asked.epochs else 1.0
    found = []
    for seeds in SEEDS:
        room = budget / seeds - fixed
        judged = min(1.0, room / 3 / max(measuring, 1e-9))
        share = min(1.0, (room - judged * measuring) / max(training, 1e-9))
        images, tested = min(1.0, share / least), part(asked.tested, judged)
        if images < LEAST_IMAGES or tested < min(LEAST_TESTED, asked.tested):
            break
        cut = asked.epochs and (part(asked.epochs, max(share, least)) or 1)  # 1 / epochs is rounded
        seconds = seeds * (fixed + judged * measuring + share * training)
        found.append(Plan(seeds, cut, part(asked.images, images), tested, seconds))
    return asked, found


def part(whole: float, share: float) -> Any:
    """A share of a number, rounded down to two digits; the number itself if it is all of it."""
    if share >= 1:
        return whole
    step = 10 ** max(0, len(str(int(whole * share))) - 2)
    return int(whole * share) // step * step


def spread_of(place: Path, dataset: str) -> tuple[float, str] | None:
    """How robust accuracy varies over seeds, in points: the standard deviation pooled over finished
    runs on a data set that differ in the seed alone, and what runs these are. None of those whose
    network answers at random: no number of theirs means anything."""
    groups, lengths = dict[tuple[str, ...], np.ndarray](), set[float]()
    with nullcontext() if place.is_file() else suppress(Refused):  # no run may be there yet
        told = [(row, each.attack) for each in read(place).tables for row in each.rows]
        for row, attack in told:
            config, number = row.runs[0].config, row.numbers.get(("best", attack))
            random = any(a.name == "random" for run in row.runs for a in run.result.alarms)
            mine = config["choices"].get("dataset") == dataset and not random
            if mine and number and len(number.seeds) > 1:
                points = 100 * np.array([*number.seeds.values()])
                names = tuple(run.name for run in row.runs)  # it may stand in several tables
                groups[names] = points - points.mean()
                lengths.add(config["schedule"]["epochs"])
    if not groups:
        return None
    off = np.concatenate([*groups.values()])
    sd = (float(off @ off) / (len(off) - len(groups))) ** 0.5
    epochs = " and ".join(f"{each:g}" for each in sorted(lengths))
    kinds = f"{len(groups)} kind{'s' * (len(groups) > 1)}"
    return sd, f"{len(off)} runs of {epochs} epochs, {kinds}, in {place}"


def answer(jobs: Sequence[Any], words: Sequence[str], own: Namespace) -> str:
    """A row for each number of seeds, the command line of the one to take, and what it can show."""
    asked, found = plans(jobs, own.budget)
    count, spec = len({job.columns["run"] for job in jobs}), jobs[0].case.spec
    runs = f"{count} run{'s' * (count > 1)} as asked for: {duration(asked.seconds)} a seed"
    runs += ", start and masking checks included"
    if not found:
        least = 5
        while not plans(jobs, least)[1]:
            least = math.ceil(1.05 * least)
        written = f"{least}s" if least < 100 else f"{math.ceil(least / 60)}m"
        smaller = "a smaller network (model.depth, model.width)" + " or fewer runs" * (count > 1)
        return (
            f"{runs}; too little of them fits {duration(own.budget)}: the least that tells anything"
            f" is --budget {written}; give that, or {smaller}."
        )
    place, dataset = own.spread or Path(spec.record.root), spec.config["choices"]["dataset"]
    shown = (
        f"What seeds show isn't known: no two finished runs of {dataset} in {place} differ in the"
        " seed alone (those that answer at random don't count)."
    )
    if spread := spread_of(place, dataset):
        shown = (
            f"Over seeds the robust accuracy varies by {spread[0]:.2g} points (sd; {spread[1]}): to"
            f" see {POINTS:g} points you need about {seeds_needed(spread[0], POINTS)} seeds (paired"
            " test at 0.05, power 0.8)."
        )
    rows = []
    for plan in found:
        epochs = f"{plan.epochs:g}" if plan.epochs else "as asked"
        shows = spread and plan.seeds > 1 and f"{detectable(spread[0], plan.seeds):.1f} points"
        counts = (str(plan.seeds), epochs, str(plan.images), str(plan.tested))
        rows.append([*counts, duration(plan.seconds), shows or "-"])
    head = ["seeds", "epochs", "images", "test images", "time", "shows a difference of"]
    uncut = [plan for plan in found if plan[1:3] == asked[1:3] and plan.seeds >= 3]
    changes = (uncut or [plan for plan in found if plan.seeds <= 3])[-1].words(asked)
    keys = {word.split("=")[0] for word in changes}
    kept = [word for word in words if word.split("=")[0] not in keys]
    line = to_copy(["python", "-m", "sat.run", *kept, *changes])
    held_out = jobs[0].case.sizes.held_out
    images = f"Images: held-out ones among them, {held_out:,} of {asked.images:,}."
    return "\n".join([runs, "", table(head, rows), "", images, shown, "", line])
