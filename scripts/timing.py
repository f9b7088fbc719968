"""How long an image takes, by trying the very network for about two seconds, or from a rate."""

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

import torch
from costs import Cost, Sizes, Work, build

from sat.acceleration.auto import choose
from sat.acceleration.device import find_device
from sat.acceleration.folding import fold
from sat.acceleration.precision import float32
from sat.attacks import PGD, Clean
from sat.config import Spec
from sat.training.loop import Trainer
from sat.training.plan import Plan

TRIED = {"cpu": 4e9, "cuda": 4e12}  # multiply-adds of the forward of a batch that is tried
LARGEST = {"cpu": 2e10, "cuda": 2e13}  # of two images: more would take a minute and longer
SECONDS = 0.4  # for each of four quantities, beside a first, slow time
DOUBT = 310  # input gradients that 460 forwards and 160 backwards cost: an image that stands
STEPS = 2  # of the attack that is timed


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
        """At most: an image that falls early costs little."""
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
    device = find_device(spec.device)
    schedule = replace(spec.schedule, epochs=1.0, accumulate=1)
    eager = replace(spec.schedule, compile=False)  # compiling takes longer than trying
    choices = choose(eager, device, sizes.train, cost.multiply_adds, cost.depthwise)
    wanted = {
        "update": -(-spec.schedule.batch_size // spec.schedule.parts),
        "validation": min(spec.validation.batch_size, sizes.held_out),
        "evaluation": min(spec.evaluation.batch_size, spec.evaluation.limit or sizes.test),
    }
    most = _most(cost, device)
    batches = {name: min(count, most) for name, count in wanted.items()}
    plan = Plan(replace(schedule, batch_size=max(2, batches["update"])), sizes.train, 0,
                {**choices, "compile": False})  # fmt: skip
    config = spec.config
    about = [config["model"], config["activation"], config["objective"], batches, str(plan)]
    key = json.dumps([*about, sizes.classes, *sizes.shape, str(device)])
    if key not in _TRIED:
        _TRIED[key] = _try(spec, sizes, plan, batches, device)
    return _TRIED[key]


def _most(cost: Cost, device: torch.device) -> int:
    """Images of the largest batch that is tried."""
    if 2 * cost.multiply_adds > LARGEST[device.type]:
        raise ValueError("not timed: too many multiply-adds to be tried on this machine")
    fitting = (_free_bytes(device) - 2 * (cost.state or 0)) / 2 / max(cost.activations, 1)
    if fitting < 2:
        raise ValueError("not timed: too large for this machine's memory")
    return int(min(fitting, max(2, TRIED[device.type] // max(cost.multiply_adds, 1))))


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not every system tells
        return float("inf")


def _try(
    spec: Spec, sizes: Sizes, plan: Plan, batches: dict[str, int], device: torch.device
) -> Pace:
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.choices["threads"])
    try:
        model = build(spec, sizes, "cpu").to(device)
        trainer = Trainer(model, Clean(), spec.objective, plan)

        @cache
        def gradient(count: int, exact: bool = False) -> float:
            x, y = _images(count, sizes, device)
            model.eval()
            with float32(model) if exact else nullcontext():
                net = fold(model, x[:2], model.autocast).net
                spent = _seconds(lambda: PGD(8.0, STEPS)(net, x, y), device)
            return spent / STEPS / count

        gradients = [gradient(batches["update"]), gradient(batches["validation"]),
                     gradient(batches["evaluation"], exact=True)]  # fmt: skip
        images = _images(plan.schedule.batch_size, sizes, device)
        # last: updates with labels of no meaning may lead to weights that are not finite
        update = _seconds(lambda: trainer.update(*images), device) / plan.schedule.batch_size
    finally:
        torch.set_num_threads(threads)
    return Pace(update, *gradients)


def _images(count: int, sizes: Sizes, device: torch.device) -> tuple[Any, Any]:
    x = torch.rand(count, *sizes.shape, device=device)
    return x, torch.randint(sizes.classes, (count,), device=device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median time of a call."""
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    call()
    wait()
    times, begun = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begun > 5 * SECONDS:
            break
    return median(times)
