"""The parts of a step, by themselves."""

import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from sat.activations.surrogate import phase
from sat.attacks.base import frozen, input_gradient
from sat.attacks.losses import ce
from sat.bench.book import Measurements, Row
from sat.bench.case import Case, units
from sat.bench.counting import counted
from sat.bench.stopwatch import COPY, Stopwatch, Timed, peak, row_of, spread
from sat.data.batches import epoch_batches
from sat.data.sizes import is_known
from sat.data.stream import StreamedSet
from sat.rng import RowRng
from sat.training.state import TrainState
from sat.training.step import update

BLOCK = 4  # batches that are timed together
AHEAD = 3  # batches that may be ready before the clock starts: two, and the one in hand


def stages(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """Where the time of a step goes, measured with the program's own parts; what can't be timed by
    itself is the difference of two times of one round.

    On a GPU a part by itself may wait for its launches where the whole step does not. Peak and
    memory are the fastest large matrix product and a large copy; bytes are what the operations of
    the eager program read and write. Batches that are read from files come beside the step, which
    waits for them where they alone take longer.
    """
    k = 2 if 2 in own.steps else own.steps[-1]
    for compiled in [False, True][: 1 + own.compile]:
        key = f"PGD-{k}{', compiled' * compiled}"
        yield key, 1, partial(measure, key, case, k, compiled, watch)
    if isinstance(case.spec.dataset, StreamedSet) and not is_known(case.spec.dataset):
        yield "files", 1, partial(files, case, watch)


def measure(key: str, case: Case, k: int, compiled: bool, watch: Stopwatch) -> list[Row]:
    """Each part of a step: its share, its units of work, and which ceiling binds it."""
    state = case.state(case.pgd(k), compile=compiled)
    calls = step_calls(case, state)
    times, rates = watch.beside_ceilings(calls)
    moved = {name: 0 if compiled else counted(c).bytes for name, c in calls.items()}
    work, amounts = stages_of(k, units_of(k)), stages_of(k, moved)
    rows = []
    for name, mine in stages_of(k, times).items():
        row: Row = {"name": f"{key}: {name}", "ms": spread(1e3 * mine),
                    "% of step": spread(100 * mine / times["step"]),
                    "units": work[name]}  # fmt: skip
        product = work[name] * case.unit / peak(rates)
        memory = max(0, amounts[name]) / rates[COPY]
        for column, least in (("% of peak", product), ("% of memory", memory)):
            row[column] = spread(100 * least / mine) if least.any() else None
        if memory.any():
            row["binds"] = "memory" if np.median(memory) > np.median(product) else "product"
        rows.append(row)
    return rows


def stages_of(k: int, t: Mapping[str, Any]) -> dict[str, Any]:
    """What each part takes of a step of PGD-k, be it seconds, bytes or units of work, by what the
    calls take, `t`; they add up to `all`."""
    attack = {
        "attack: forwards": k * t["attack forward"],
        "attack: backwards": k * (t["attack gradient"] - t["attack forward"]),
        "attack: folding, start, steps, ball": t["attack"] - k * t["attack gradient"],
    }
    return (attack if k else {}) | {
        "update: forward": t["forward"],
        "update: backward": t["gradients"] - t["forward"],
        "update: optimizer, checks, sums": t["step"] - t["attack"] - t["gradients"],
        "all": t["step"],
    }


def units_of(k: int) -> dict[str, int]:
    """What the network computes in each call, see `sat.bench.case.units`."""
    return {"attack forward": 1, "attack gradient": 2, "attack": 2 * k, "forward": 1,
            "gradients": 3, "step": units(k)}  # fmt: skip


def step_calls(case: Case, state: TrainState) -> dict[str, Timed]:
    """The step and its parts. `step` is all of it; `attack gradient` a forward and its backward to
    the images; `gradients` a forward and its backward to the weights."""
    (x, y), objective = case.images(), state.objective
    state.model.train()
    attacked, rows = state.attack_model(x), torch.arange(len(x), device=x.device)
    images = x.clone().requires_grad_()
    inner, outer = (partial(phase, state.phased, name) for name in ("inner", "outer"))

    def gradients() -> None:
        objective(state.net, x, x, y)[0].backward()
        state.optimizer.zero_grad(set_to_none=True)

    def attack() -> None:
        state.attack(state.attack_model(x), x, y, RowRng(0, rows))

    timed = partial(Timed, choices=state.plan.choices)
    attacking = (partial(frozen, attacked, case.spec.attack.batch_norm), inner)
    return {
        "attack": timed(attack, (inner,)),
        "attack gradient": timed(lambda: input_gradient(attacked, x, y), attacking),
        "attack forward": timed(lambda: ce(attacked(images), y).sum(), attacking),
        "step": timed(lambda: update(state, x, y)),
        "forward": timed(lambda: objective(state.net, x, x, y), (outer,)),
        "gradients": timed(gradients, (outer,)),
    }


def files(case: Case, watch: Stopwatch) -> list[Row]:
    """The next batch of a set that is read while it trains, as fast as it comes without a step."""
    images = case.spec.dataset(case.device, case.spec.seed).train
    ends = []
    with closing(images.stream(epoch_batches(len(images), case.batch, 0, 0, 2**40))) as stream:
        for _ in islice(stream, AHEAD + BLOCK * watch.rounds):
            ends.append(time.perf_counter())
    times = np.diff(np.array(ends)[AHEAD - 1 :: BLOCK]) / BLOCK
    return [row_of(f"the files alone, {images.workers} readers", case.batch, times)]
