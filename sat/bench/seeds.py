"""Four trainings of the network on one GPU, PGD-1, a step of each one CUDA graph: one after the
other, and side by side, each on a stream of its own. What the second saves is what seeds in one
process could, since a small network leaves most of a large GPU idle.
"""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from sat.bench.book import Measurements, Row
from sat.bench.case import Case, units
from sat.bench.stopwatch import Timed, interleaved, milliseconds, paired
from sat.training.state import TrainState
from sat.training.step import update

SEEDS = 4


def measurements(case: Case, own: Namespace) -> Measurements:
    if case.device.type == "cuda":
        yield "seeds", SEEDS * units(1), partial(measure, case, own)
    else:
        yield "seeds", 0, lambda: [{"note": "seeds side by side: are for a GPU"}]


def measure(case: Case, own: Namespace) -> list[Row]:
    states, (x, y) = [case.state(1, graph=True) for _ in range(SEEDS)], case.images()

    def in_turn() -> None:
        for state in states:
            update(state, x, y)

    calls = {"one after the other": Timed(in_turn),
             "side by side": Timed(partial(together, states, streams(SEEDS), x, y))}  # fmt: skip
    timed = {name: call.under(states[0].plan.choices) for name, call in calls.items()}
    times = interleaved(timed, case.device, own.rounds, own.until)
    if told := [line for state in states if not state.graph.on for line in state.news]:
        return [{"note": f"seeds side by side are left out: {told[-1]}"}]
    alone = times["one after the other"]
    return [
        {"name": f"{SEEDS} seeds, {name}", "ms": milliseconds(mine),
         "images/s": SEEDS * case.batch / median(mine),
         "times one after the other": paired(lambda one, t: one / t, alone, mine)}
        for name, mine in times.items()
    ]  # fmt: skip


def streams(count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream() for _ in range(count)]


def together(
    states: Sequence[TrainState], beside: Sequence[torch.cuda.Stream], x: Tensor, y: Tensor
) -> None:
    """A step of each; they begin with the work that was asked for before, and end together."""
    now = torch.cuda.current_stream()
    for state, stream in zip(states, beside, strict=True):
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            update(state, x, y)
    for stream in beside:
        now.wait_stream(stream)
