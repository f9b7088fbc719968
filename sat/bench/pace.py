"""How long an image takes, by trying the very network for about two seconds, or from a rate."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from sat.acceleration.device import find_device
from sat.acceleration.folding import fold
from sat.acceleration.precision import float32
from sat.attacks import PGD
from sat.bench.case import Case
from sat.bench.costs import CHECKED, Cost, Sizes, Work
from sat.bench.stopwatch import Timed, interleaved
from sat.config import Spec
from sat.errors import is_out_of_memory
from sat.training.step import update

TRIED = {"cpu": 4e9, "cuda": 4e12}  # multiply-adds of the forward of a batch that is tried
LARGEST = {"cpu": 2e10, "cuda": 2e13}  # of two images: more would take a minute and longer
STEPS, ROUNDS = 2, 3  # of the attack that is timed; and how often it is


@dataclass(frozen=True)
class Pace:
    """Seconds an image: of an update, and of an input gradient in training and evaluation."""

    update: float
    attack: float
    evaluation: float

    def seconds(self, work: Work) -> tuple[float, float, float]:
        """Training with its validations, evaluation, and masking checks (at most so long). Beside
        its attack an image is seen clean and judged after it: two forwards, which cost what an
        input gradient does."""
        training = work.attack + work.validation + work.validated
        return (self.update * work.images + self.attack * training,
                self.evaluation * (work.evaluation + work.evaluated),
                self.evaluation * CHECKED * work.checked)  # fmt: skip


def from_rate(cost: Cost, update: float, tflops: float, tflops_fp32: float) -> Pace:
    """A unit has 2 FLOP a multiply-add; an update has so many, an input gradient two."""
    unit = 2 * cost.multiply_adds / 1e12
    return Pace(update * unit / tflops, 2 * unit / tflops, 2 * unit / tflops_fp32)


_TRIED: dict[str, Pace] = {}


def tried(spec: Spec, sizes: Sizes, cost: Cost) -> Pace:
    """Measured here, once for all runs that share network, images, precision and batch.

    Raises ValueError, saying why, for what can't be tried on this machine.
    """
    device, schedule = find_device(spec.device), spec.schedule
    if 2 * cost.multiply_adds > LARGEST[device.type]:
        raise ValueError("not timed: too many multiply-adds to be tried on this machine")
    most = max(2, int(TRIED[device.type] / max(cost.multiply_adds, 1)))
    batch = max(2, min(-(-schedule.batch_size // schedule.parts), most))
    evaluated = min(spec.evaluation.batch_size, spec.evaluation.limit or sizes.test, most)
    schedule = replace(schedule, epochs=1.0, batch_size=batch, accumulate=1)
    case = Case((), replace(spec, parts={**spec.parts, "schedule": schedule}), sizes, device)
    config = spec.config
    parts = "model", "activation", "objective", "regulariser", "weight_attack"
    about = [*(config[part] for part in parts), evaluated, str(schedule)]
    key = json.dumps([*about, sizes.classes, *sizes.shape, str(device)])
    try:
        if key not in _TRIED:
            _TRIED[key] = try_out(case, evaluated)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError("not timed: too large for this machine's memory") from error
    return _TRIED[key]


def try_out(case: Case, evaluated: int) -> Pace:
    """Times the program's own update, and its PGD in the precision of the training and in
    float32."""
    state, attack = case.state(graph=case.choices["graph"]), PGD(8.0, STEPS)
    model, choices = state.model, state.plan.choices

    def seconds(call: Timed) -> float:
        return median(interleaved({"": call.under(choices)}, case.device, ROUNDS)[""])

    def gradient(count: int, exact: bool) -> float:
        x, y = case.images(count)
        with float32(model.eval()) if exact else nullcontext():
            net = fold(model, x[:2], model.autocast).net
            return seconds(Timed(lambda: attack(net, x, y))) / STEPS / count

    training, evaluation = gradient(case.batch, exact=False), gradient(evaluated, exact=True)
    views = state.objective.views
    whole = seconds(Timed(partial(update, state, *case.images(views * case.batch))))
    return Pace(whole / case.batch, training, evaluation)
