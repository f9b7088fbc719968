"""What of a command line fits a time: epochs, images and seeds, and what so many seeds can show.

Training takes as long as epochs and images are many, the evaluation as test images are; a third of
the time at most is for the evaluation. Epochs go down to a quarter of those asked for before
training images do.
"""

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat.errors import Refused
from sat.loggers.screen import duration, table, to_copy
from sat.report.runs import finished
from sat.statistics import detectable, over_seeds, seeds_needed

SEEDS = (1, 2, 3, 5, 10)
BEGINNING = 5.0  # seconds of a run before its first step, in a sweep that is under way
LEAST_EPOCHS, LEAST_IMAGES, LEAST_TESTED = 0.25, 0.1, 100  # shares, and a number
POINTS = 2.0  # of robust accuracy: a difference that people look for
CHOSEN = ("seed", "schedule.epochs", "dataset.limit", "evaluation.limit")


@dataclass(frozen=True)
class Plan:
    """The runs of so many seeds, with what each has; `seconds` are of all of them."""

    seeds: int
    epochs: float | None  # None: runs differ in them, so they stay
    images: int  # for training, those held out among them
    tested: int
    seconds: float

    def words(self, asked: "Plan") -> list[str]:
        """Overrides that make the plan of what was asked for."""
        found = {"seed": ",".join(map(str, range(self.seeds)))}
        cuts = zip(CHOSEN[1:], ("epochs", "images", "tested"), strict=True)
        for key, name in cuts:
            if (value := getattr(self, name)) != getattr(asked, name):
                found[key] = f"{value:g}" if name == "epochs" else str(value)
        return [f"{key}={value}" for key, value in found.items()]


def plans(jobs: Sequence[Any], budget: float) -> tuple[Plan, list[Plan], float]:
    """One seed of the runs as they are asked for; for each number of seeds the most that fits,
    those with which too little does left out; and the seconds that one seed takes at least."""
    runs = {job.name: job for job in jobs if job.spec.seed == jobs[0].spec.seed}.values()
    if untold := [job.note for job in runs if job.parts is None]:
        raise Refused(f"--budget: {untold[0]}")
    training, measuring, checks = (sum(each) for each in zip(*(j.parts for j in runs), strict=True))
    fixed, epochs = checks + BEGINNING * len(runs), {job.spec.schedule.epochs for job in runs}
    sizes, limit = jobs[0].sizes, jobs[0].spec.evaluation.limit
    asked = Plan(1, epochs.pop() if len(epochs) == 1 else None, sizes.train + sizes.held_out,
                 min(limit or sizes.test, sizes.test), training + measuring + fixed)  # fmt: skip
    least = LEAST_EPOCHS if asked.epochs else 1.0
    training_least = training * least * LEAST_IMAGES
    measuring_least = measuring * min(LEAST_TESTED, asked.tested) / asked.tested
    shortest = fixed + max(
        3 * measuring_least, min(1.5 * training_least, measuring + training_least)
    )
    found = []
    for seeds in SEEDS:
        room = budget / seeds - fixed
        judged = min(1.0, room / 3 / max(measuring, 1e-9))
        share = min(1.0, (room - judged * measuring) / max(training, 1e-9))
        images, tested = min(1.0, share / least), part(asked.tested, judged)
        if images < LEAST_IMAGES or tested < min(LEAST_TESTED, asked.tested):
            break
        epochs_of = asked.epochs and (part(asked.epochs, max(share, least)) or asked.epochs)
        seconds = seeds * (fixed + judged * measuring + share * training)
        found.append(Plan(seeds, epochs_of, part(asked.images, images), tested, seconds))
    return asked, found, shortest


def part(whole: float, share: float) -> Any:
    """A share of a number, rounded down to two digits; the number itself if it is all of it."""
    if share >= 1:
        return whole
    step = 10 ** max(0, len(str(int(whole * share))) - 2)
    return int(whole * share) // step * step


@dataclass(frozen=True)
class Spread:
    """How robust accuracy varies over seeds, in points: the standard deviation pooled over runs
    that differ in the seed alone; how many runs, groups and, of each, epochs they are."""

    sd: float
    runs: int
    kinds: int
    epochs: tuple[float, ...]


def spread_of(place: Path, dataset: str) -> Spread | None:
    """The spread of the finished runs on a data set, without those whose network answers at random:
    no number of theirs means anything."""
    kinds: dict[str, dict[int, float]] = {}
    epochs: dict[str, float] = {}
    for run in finished(place) if place.exists() else ():
        random = any(alarm.name == "random" for alarm in run.result.alarms)
        if random or run.config["choices"].get("dataset") != dataset:
            continue
        robust = {name: entry.accuracy for (which, name), entry in run.entries.items()
                  if which == next(iter(run.entries))[0] and name != "clean"}  # fmt: skip
        if robust:
            worst = min(robust, key=lambda name: robust[name])
            key = json.dumps([run.decided, run.images, worst], sort_keys=True)
            kinds.setdefault(key, {})[run.seed] = 100 * robust[worst]
            epochs[key] = run.config["schedule"]["epochs"]
    several = {key: seeds for key, seeds in kinds.items() if len(seeds) > 1}
    groups = [over_seeds([*seeds.values()]) for seeds in several.values()]
    if not groups:
        return None
    squares = sum((group["n"] - 1) * group["sd"] ** 2 for group in groups)
    runs = sum(group["n"] for group in groups)
    sd = (squares / (runs - len(groups))) ** 0.5
    return Spread(sd, runs, len(groups), tuple(sorted({epochs[key] for key in several})))


def answer(jobs: Sequence[Any], words: Sequence[str], own: Namespace) -> str:
    """A row for each number of seeds, the command line of the one to take, and what it can show."""
    asked, found, shortest = plans(jobs, own.budget)
    count = len({job.name for job in jobs})
    runs = f"{count} run{'s' * (count > 1)} as asked for: {duration(asked.seconds)} a seed"
    if not found:
        return (
            f"{runs}; too little of them fits {duration(own.budget)}: the least that tells anything"
            f" takes {duration(shortest)}. Give --budget {math.ceil(shortest / 60)}m, fewer runs,"
            f" or a smaller network (model.depth, model.width)."
        )
    place = own.spread or Path(jobs[0].spec.record.root)
    dataset = jobs[0].spec.config["choices"]["dataset"]
    told = (
        f"What seeds show isn't known: no two finished runs of {dataset} in {place} differ in the"
        " seed alone."
    )
    uncut = [plan for plan in found if (plan.epochs, plan.images) == (asked.epochs, asked.images)]
    few = [plan for plan in found if plan.seeds <= 3]
    chosen = (uncut if uncut and uncut[-1].seeds >= 3 else few)[-1]
    if spread := spread_of(place, dataset):
        told = shown(spread, place, chosen)
    rows = []
    for plan in found:
        epochs = f"{plan.epochs:g}" if plan.epochs else "as asked"
        points = "-"
        if spread and plan.seeds > 1:
            points = f"{detectable(spread.sd, plan.seeds):.1f} points"
        counts = (str(plan.seeds), epochs, str(plan.images), str(plan.tested))
        rows.append([*counts, duration(plan.seconds), points])
    head = ["seeds", "epochs", "images", "test images", "time", "shows a difference of"]
    changes = chosen.words(asked)
    keys = {word.split("=")[0] for word in changes}
    kept = [word for word in words if word.split("=")[0] not in keys]
    line = to_copy(["python", "-m", "sat.run", *kept, *changes])
    held_out = f"Images: held-out ones among them, {jobs[0].sizes.held_out:,} of {asked.images:,}."
    return "\n".join([runs, "", table(head, rows), "", held_out, told, "", line])


def shown(spread: Spread, place: Path, plan: Plan) -> str:
    """What is known of seeds, with the epochs of the runs that tell it where they are others."""
    epochs = ""
    if set(spread.epochs) != {plan.epochs}:
        epochs = f" of {' and '.join(f'{each:g}' for each in spread.epochs)} epochs"
    return (
        f"Over seeds the robust accuracy varies by {spread.sd:.2g} points (sd; {spread.runs} runs"
        f"{epochs}, {spread.kinds} kind{'s' * (spread.kinds > 1)}, in {place}): to see {POINTS:g}"
        f" points you need about {seeds_needed(spread.sd, POINTS)} seeds (paired test at 0.05,"
        " power 0.8)."
    )
