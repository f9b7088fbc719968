"""What a step of a method costs, counted: a forward, an input gradient and a weight gradient of a
batch are one unit each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from sat.attacks import Clean
from sat.bench.counting import Passes
from sat.objectives import Method
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

IMAGES, WIDTH = 4, 16


class StepCost(NamedTuple):
    """Units an image of a batch, in all views and replays of it."""

    update: float  # beside the attack
    attack: float


_COUNTED: dict[str, StepCost] = {}


def step_cost(method: Method) -> StepCost:
    """Counted in one step on a network of matrix products, and one without the attack; once for
    each method."""
    if (told := repr(method)) not in _COUNTED:
        update = _units(method.with_attack(Clean()))
        _COUNTED[told] = StepCost(round(update, 1), round(_units(method) - update, 1))
    return _COUNTED[told]


def _units(method: Method) -> float:
    views = method.objective.views
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=IMAGES, epochs=9.0), IMAGES, 0, choices)
    with torch.random.fork_rng(devices=[]):
        # what comes before the products has parameters, so that an update has their gradients too
        first = nn.Flatten(), nn.AdaptiveAvgPool1d(WIDTH), nn.LayerNorm(WIDTH)
        products = nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 10)
        net = nn.Sequential(*first, *products)
        state = TrainState(net, method, plan)
        x, y = torch.rand(views * IMAGES, 3, 8, 8), torch.arange(views * IMAGES) % IMAGES
        step = _flop(lambda: update(state, x, y))
    return step / _flop(lambda: net(x[:IMAGES]))


def _flop(call: Callable[[], object]) -> int:
    with Passes() as counted:
        call()
    return sum(flop for flop, _ in counted.each)
