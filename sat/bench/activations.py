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

Calls = tuple[dict[str, Timed], Case]
FIRST = ("relu", "silu", "gelu")  # what is asked most


def measurements(case: Case, own: Namespace) -> Measurements:
    """Networks differ in nothing but the activation."""
    names = [*FIRST, *sorted({*options()["activation"]} - {*FIRST})]
    for compiled in [False, True][: 1 + own.compile]:
        relu = cache(partial(calls_of, case, "relu", compiled))
        for name in names:
            key = f"{name}{', compiled' * compiled}"
            mine = partial(calls_of, case, name, compiled)
            yield key, 1, partial(beside_relu, key, mine, relu, own)


def beside_relu(
    key: str, calls: Callable[[], Calls], relu: Callable[[], Calls], own: Namespace
) -> list[Row]:
    mine, case = calls()
    others = {f"{what} of ReLU": call for what, call in relu()[0].items()}
    times, _ = beside_ceilings({**others, **mine}, case.device, own.rounds, own.until)
    row: Row = {"name": key}
    for what in mine:
        row[what] = paired(lambda t, other: t / other, times[what], times[f"{what} of ReLU"])
    return [row | {"saved, MiB an image": case.cost.saved / 2**20}]


def calls_of(case: Case, activation: str, compiled: bool) -> Calls:
    """An attack step and an update of the same network with this activation, and its case."""
    case = case.varied(f"activation={activation}")
    state = case.state(1, compile=compiled)
    calls = step_calls(case, state)
    chosen = {"attack": calls["attack gradient"], "update": calls["gradients"]}
    return {what: call.under(state.plan.choices) for what, call in chosen.items()}, case
