"""How a step's time grows with attack steps, images, pixels and depth: with the work, or faster?"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cases import Case, side_by_side
from pages import grid
from steps import digits
from stopwatch import Timed, interleaved, settings, spread
from units import count

from sat.models import CifarResNet, PreActResNet, ResNet, WideResNet

DEPTHS = {ResNet: (10, 18, 34), PreActResNet: (18, 34), CifarResNet: (20, 32, 56),
          WideResNet: (16, 22, 28)}  # fmt: skip
DEEP = (50, 101, 152)  # those with bottlenecks are a family of their own


def variants(case: Case) -> dict[str, list[tuple[str, Case, int]]]:
    """For each quantity its values, ascending: what is written, the case, and k."""
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


def measure_growth(
    case: Case, rounds: int, progress: Callable[[str], object], compiled: bool
) -> dict[str, Any]:
    """Seconds of a step over its counted work; see `exponent`."""
    chosen, calls, work = variants(case), {}, {}
    for name, given in chosen.items():
        for value, each, k in given:
            trainer = each.trainer(k, compile=compiled)
            within = partial(settings, trainer.plan.choices)
            calls[name, value] = Timed(partial(trainer.update, *each.images()), within)
            work[name, value] = each.flop(k)
    with side_by_side(compiled):
        times = interleaved(calls, case.device, rounds, progress=progress)
    found = {}
    for name, given in chosen.items():
        rows = [
            {"value": v, "flop": work[name, v], "seconds": spread(times[name, v]).json()}
            for v, _, _ in given
        ]
        flop, seconds = zip(*((r["flop"], r["seconds"]["median"]) for r in rows), strict=True)
        linear = seconds[-1] / seconds[0] / (flop[-1] / flop[0])
        found[name] = {"rows": rows, "exponent": exponent(flop, seconds), "to_linear": linear}
    return found


def exponent(work: Sequence[float], seconds: Sequence[float]) -> float:
    """p of seconds ~ work^p, by least squares on logarithms: 1 is linear, below 1 what is constant
    beside the work still shows."""
    x, y = [math.log(w) for w in work], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mx) ** 2 for a in x)


def growth_text(found: dict[str, Any]) -> str:
    head = ["quantity", "values", "FLOP a step", "ms a step", "exponent", "to linear"]
    rows = [
        [name, *(", ".join(map(form, each["rows"])) for form in (
            lambda r: r["value"], lambda r: count(r["flop"]),
            lambda r: digits(1e3 * r["seconds"]["median"]))),
         f"{each['exponent']:.2f}", f"{each['to_linear']:.2f}"]
        for name, each in found.items()
    ]  # fmt: skip
    note = (
        "Time over counted work. Exponent 1 is linear; the last column is how much the time grows"
        " from the first value to the last, over how much the work does."
    )
    return "\n".join(["## Growth", "", note, "", grid(head, rows)])
