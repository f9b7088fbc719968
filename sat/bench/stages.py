"""Where the time of a step goes, measured with the program's own parts; what can't be timed by
itself is the difference of two times of one round.

On a GPU a part by itself may wait for its launches where the whole step does not. Peak and memory
are the fastest large matrix product and a large copy; bytes are what the operations of the eager
program read and write. Files are read beside the step, which waits for them where they alone take
longer; images of a folder that isn't there are random pixels.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from sat.activations.surrogate import phase
from sat.attacks.pgd import frozen, input_gradient
from sat.bench.book import Measurements, Row
from sat.bench.case import Case
from sat.bench.costs import is_there
from sat.bench.counting import passes
from sat.bench.stopwatch import Timed, beside_ceilings, milliseconds, paired
from sat.data.batches import epoch_batches
from sat.data.folders import FolderSet
from sat.data.memory import MemorySet, MemorySplit
from sat.data.stream import StreamSplit
from sat.rng import RowRng
from sat.training.state import TrainState
from sat.training.step import update

IMAGES = 2048  # of the set in memory that batches are cut from; their number moves no time
AHEAD = 3  # batches that may be ready before the clock starts: two, and the one in hand


def measurements(case: Case, own: Namespace) -> Measurements:
    k = 2 if 2 in own.steps else own.steps[-1]
    for compiled in [False, True][: 1 + own.compile]:
        key = f"PGD-{k}{', compiled' * compiled}"
        yield key, 1, partial(measure, key, case, k, own, compiled)


def measure(key: str, case: Case, k: int, own: Namespace, compiled: bool) -> list[Row]:
    state, images = case.state(k, compile=compiled), training_images(case)
    calls = step_calls(case, state)
    timed = {name: call.under(state.plan.choices) for name, call in calls.items()}
    times, best = beside_ceilings(
        timed | {"data": batches(case, images)}, case.device, own.rounds, own.until
    )
    files = times["data"]
    if isinstance(images, StreamSplit):
        times["data"] = [0.0] * len(files)  # beside the step
    by_round = [dict(zip(times, each, strict=True)) for each in zip(*times.values(), strict=True)]
    found = [stages_of(k, seconds) for seconds in by_round]
    stages = {name: [parts[name] for parts in found] for name in found[0]}
    moved = {}
    if not compiled:
        counted = {name: sum(each for _, each in passes(call)) for name, call in timed.items()}
        moved = stages_of(k, counted | {"data": 0})
    rows: list[Row] = []
    for name, mine in stages.items():
        flop, amount = units_of(k, name) * case.unit, max(0.0, moved.get(name, 0.0))
        row: Row = {"name": f"{key}: {name}", "ms": milliseconds(mine),
                    "% of step": paired(lambda t, whole: 100 * t / whole, mine, stages["all"]),
                    "units": units_of(k, name)}  # fmt: skip
        for column, much, rates in (("% of peak", flop, best.product),
                                    ("% of memory", amount, best.memory)):  # fmt: skip
            share = partial(lambda much, t, rate: 100 * much / t / rate, much)
            row[column] = paired(share, mine, rates) if much else None
        longer = amount / median(best.memory) > flop / median(best.product)
        rows.append(row | {"binds": ("memory" if longer else "product") if amount else None})
    if isinstance(images, StreamSplit):
        name = f"{key}: the files alone, {images.workers} readers"
        rows.append({"name": name, "ms": milliseconds(files)})
    return rows


def stages_of(k: int, t: Mapping[str, float]) -> dict[str, float]:
    """Seconds (or bytes) of each part, by those `t` of the calls in one round; they add up to
    `all`, a step of PGD-k with its batch."""
    found = {"data": t["data"]}
    if k:
        found |= {
            "attack: forwards": k * t["attack forward"],
            "attack: backwards": k * (t["attack gradient"] - t["attack forward"]),
            "attack: weights folded": t["fold"],
            "attack: start, steps, ball": t["attack"] - k * t["attack gradient"] - t["fold"],
        }
    return found | {
        "update: forward": t["forward"],
        "update: backward": t["gradients"] - t["forward"],
        "update: optimizer": t["optimizer"],
        "update: checks and sums": t["step"] - t["attack"] - t["gradients"] - t["optimizer"],
        "all": t["step"] + t["data"],
    }


def units_of(k: int, stage: str) -> int:
    """What the network computes in a part; see `sat.bench.case.units`."""
    return {"attack: forwards": k, "attack: backwards": k, "update: forward": 1,
            "update: backward": 2, "all": 2 * k + 3}.get(stage, 0)  # fmt: skip


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


# batches --------------------------------------------------------------------------------------


def training_images(case: Case) -> MemorySplit | StreamSplit:
    """The files of a set that is read while it trains, where they are there; else random pixels in
    memory, cropped and mirrored as the data set says."""
    dataset: Any = case.spec.dataset
    if not isinstance(dataset, MemorySet) and (
        not isinstance(dataset, FolderSet) or is_there(dataset)
    ):
        return dataset(case.device, case.spec.seed).train
    count = max(IMAGES, case.batch)
    pixels = torch.randint(256, (count, *case.sizes.shape), dtype=torch.uint8)
    labels, crop = torch.arange(count) % case.sizes.classes, getattr(dataset, "crop", 0)
    crop = crop if isinstance(crop, int) else 0
    return MemorySplit(pixels.to(case.device), labels, crop, getattr(dataset, "flip", False))


def batches(case: Case, images: MemorySplit | StreamSplit) -> Timed:
    """The next batch; timed when what was ready at first is used up."""
    held: list[Any] = []

    @contextmanager
    def reader() -> Iterator[None]:
        held[:] = [images.stream(epoch_batches(len(images), case.batch, 0, 0, 2**40))]
        try:
            for _ in range(AHEAD):
                next(held[0])
            yield
        finally:
            held[0].close()  # its processes would be at work beside the next call

    return Timed(lambda: next(held[0]), (reader,))
