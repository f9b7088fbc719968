"""What a run has to compute, counted before it, and the rates at which this machine does it, by
trying the very network for about two seconds."""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from sat.acceleration.folding import fold
from sat.acceleration.precision import float32
from sat.attacks import PGD, Attack, Clean, Transfer
from sat.bench.case import Case
from sat.bench.counting import step_cost
from sat.bench.stopwatch import Stopwatch, Timed
from sat.data.corrupted import SEVERITIES, TYPES
from sat.errors import is_out_of_memory
from sat.objectives import Adversarial, Method
from sat.training.plan import Plan
from sat.training.step import update

CHECKED = 310  # what 460 forwards and 160 backwards of the masking checks cost
TRIED = {"cpu": 4e9, "cuda": 4e12}  # multiply-adds of the forward of a batch that is tried
LARGEST = {"cpu": 2e10, "cuda": 2e13}  # of two images: more would take a minute and longer
STEPS, ROUNDS = 2, 3  # of the attack that is timed; and how often it is


class Work(NamedTuple):
    """What there is to do, an image counted as often as it is looked at; of validations and the
    evaluation in input gradients, at most."""

    updates: int
    images: int  # that these see
    units: float  # of a step, an image of these
    validation: int
    evaluation: int
    checks: int  # of masking

    def seconds(self, unit: int, rates: tuple[float, float]) -> tuple[float, float, float]:
        """Training with its validations, evaluation, and masking checks, at so many TFLOP/s in
        training and in float32; `unit` are FLOP, and an input gradient has two."""
        training, exact = (unit / rate / 1e12 for rate in rates)
        return (training * (self.units * self.images + 2 * self.validation),
                exact * 2 * self.evaluation, exact * 2 * self.checks)  # fmt: skip


def work_of(case: Case) -> Work:
    """Counted as if every image were right when clean and stood under every attack but the last.
    Beside its attack an image is seen clean and judged after it, which costs what an input gradient
    does; a validation's probe costs two more."""
    spec, sizes, evaluation = case.spec, case.sizes, case.spec.evaluation
    updates = spec.schedule.steps(sizes.train)
    held_out = min(spec.validation.limit or sizes.held_out, sizes.held_out)
    each = gradients_of(spec.validation.attack, sizes.classes)
    each = 3 + each * (2 if spec.validation.weights == "either" else 1)
    times = validations(spec.schedule, sizes.train, spec.validation.every)
    tested, attacks = min(evaluation.limit or sizes.test, sizes.test), evaluation.measured_by
    steps = evaluation.restarts * sum(gradients_of(a, sizes.classes) for a in attacks.values())
    steps += len(TYPES) * len(SEVERITIES) / 2 * (evaluation.corruptions is not None)  # forwards
    checkpoints = len(set(evaluation.checkpoints))
    checked = min(evaluation.masking_checks, tested) if evaluation.attacks else 0
    return Work(
        updates=updates,
        images=updates * spec.schedule.batch_size,
        units=step_cost(Method.of(spec)),
        validation=times * held_out * each,
        evaluation=int(checkpoints * tested * (steps + max(1, len(attacks)))),
        checks=checkpoints * checked * CHECKED,
    )


@cache
def validations(schedule: Any, images: int, every: float) -> int:
    plan = Plan(schedule, images, 0, {}, every)
    return sum(plan.validates(step) for step in range(1, plan.steps + 1))


def gradients_of(attack: Any, classes: int) -> int:
    """Input gradients for an image that stands, or what costs as much: as the attack tells of
    itself, or else counted, in a step that trains under it, beside the update's three units."""
    attack = attack.method if isinstance(attack, Transfer) else attack
    known = attack.gradients(classes)
    return math.ceil(step_cost(Method(attack, Adversarial())) / 2 - 1.5) if known is None else known


# time -------------------------------------------------------------------------------------------

_TRIED: dict[str, tuple[float, float]] = {}


def tried(case: Case) -> tuple[float, float]:
    """TFLOP/s of the training and of its evaluation on this machine, tried once for all runs that
    share network, method, images, precision and batch.

    Raises ValueError, saying why, for what can't be tried.
    """
    spec, schedule, kind = case.spec, case.spec.schedule, case.device.type
    multiplied = max(1, case.cost.multiply_adds)
    if 2 * multiplied > LARGEST[kind]:
        raise ValueError("not timed: too many multiply-adds to be tried on this machine")
    most = max(2, int(TRIED[kind] / multiplied))
    batch = max(2, min(-(-schedule.batch_size // schedule.parts), most))
    evaluated = min(spec.evaluation.batch_size, spec.evaluation.limit or case.sizes.test, most)
    schedule = replace(schedule, epochs=1.0, batch_size=batch, accumulate=1)
    parts = "model", "activation", "objective", "regulariser", "weight_attack"
    about = [*(spec.config[part] for part in parts), spec.attack.eps > 0, evaluated, schedule]
    key = str([*about, case.sizes.classes, case.sizes.shape, case.device])
    try:
        if key not in _TRIED:
            _TRIED[key] = try_out(Case(spec.bringing(schedule=schedule)), evaluated)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError("not timed: too large for this machine's memory") from error
    return _TRIED[key]


def try_out(case: Case, evaluated: int) -> tuple[float, float]:
    """Times a step of the program's own, its attack a PGD of few steps if it has one, and such a
    PGD in float32."""
    pgd, unit = PGD(8.0, STEPS), 2 * case.cost.multiply_adds / 1e12
    attack: Attack = pgd if case.spec.attack.eps else Clean()
    state, watch = case.state(attack, graph=case.choices["graph"]), Stopwatch(case.device, ROUNDS)
    images = case.images(state.objective.views * case.batch)
    net = fold(state.model.eval(), images[0][:2]).net
    search = partial(pgd, net, *case.images(evaluated))
    timed = partial(Timed, choices=state.plan.choices)
    calls = {"step": timed(partial(update, state, *images)),
             "pgd": timed(search, (partial(float32, net),))}  # fmt: skip
    step, exact = (float(np.median(rounds)) for rounds in watch.times(calls).values())
    units = step_cost(Method.of(case.spec, attack))
    return case.batch * units * unit / step, evaluated * 2 * STEPS * unit / exact
