"""Whole steps of every loop over the number of attack steps, against the limit of the machine."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cases import Case, units
from loops import GRAPHS, PUBLISHED, Loop
from pages import grid
from stopwatch import Product, Spread, Timed, interleaved, paired, peak_bytes, settings, spread
from units import size

Rounds = list[float]


def measure_steps(
    case: Case,
    loops: Sequence[Loop],
    products: Sequence[Product],
    steps: Sequence[int],
    rounds: int,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """Seconds of a step of each loop at each k, and of the matrix products, round by round; and the
    memory of a step at the first k above 0 (or 0)."""
    x, y = case.images()
    calls = {}
    for loop in loops:
        within = partial(settings, loop.choices)
        calls |= {(loop.name, k): Timed(partial(loop.step, k, x, y), within) for k in steps}
    calls |= {("product", product.name): product.call for product in products}
    times = interleaved(calls, case.device, rounds, progress=progress)
    peaks = {p.name: paired(lambda t, p=p: p.flop / t, times["product", p.name]) for p in products}
    best = max(products, key=lambda product: peaks[product.name].median)
    attacked = next((k for k in steps if k), 0)
    memory = {}
    for loop in loops:
        if loop.name == GRAPHS:  # it allocates nothing in a step; its pool is no part of one
            continue
        with settings(loop.choices):
            memory[loop.name] = peak_bytes(partial(loop.step, attacked, x, y), case.device)
        progress(f"memory: {loop.name}")
    return {
        "batch": case.batch,
        "multiply_adds": case.cost.multiply_adds,
        "choices": {loop.name: loop.choices for loop in loops},
        "peak": {name: peak.json() for name, peak in peaks.items()},
        "limit": {"by": best.name, "flop_per_second": peaks[best.name].median},
        "rows": [_row(case, loop.name, k, times, best) for loop in loops for k in steps],
        "memory": {"k": attacked, "bytes": memory},
    }


def _row(
    case: Case, name: str, k: int, times: dict[tuple[str, Any], Rounds], best: Product
) -> dict[str, Any]:
    """A loop at one k: its share of the limit and its ratio to the published loop are those of the
    same round."""
    mine, flop = times[name, k], case.flop(k)
    share = lambda step, product: flop / step / (best.flop / product)  # noqa: E731
    row = {
        "loop": name,
        "k": k,
        "units": units(k),
        "flop": flop,
        "rounds": mine,
        "seconds": spread(mine).json(),
        "images_per_second": paired(lambda t: case.batch / t, mine).json(),
        "flop_per_second": paired(lambda t: flop / t, mine).json(),
        "share_of_peak": paired(share, mine, times["product", best.name]).json(),
    }
    for other in (PUBLISHED, "torchattacks"):
        if (other, k) in times:
            faster = paired(lambda own, others: others / own, mine, times[other, k])
            row[f"times_{other.split()[0]}"] = faster.json()
    return row


def steps_text(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    head = ["loop", "k", "ms a step", "quartiles", "images/s", "TFLOP/s", "share of peak",
            "times published", "times torchattacks"]  # fmt: skip
    rows = []
    for row in found["rows"]:
        ms = Spread(**row["seconds"]).times(1e3)
        rows.append([
            row["loop"], str(row["k"]), digits(ms.median), f"{digits(ms.low)} to {digits(ms.high)}",
            digits(row["images_per_second"]["median"]),
            digits(row["flop_per_second"]["median"] / 1e12),
            f"{row['share_of_peak']['median']:.1%}",
            *(factor(row.get(f"times_{other}")) for other in ("published", "torchattacks")),
        ])  # fmt: skip
    peaks = "; ".join(
        "{} {} TFLOP/s ({} to {})".format(
            name, *(digits(peak[key] / 1e12) for key in ("median", "low", "high"))
        )
        for name, peak in found["peak"].items()
    )
    memory = [
        [name, size(used), size(used / found["batch"])]
        for name, used in found["memory"]["bytes"].items()
    ]
    return "\n".join([
        "## Steps", "",
        f"Peak, by a large matrix product: {peaks}. Shares are of {found['limit']['by']}'s, for"
        " 2k + 3 units of work whatever a loop computes; ratios are medians of those of a round.",
        "", grid(head, rows), "",
        f"Memory of a step of k = {found['memory']['k']} beside weights and optimiser:", "",
        grid(["loop", "memory", "an image"], memory),
    ])  # fmt: skip


def digits(number: float) -> str:
    """Three of them."""
    if abs(number) >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number else "0"


def factor(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['median']:.2f}"
