"""What is timed beside whole steps: the stages of one, steps with another activation, by another
method, and of several seeds at once."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from sat.activations.surrogate import phase
from sat.attacks.base import frozen, input_gradient
from sat.attacks.losses import ce
from sat.bench.book import Measurements, Row
from sat.bench.case import Case, case_of, units
from sat.bench.counting import step_cost
from sat.bench.stopwatch import COPY, Stopwatch, Timed, peak, row_of, spread
from sat.config import options
from sat.data.batches import epoch_batches
from sat.data.sizes import is_known
from sat.data.stream import StreamedSet
from sat.objectives import Method
from sat.rng import RowRng
from sat.training.step import update

BLOCK = 4  # batches that are timed together
AHEAD = 3  # batches that may be ready before the clock starts: two, and the one in hand
FIRST = ("relu", "silu", "gelu")  # what is asked most
METHODS = (
    "attack.steps=2", "attack=none", "attack=n_fgsm", "attack=fgsm_rs",
    "attack=apgd attack.steps=2", "attack=multi attack.steps=2", "attack=free attack.replays=4",
    "objective=trades attack.steps=2", "objective=trades objective.forwards=3 attack.steps=2",
    "objective=mart attack.steps=2", "objective=consistency attack.steps=2",
    "objective=gradient_norm attack=none", "weight_attack=awp attack.steps=2",
    "objective=trades weight_attack=awp attack.steps=2", "attack=fgsm_rs regulariser=gradalign",
    "attack=fgsm_rs regulariser=elle", "attack=fgsm_rs regulariser=elle_a",
)  # fmt: skip
SEEDS = 4


def step_calls(case: Case, k: int, compiled: bool) -> dict[str, Timed]:
    """A step of PGD-k and its parts. `step` is all of it; `attack gradient` a forward and its
    backward to the images; `gradients` a forward and its backward to the weights."""
    state = case.state(case.pgd(k), compile=compiled)
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


# stages -----------------------------------------------------------------------------------------


def stages(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """Where the time of a step goes, measured with the program's own parts; what can't be timed by
    itself is the difference of two times of one round.

    On a GPU a part by itself may wait for its launches where the whole step does not. Peak and
    memory are the fastest large matrix product and a large copy; bytes are what the operations of
    the eager program read and write. Batches that are read from files come beside the step, which
    waits for them where they alone take longer.
    """
    k = 2 if 2 in own.steps else own.steps[-1]
    for compiled in own.compilations:
        key = f"PGD-{k}{', compiled' * compiled}"
        yield key, 1, partial(each_stage, key, case, k, compiled, watch)
    if isinstance(case.spec.dataset, StreamedSet) and not is_known(case.spec.dataset):
        yield "files", 1, partial(files, case, watch)


def each_stage(key: str, case: Case, k: int, compiled: bool, watch: Stopwatch) -> list[Row]:
    """Each part of a step: its share, its units of work, and which ceiling binds it."""
    calls = step_calls(case, k, compiled)
    times, rates = watch.beside_ceilings(calls)
    moved = {name: 0 if compiled else call.counted().bytes for name, call in calls.items()}
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


def files(case: Case, watch: Stopwatch) -> list[Row]:
    """The next batch of a set that is read while it trains, as fast as it comes without a step."""
    images = case.spec.dataset(case.device, case.spec.seed).train
    ends = []
    with closing(images.stream(epoch_batches(len(images), case.batch, 0, 0, 2**40))) as stream:
        for _ in islice(stream, AHEAD + BLOCK * watch.rounds):
            ends.append(time.perf_counter())
    times = np.diff(np.array(ends)[AHEAD - 1 :: BLOCK]) / BLOCK
    return [row_of(f"the files alone, {images.workers} readers", case.batch, times)]


# activations, methods, seeds --------------------------------------------------------------------


def activations(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """What a smooth activation costs inside a network, beside ReLU: whether it is free.

    Time of an attack step (forward, gradient of the images) and of an update (forward, backward),
    relative to the same network with ReLU in the same round. Saved: what autograd keeps of an
    update's forward in float32.
    """
    with_activation = lambda name: case_of([*case.without("activation"), f"activation={name}"])  # noqa: E731
    for compiled in own.compilations:
        relu = cache(partial(step_calls, with_activation("relu"), 1, compiled))
        for name in [*FIRST, *sorted({*options()["activation"]} - {*FIRST})]:
            key = f"{name}{', compiled' * compiled}"
            yield key, 1, partial(beside_relu, key, with_activation(name), compiled, relu, watch)


def beside_relu(
    key: str, case: Case, compiled: bool, relu: Callable[[], dict[str, Timed]], watch: Stopwatch
) -> list[Row]:
    mine, base = step_calls(case, 1, compiled), relu()
    times = watch.times({
        "attack": mine["attack gradient"], "relu's attack": base["attack gradient"],
        "update": mine["gradients"], "relu's update": base["gradients"],
    })  # fmt: skip
    ratios = {part: spread(times[part] / times[f"relu's {part}"]) for part in ("attack", "update")}
    return [{"name": key, **ratios, "saved, MiB an image": case.cost.saved / 2**20}]


def methods(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """What a step of each method of training costs: units of work as they are counted (a forward,
    an input gradient and a weight gradient of a batch are one each), time, and how near its units
    come to the fastest product. Of the command line's own method nothing is taken.
    """
    kept = case.without("attack", "objective", "regulariser", "weight_attack")
    for words in METHODS:
        yield words, 1, partial(method, words, case_of([*kept, *words.split()]), watch)


def method(words: str, case: Case, watch: Stopwatch) -> list[Row]:
    state, count = case.state(case.spec.attack), step_cost(Method.of(case.spec))
    images = case.images(state.objective.views * case.batch)
    step = Timed(partial(update, state, *images), choices=state.plan.choices)
    times, rates = watch.beside_ceilings({words: step})
    share = 100 * count * case.unit / times[words] / peak(rates)
    row = row_of(words, case.batch, times[words])
    return [row | {"units": count, "% of peak": spread(share)}]


def seeds(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """Four trainings of the network on one GPU, PGD-1, a step of each one CUDA graph: one after the
    other, and side by side, each on a stream of its own. What the second saves is what seeds in one
    process could, since a small network leaves most of a large GPU idle.
    """
    if case.device.type == "cuda":
        yield "seeds", 1, partial(side_by_side, case, watch)
    else:
        yield "seeds", 1, lambda: [{"note": "seeds side by side: are for a GPU"}]


def side_by_side(case: Case, watch: Stopwatch) -> list[Row]:
    states, (x, y) = [case.state(case.pgd(1), graph=True) for _ in range(SEEDS)], case.images()
    streams = [torch.cuda.Stream() for _ in states]

    def in_turn() -> None:
        for state in states:
            update(state, x, y)

    def together() -> None:  # beginning with the work that was asked for before
        now = torch.cuda.current_stream()
        for state, stream in zip(states, streams, strict=True):
            stream.wait_stream(now)
            with torch.cuda.stream(stream):
                update(state, x, y)
        for stream in streams:
            now.wait_stream(stream)

    timed = partial(Timed, choices=states[0].plan.choices)
    times = watch.times({"one after the other": timed(in_turn), "side by side": timed(together)})
    if told := [line for state in states if not state.graph.on for line in state.news]:
        return [{"note": f"seeds side by side are left out: {told[-1]}"}]
    rows = []
    for name, mine in times.items():
        gain = spread(times["one after the other"] / mine)
        row = row_of(f"{SEEDS} seeds, {name}", SEEDS * case.batch, mine)
        rows.append(row | {"times one after the other": gain})
    return rows
