"""Where the time of a step goes, measured with the program's own parts; what can't be timed by
itself is the difference of two times of one round.

On a GPU a part by itself may wait for its launches where the whole step does not. Peak and memory
are the fastest large matrix product and a large copy; bytes are what the operations of the eager
program read and write. Images of a folder that isn't there are random pixels.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

from sat.activations.surrogate import phase
from sat.attacks.pgd import frozen, input_gradient
from sat.bench.book import Measurements, Row
from sat.bench.case import Case
from sat.bench.counting import passes
from sat.bench.loading import fed, training_images
from sat.bench.stopwatch import Timed, beside_ceilings, milliseconds, paired
from sat.data.stream import StreamSplit
from sat.rng import RowRng
from sat.training.state import TrainState
from sat.training.step import update


def stages_of(k: int, t: Mapping[str, float]) -> dict[str, tuple[int, float]]:
    """Units of work and seconds (or bytes) of each part, by those `t` of the calls in one round;
    they add up to a step of PGD-k with its batch. Where processes read the images beside the step
    (`fed`), it has only what it waits for."""
    found = {"data": (0, t["fed"] - t["step"] if "fed" in t else t["data"])}
    if k:
        rest = t["attack"] - k * t["attack gradient"] - t["fold"]
        found |= {
            "attack: forwards": (k, k * t["attack forward"]),
            "attack: backwards": (k, k * (t["attack gradient"] - t["attack forward"])),
            "attack: weights folded": (0, t["fold"]),
            "attack: start, steps, ball": (0, rest),
        }
    rest = t["step"] - t["attack"] - t["gradients"] - t["optimizer"]
    return found | {
        "update: forward": (1, t["forward"]),
        "update: backward": (2, t["gradients"] - t["forward"]),
        "update: optimizer": (0, t["optimizer"]),
        "update: checks and sums": (0, rest),
    }


def measurements(case: Case, own: Namespace) -> Measurements:
    k = 2 if 2 in own.steps else own.steps[-1]
    for compiled in [False, True][: 1 + own.compile]:
        key = f"PGD-{k}{', compiled' * compiled}"
        yield key, 1, partial(measure, key, case, k, own, compiled)


def measure(key: str, case: Case, k: int, own: Namespace, compiled: bool) -> list[Row]:
    state, images = case.state(k, compile=compiled), training_images(case)
    calls = step_calls(case, state) | {"data": fed(case, images)}
    if isinstance(images, StreamSplit):
        calls["fed"] = fed(case, images, partial(update, state))
    calls = {name: call.under(state.plan.choices) for name, call in calls.items()}
    times, best = beside_ceilings(calls, case.device, own.rounds, own.until)
    by_round = [dict(zip(times, each, strict=True)) for each in zip(*times.values(), strict=True)]
    found = [stages_of(k, seconds) for seconds in by_round]
    stages = {name: (work, [parts[name][1] for parts in found])
              for name, (work, _) in found[0].items()}  # fmt: skip
    wholes = [sum(each) for each in zip(*(mine for _, mine in stages.values()), strict=True)]
    stages["all"] = (sum(work for work, _ in stages.values()), wholes)
    if isinstance(images, StreamSplit):
        stages[f"the files alone, {images.workers} readers"] = (0, times["data"])
    moved = {} if compiled else bytes_of(k, calls)
    rows: list[Row] = []
    for name, (work, mine) in stages.items():
        flop, amount = work * case.unit, max(0, moved.get(name, 0))
        peak, memory = (
            paired(lambda t, rate, much=much: 100 * much / t / rate, mine, rates) if much else None
            for much, rates in ((flop, best.product), (amount, best.memory))
        )
        memory_binds = amount / median(best.memory) > flop / median(best.product)
        rows.append({"name": f"{key}: {name}", "ms": milliseconds(mine),
                     "% of step": paired(lambda t, whole: 100 * t / whole, mine, wholes),
                     "units": work, "% of peak": peak, "% of memory": memory,
                     "binds": ("memory" if memory_binds else "product") if amount else None,
                     })  # fmt: skip
    return rows


def bytes_of(k: int, calls: Mapping[str, Timed]) -> dict[str, float]:
    """What each part reads and writes; images are not counted, which another process may read."""
    moved = {
        name: 0.0 if name in ("data", "fed") else float(sum(each for _, each in passes(call)))
        for name, call in calls.items()
    }
    parts = stages_of(k, moved | {"fed": moved["step"]})
    found = {name: amount for name, (_, amount) in parts.items()}
    return found | {"all": sum(found.values())}


def step_calls(case: Case, state: TrainState) -> dict[str, Timed]:
    """The step and its parts. `step` is all of it; `attack gradient` a forward and its backward to
    the images; `fold` brings the folded network's weights up to date; `gradients` a forward and its
    backward to the weights."""
    (x, y), model, objective = case.images(), state.model.train(), state.objective
    searched, rows = state.attack_model(x), torch.arange(len(x), device=x.device)
    images = x.clone().requires_grad_()
    inner, outer = (partial(phase, state.phased, name) for name in ("inner", "outer"))

    def gradients() -> None:
        objective(state.net, x, x, y)[0].backward()
        state.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def with_gradients() -> Iterator[None]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-9)
        yield
        state.optimizer.zero_grad(set_to_none=True)

    def attack() -> None:
        state.attack(state.attack_model(x), x, y, RowRng(0, rows))

    attacking = (partial(frozen, searched, case.spec.attack.batch_norm), inner)
    forward = partial(F.cross_entropy, reduction="sum")
    return {
        "attack": Timed(attack, (inner,)),
        "fold": Timed(lambda: state.attack_model(x)),
        "attack gradient": Timed(lambda: input_gradient(searched, x, y), attacking),
        "attack forward": Timed(lambda: forward(searched(images), y), attacking),
        "step": Timed(lambda: update(state, x, y)),
        "forward": Timed(lambda: objective(state.net, x, x, y), (outer,)),
        "gradients": Timed(gradients, (outer,)),
        "optimizer": Timed(state.optimizer.step, (with_gradients,)),
    }
