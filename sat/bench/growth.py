"""How a step's time grows with attack steps, images, pixels and depth: with the work, or faster?"""

import math
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from sat.bench.case import Case, side_by_side
from sat.bench.part import Measurements, Part, Row
from sat.bench.stopwatch import Timed, interleaved, settings, spread
from sat.bench.units import count, digits
from sat.models import CifarResNet, PreActResNet, ResNet, WideResNet
from sat.training.step import update

HEAD = ["quantity", "values", "FLOP a step", "ms a step", "exponent", "to linear"]
NOTE = """\
Time over counted work. Exponent 1 is linear; the last column is how much the time grows from the
first value to the last, over how much the work does."""
DEPTHS = {ResNet: (10, 18, 34), PreActResNet: (18, 34), CifarResNet: (20, 32, 56),
          WideResNet: (16, 22, 28)}  # fmt: skip
DEEP = (50, 101, 152)  # those with bottlenecks are a family of their own


def variants(case: Case) -> dict[str, list[tuple[str, Case, int]]]:
    """Values of each quantity, ascending: what is written, the case, and k."""
    batch, pixels, family = case.batch, case.sizes.pixels, case.spec.model
    batches = [b for b in (batch // 4, batch // 2, batch) if b >= 2]
    known = DEPTHS.get(type(family), ())
    depths = DEEP if known and family.depth >= 50 and type(family) is ResNet else known
    words = {
        "batch": [f"schedule.batch_size={b}" for b in dict.fromkeys(batches)],
        "pixels": [f"dataset.image_size={p}" for p in (pixels // 2, pixels, 2 * pixels)],
        "depth": [f"model.depth={depth}" for depth in depths],
    }
    found = {"k": [(str(k), case, k) for k in (0, 1, 2, 4)]}
    for name, given in words.items():
        found[name] = [(word.split("=")[1], case.varied(word), 1) for word in given]
    return {name: cases for name, cases in found.items() if len(cases) > 1}


def measurements(case: Case, own: Namespace) -> Measurements:
    with side_by_side(own.compile):
        for name, given in variants(case).items():
            yield name, partial(measure, name, given, own.rounds, own.compile)


def measure(
    name: str, given: Sequence[tuple[str, Case, int]], rounds: int, compiled: bool
) -> list[Row]:
    calls = {}
    for value, case, k in given:
        state = case.state(k, compile=compiled)
        within = partial(settings, state.plan.choices)
        calls[value] = Timed(partial(update, state, *case.images()), within)
    times = {v: spread(t) for v, t in interleaved(calls, case.device, rounds).items()}
    flop = [case.flop(k) for _, case, k in given]
    seconds = [each["median"] for each in times.values()]
    linear = seconds[-1] / seconds[0] / (flop[-1] / flop[0])
    return [{"quantity": name, "values": [*calls], "flop": flop, "seconds": [*times.values()],
             "exponent": exponent(flop, seconds), "to_linear": linear}]  # fmt: skip


def exponent(work: Sequence[float], seconds: Sequence[float]) -> float:
    """p of seconds ~ work^p, by least squares on logarithms: 1 is linear, below 1 what is constant
    beside the work still shows."""
    x, y = [math.log(w) for w in work], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mx) ** 2 for a in x)


def cells(row: Row) -> list[str]:
    seconds = ", ".join(digits(1e3 * each["median"]) for each in row["seconds"])
    numbers = [f"{row['exponent']:.2f}", f"{row['to_linear']:.2f}"]
    flop = ", ".join(map(count, row["flop"]))
    return [row["quantity"], ", ".join(row["values"]), flop, seconds, *numbers]


PART = Part("Growth", NOTE, HEAD, measurements, cells)
