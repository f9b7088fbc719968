"""How long an image takes, by trying the very network for about two seconds, or from a rate."""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import median

import torch

from sat.acceleration.device import find_device
from sat.acceleration.folding import fold
from sat.acceleration.precision import float32
from sat.attacks import PGD
from sat.bench.case import Case
from sat.bench.costs import Cost, Sizes, Work
from sat.bench.stopwatch import Timed, interleaved, settings
from sat.config import Spec
from sat.training.step import update

TRIED = {"cpu": 4e9, "cuda": 4e12}  # multiply-adds of the forward of a batch that is tried
LARGEST = {"cpu": 2e10, "cuda": 2e13}  # of two images: more would take a minute and longer
DOUBT = 310  # input gradients that 460 forwards and 160 backwards cost: an image that stands
STEPS, ROUNDS = 2, 3  # of the attack that is timed; and how often it is


@dataclass(frozen=True)
class Pace:
    """Seconds an image: of an update, and of an input gradient in the three places."""

    update: float
    attack: float
    validation: float
    evaluation: float

    def training(self, work: Work) -> float:
        """Updates and validations. Beside its attack an image is seen clean and judged after it:
        two forwards, which cost what an input gradient does."""
        validating = self.validation * (work.validation + work.validated)
        return self.update * work.images + self.attack * work.attack + validating

    def measuring(self, work: Work) -> float:
        return self.evaluation * (work.evaluation + work.evaluated)

    def doubting(self, work: Work) -> float:
        """At most so long: an image that falls early costs little."""
        return self.evaluation * DOUBT * work.checked


def from_rate(cost: Cost, tflops: float, tflops_fp32: float) -> Pace:
    """A forward is one unit of 2 FLOP a multiply-add, an input gradient two, an update three."""
    unit = 2 * cost.multiply_adds / 1e12
    gradient = 2 * unit / tflops
    return Pace(3 * unit / tflops, gradient, gradient, 2 * unit / tflops_fp32)


_TRIED: dict[str, Pace] = {}


def tried(spec: Spec, sizes: Sizes, cost: Cost) -> Pace:
    """Measured here, once for all runs that share network, images, precision and batch.

    Raises ValueError, saying why, for what can't be tried on this machine.
    """
    device, schedule = find_device(spec.device), spec.schedule
    most = largest(cost, device)
    batches = [
        max(2, min(-(-schedule.batch_size // schedule.parts), most)),
        min(spec.validation.batch_size, sizes.held_out, most),
        min(spec.evaluation.batch_size, spec.evaluation.limit or sizes.test, most),
    ]
    schedule = replace(schedule, epochs=1.0, batch_size=batches[0], accumulate=1)
    case = Case((), replace(spec, parts={**spec.parts, "schedule": schedule}), sizes, device)
    config = spec.config
    about = [config["model"], config["activation"], config["objective"], batches, str(schedule)]
    key = json.dumps([*about, sizes.classes, *sizes.shape, str(device)])
    if key not in _TRIED:
        _TRIED[key] = try_out(case, *batches)
    return _TRIED[key]


def largest(cost: Cost, device: torch.device) -> int:
    """Images of the largest batch that is tried."""
    if 2 * cost.multiply_adds > LARGEST[device.type]:
        raise ValueError("not timed: too many multiply-adds to be tried on this machine")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting = (free - 2 * (cost.state or 0)) / 2 / max(cost.activations, 1)
    if fitting < 2:
        raise ValueError("not timed: too large for this machine's memory")
    return int(min(fitting, max(2, TRIED[device.type] // max(cost.multiply_adds, 1))))


def try_out(case: Case, batch: int, validation: int, evaluation: int) -> Pace:
    """Times the program's own update, and its PGD in the precision of the training and in
    float32."""
    state, attack = case.state(), PGD(8.0, STEPS)
    model, choices = state.model, state.plan.choices

    def gradient(count: int, exact: bool = False) -> float:
        x, y = case.images(count)
        with settings(choices), float32(model.eval()) if exact else nullcontext():
            net = fold(model, x[:2], model.autocast).net
            call = Timed(lambda: attack(net, x, y))
            return median(interleaved({0: call}, case.device, ROUNDS)[0]) / STEPS / count

    gradient = cache(gradient)
    paces = gradient(batch), gradient(validation), gradient(evaluation, exact=True)
    call = Timed(partial(update, state, *case.images()), partial(settings, choices))
    return Pace(median(interleaved({0: call}, case.device, ROUNDS)[0]) / batch, *paces)
