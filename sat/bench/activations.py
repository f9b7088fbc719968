"""What a smooth activation costs inside a network, beside ReLU: whether it is free.

Time of an attack step (forward, gradient of the images) and of an update (forward, backward),
relative to the same network with ReLU in the same round. Saved: what autograd keeps of an update's
forward in float32.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

from sat.bench.book import Measurements, Row
from sat.bench.case import Case
from sat.bench.stages import attack_calls, update_calls
from sat.bench.stopwatch import Timed, interleaved, paired, under
from sat.config import options

Calls = dict[str, Timed]  # "attack" and "update"


def measurements(case: Case, own: Namespace) -> Measurements:
    """Networks differ in nothing but the activation."""
    names = sorted(options()["activation"], key=lambda name: (name != "relu", name))
    for compiled in [False, True][: 1 + own.compile]:
        with side_by_side(compiled):
            relu = cache(partial(calls_of, case.varied("activation=relu"), compiled))
            for name in names:
                key = f"{name}{', compiled' * compiled}"
                mine = partial(case.varied, f"activation={name}")
                yield key, partial(beside_relu, key, mine, relu, compiled, own.rounds)


@contextmanager
def side_by_side(compiled: bool) -> Iterator[None]:
    """Allows many compiled networks of one process: each of them keeps graphs of its own shapes.

    torch counts all of a class as one that is compiled again and again: after eight it would go
    on eagerly, and after the second shape with graphs for any.
    """
    if not compiled:
        yield
        return
    import torch._dynamo  # takes a second to import

    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=256, automatic_dynamic_shapes=False):
        yield
    torch.compiler.reset()


def beside_relu(
    key: str, varied: Callable[[], Case], relu: Callable[[], Calls], compiled: bool, rounds: int
) -> list[Row]:
    case = varied()
    calls = {f"{what} of ReLU": call for what, call in relu().items()}
    times = interleaved(calls | calls_of(case, compiled), case.device, rounds)
    row: Row = {"name": key}
    for what in ("attack", "update"):
        row[what] = paired(lambda t, other: t / other, times[what], times[f"{what} of ReLU"])
    return [row | {"saved, MiB an image": case.cost.activations / 2**20}]


def calls_of(case: Case, compiled: bool) -> Calls:
    state = case.state(1, compile=compiled)
    attack, gradients = attack_calls(case, state), update_calls(case, state)
    chosen = {"attack": attack["attack gradient"], "update": gradients["gradients"]}
    return {what: under(state.plan.choices, call) for what, call in chosen.items()}
