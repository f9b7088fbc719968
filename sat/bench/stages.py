"""Where the time of a step goes, measured with the program's own parts; what can't be timed by
itself is the difference of two times of one round.

On a GPU a part by itself may wait for its launches where the whole step does not. The peak is the
fastest large matrix product.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from sat.activations.surrogate import phase
from sat.attacks.pgd import frozen, input_gradient
from sat.bench.book import Measurements, Row
from sat.bench.case import Case
from sat.bench.loading import fed, training_images
from sat.bench.stopwatch import Timed, beside_products, milliseconds, paired, settings
from sat.data.stream import StreamSplit
from sat.rng import RowRng
from sat.training.state import TrainState
from sat.training.step import update


def stages_of(k: int, t: dict[str, float]) -> dict[str, tuple[int, float]]:
    """Units of work and seconds of each part, by the seconds `t` of the calls in one round; they
    add up to a step of PGD-k with its batch. Where processes read the images beside the step
    (`fed`), it has only what it waits for."""
    found = {"data": (0, t["fed"] - t["step"] if "fed" in t else t["data"])}
    if k:
        backward = t["attack gradient"] - t["attack forward"]
        rest = t["attack"] - k * t["attack gradient"] - t["fold"]
        found |= {
            "attack: forwards": (k, k * t["attack forward"]),
            "attack: backwards": (k, k * backward),
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
        yield key, partial(measure, key, case, k, own.rounds, compiled)


def measure(key: str, case: Case, k: int, rounds: int, compiled: bool) -> list[Row]:
    state = case.state(k, compile=compiled)
    with settings(state.plan.choices), tempfile.TemporaryDirectory() as folder:
        images = training_images(case, Path(folder))
        calls = attack_calls(case, state) | update_calls(case, state)
        calls["data"] = fed(case, images)
        if isinstance(images, StreamSplit):
            calls["fed"] = fed(case, images, partial(update, state))
        times, peak = beside_products(calls, case.device, rounds)
    by_round = [dict(zip(times, each, strict=True)) for each in zip(*times.values(), strict=True)]
    found = [stages_of(k, seconds) for seconds in by_round]
    wholes = [sum(seconds for _, seconds in parts.values()) for parts in found]
    stages = {name: (work, [parts[name][1] for parts in found])
              for name, (work, _) in found[0].items()}  # fmt: skip
    stages["all"] = (sum(work for work, _ in stages.values()), wholes)
    if isinstance(images, StreamSplit):
        stages[f"the files alone, {images.workers} readers"] = (0, times["data"])
    rows: list[Row] = []
    for name, (work, mine) in stages.items():
        flop = work * case.unit
        share = paired(lambda t, best, flop=flop: 100 * flop / t / best, mine, peak)
        of_step = paired(lambda t, whole: 100 * t / whole, mine, wholes)
        rows.append({"name": f"{key}: {name}", "ms": milliseconds(mine), "% of step": of_step,
                     "units": work, "% of peak": share if work else None})  # fmt: skip
    return rows


def attack_calls(case: Case, state: TrainState) -> dict[str, Timed]:
    """The attack and its parts; `attack gradient` is a forward and its backward to the images,
    `fold` brings the folded network's weights up to date."""
    x, y = case.images()
    net, rows = state.attack_model(x), torch.arange(len(x), device=x.device)
    images = x.clone().requires_grad_()
    state.model.train()

    @contextmanager
    def attacking() -> Iterator[None]:
        with frozen(net, case.spec.attack.batch_norm), inner():
            yield

    inner = partial(phase, state.phased, "inner")
    forward = lambda: F.cross_entropy(net(images), y, reduction="sum")  # noqa: E731
    return {
        "attack": Timed(lambda: state.attack(state.attack_model(x), x, y, RowRng(0, rows)), inner),
        "fold": Timed(lambda: state.attack_model(x)),
        "attack gradient": Timed(lambda: input_gradient(net, x, y), attacking),
        "attack forward": Timed(forward, attacking),
    }


def update_calls(case: Case, state: TrainState) -> dict[str, Timed]:
    """The update and its parts; `step` is all of it, the attack included."""
    (x, y), net, objective = case.images(), state.net, state.objective
    outer = partial(phase, state.phased, "outer")

    def gradients() -> None:
        objective(net, x, x, y)[0].backward()
        state.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def with_gradients() -> Iterator[None]:
        for parameter in state.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-9)
        yield
        state.optimizer.zero_grad(set_to_none=True)

    state.model.train()
    return {
        "step": Timed(lambda: update(state, x, y)),
        "forward": Timed(lambda: objective(net, x, x, y), outer),
        "gradients": Timed(gradients, outer),
        "optimizer": Timed(state.optimizer.step, with_gradients),
    }
