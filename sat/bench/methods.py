"""What a step of each method of training costs: units of work as they are counted (a forward, an
input gradient and a weight gradient of a batch are one each), and time; and the time of a unit, in
those that a unit of PGD-2 takes in the same round.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from statistics import median

from sat.bench.book import Measurements, Row
from sat.bench.case import Case
from sat.bench.step_cost import step_cost
from sat.bench.stopwatch import Timed, interleaved, milliseconds, paired
from sat.config import composed
from sat.objectives import Method
from sat.training.step import update

GROUPS = ("attack", "objective", "regulariser", "weight_attack")
PGD2 = "attack.steps=2"
METHODS = (
    PGD2, "attack=none", "attack=n_fgsm", "attack=fgsm_rs", "attack=apgd attack.steps=2",
    "attack=multi attack.steps=2", "attack=free attack.replays=4",
    *(f"objective={name} {PGD2}" for name in ("trades", "mart", "consistency")),
    f"objective=trades objective.forwards=3 {PGD2}", "objective=gradient_norm attack=none",
    *(f"{word} {PGD2}" for word in ("weight_attack=awp", "objective=trades weight_attack=awp")),
    *(f"attack=fgsm_rs regulariser={name}" for name in ("gradalign", "elle", "elle_a")),
)  # fmt: skip


def measurements(case: Case, own: Namespace) -> Measurements:
    """Networks and images are the same; of the command line's own method nothing is taken."""
    base = cache(partial(step_of, case, PGD2))
    for words in METHODS:
        yield words, 1, partial(measure, words, partial(step_of, case, words), base, own)


def measure(
    words: str, step: Callable[[], tuple[Timed, Case]], base: Callable[[], tuple[Timed, Case]],
    own: Namespace,
) -> list[Row]:  # fmt: skip
    (call, case), (other, beside) = step(), base()
    calls = {"base": other} | ({words: call} if words != PGD2 else {})
    times = interleaved(calls, case.device, own.rounds, own.until)
    mine = times[words if words != PGD2 else "base"]
    units, usual = (sum(step_cost(Method.of(each.spec))) for each in (case, beside))
    of_unit = paired(lambda t, pgd: t / units / (pgd / usual), mine, times["base"])
    return [{"name": words, "units": units, "ms": milliseconds(mine),
             "images/s": case.batch / median(mine), "a unit, of PGD-2": of_unit}]  # fmt: skip


def step_of(case: Case, words: str) -> tuple[Timed, Case]:
    """A step of the method that these words say, and its case."""
    group = lambda word: word.split("=")[0].split(".")[0].lstrip("+")  # noqa: E731
    kept = [word for word in case.words if group(word) not in GROUPS]
    kept += words.split()
    case = replace(case, words=tuple(kept), spec=composed(kept))
    state = case.state(None)
    images = case.images(state.objective.views * case.batch)
    return Timed(partial(update, state, *images)).under(state.plan.choices), case
