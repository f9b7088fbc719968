"""What a smooth activation costs inside a network, beside ReLU: whether it is free.

Time of an attack step (forward, gradient of the images) and of an update (forward, backward),
relative to the same network with ReLU in the same round. Saved: what autograd keeps of an update's
forward in float32.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial

from sat.bench.book import Measurements, Row
from sat.bench.case import Case
from sat.bench.stages import step_calls
from sat.bench.stopwatch import Timed, beside_ceilings, paired
from sat.config import options

FIRST = ("relu", "silu", "gelu")  # what is asked most


def measurements(case: Case, own: Namespace) -> Measurements:
    """Networks differ in nothing but the activation."""
    for compiled in [False, True][: 1 + own.compile]:
        relu = cache(partial(calls_of, case.varied("activation=relu"), compiled, " of ReLU"))
        for name in [*FIRST, *sorted({*options()["activation"]} - {*FIRST})]:
            key, mine = f"{name}{', compiled' * compiled}", case.varied(f"activation={name}")
            yield key, 1, partial(measure, key, mine, compiled, relu, own)


def measure(
    key: str, case: Case, compiled: bool, relu: Callable[[], dict[str, Timed]], own: Namespace
) -> list[Row]:
    mine = calls_of(case, compiled)
    times, _ = beside_ceilings(relu() | mine, case.device, own.rounds, own.until)
    row: Row = {"name": key}
    for what in mine:
        row[what] = paired(lambda t, other: t / other, times[what], times[f"{what} of ReLU"])
    return [row | {"saved, MiB an image": case.cost.saved / 2**20}]


def calls_of(case: Case, compiled: bool, whose: str = "") -> dict[str, Timed]:
    """An attack step and an update of the network."""
    state = case.state(1, compile=compiled)
    calls = step_calls(case, state)
    chosen = {"attack": calls["attack gradient"], "update": calls["gradients"]}
    return {f"{what}{whose}": call.under(state.plan.choices) for what, call in chosen.items()}
