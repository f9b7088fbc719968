"""Steps with another activation, by another method, and of several seeds at once."""

from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial

import torch

from sat.bench.book import Measurements, Row
from sat.bench.case import Case, case_of, units
from sat.bench.counting import step_cost
from sat.bench.stages import step_calls
from sat.bench.stopwatch import Stopwatch, Timed, peak, row_of, spread
from sat.config import options
from sat.objectives import Method
from sat.training.step import update

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


def activations(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """What a smooth activation costs inside a network, beside ReLU: whether it is free.

    Time of an attack step (forward, gradient of the images) and of an update (forward, backward),
    relative to the same network with ReLU in the same round. Saved: what autograd keeps of an
    update's forward in float32.
    """
    with_activation = lambda name: case_of([*case.without("activation"), f"activation={name}"])  # noqa: E731
    for compiled in [False, True][: 1 + own.compile]:
        relu = cache(partial(passes_of, with_activation("relu"), compiled, " of ReLU"))
        for name in [*FIRST, *sorted({*options()["activation"]} - {*FIRST})]:
            key = f"{name}{', compiled' * compiled}"
            yield key, 1, partial(beside_relu, key, with_activation(name), compiled, relu, watch)


def beside_relu(
    key: str, case: Case, compiled: bool, relu: Callable[[], dict[str, Timed]], watch: Stopwatch
) -> list[Row]:
    mine = passes_of(case, compiled)
    times = watch.times(mine | relu())
    ratios = {what: spread(times[what] / times[f"{what} of ReLU"]) for what in mine}
    return [{"name": key, **ratios, "saved, MiB an image": case.cost.saved / 2**20}]


def passes_of(case: Case, compiled: bool, whose: str = "") -> dict[str, Timed]:
    """An attack step and an update of the network."""
    calls = step_calls(case, case.state(case.pgd(1), compile=compiled))
    return {f"attack{whose}": calls["attack gradient"], f"update{whose}": calls["gradients"]}


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
        yield "seeds", SEEDS * units(1), partial(side_by_side, case, watch)
    else:
        yield "seeds", 0, lambda: [{"note": "seeds side by side: are for a GPU"}]


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
