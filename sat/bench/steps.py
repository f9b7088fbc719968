"""Whole steps of every loop over the number of attack steps, against the limits of the machine.

The peak is the fastest large matrix product; a step of PGD-k is 2k + 3 units of work whatever a
loop computes. Limits are by the roofline: each operation of our eager step takes as long as that
product's rate or a copy's lets it, whichever is longer; `fused` moves what products and
convolutions read and write, and nothing else. Ratios are medians of those of a round. Memory is
that of a step beside weights and optimiser.
"""

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from sat.bench.book import Measurements, Row
from sat.bench.case import Case, units
from sat.bench.counting import limits, passes, peak_bytes
from sat.bench.loops import PEERS, Loop, loops_of
from sat.bench.stopwatch import (
    COPY,
    Ceilings,
    Timed,
    Times,
    beside_ceilings,
    milliseconds,
    paired,
    spread,
)


def measurements(case: Case, own: Namespace) -> Measurements:
    """One for each k; the first attacked one comes first, and has the memory."""
    loops, notes = loops_of(case, own.compile)
    if notes:
        yield "left out", 0, lambda: [{"note": note} for note in notes]
    first = next((k for k in own.steps if k), 0)
    for k in sorted(own.steps, key=lambda k: (k != first, k)):
        yield f"k={k}", units(k), partial(measure, case, loops, k, own, k == first)


def measure(case: Case, loops: Sequence[Loop], k: int, own: Namespace, first: bool) -> list[Row]:
    """A step of each loop, and the machine's limits and ceilings, round by round."""
    calls = {
        loop.name: Timed(partial(loop.step, k, *case.images())).under(loop.choices)
        for loop in loops
    }
    times, best = beside_ceilings(calls, case.device, own.rounds, own.until)
    bounds = limits(passes(calls["sat"]), median(best.product), median(best.memory))
    rows: list[Row] = []
    for loop in loops:
        row = step(case, loop.name, k, times, best, bounds["limit, fused"][0])
        if first and not (loop.choices["compile"] or loop.choices["graph"]):
            row["MiB an image"] = peak_bytes(calls[loop.name]) / case.batch / 2**20
        rows.append(row | {"about": {"choices": loop.choices, "seconds": times[loop.name]}})
    for name, (seconds, memory) in bounds.items():
        binds = f"memory, {memory:.0%}" if memory > 0.5 else f"product, {1 - memory:.0%}"
        rate = case.batch / seconds
        rows.append({"name": name, "k": k, "ms": 1e3 * seconds, "images/s": rate, "binds": binds})
    for name, rates in best.rates.items():
        unit, size = ("GB/s", 1e9) if name == COPY else ("TFLOP/s", 1e12)
        rows.append({"name": name, "k": k, unit: spread([rate / size for rate in rates])})
    return rows


def step(case: Case, name: str, k: int, times: Times, best: Ceilings, least: float) -> Row:
    """A loop at one k, beside the limits and the peers of the same round; `least` in seconds."""
    mine, flop = times[name], units(k) * case.unit
    row = {
        "name": name, "k": k, "ms": milliseconds(mine),
        "images/s": case.batch / median(mine),
        "TFLOP/s": flop / median(mine) / 1e12,
        "% of peak": paired(lambda t, rate: 100 * flop / t / rate, mine, best.product),
        "% of limit": 100 * least / median(mine),
    }  # fmt: skip
    for peer in PEERS:
        if peer in times:
            row[f"times {peer}"] = paired(lambda t, other: other / t, mine, times[peer])
    return row


def draw(rows: Sequence[Row], title: str, folder: Path) -> None:
    """`steps.png` and `steps.svg`: medians and quartiles of each loop, and the limits, over k."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = sorted((row for row in rows if "images/s" in row), key=lambda row: row["k"])
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "sat", "savefig.dpi": 200}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.3, 4.0), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(row["name"] for row in rows):
            mine = [row for row in rows if row["name"] == name]
            ks = [row["k"] for row in mine]
            if "binds" in mine[0]:
                axes.plot(ks, [row["ms"] for row in mine], "--", label=name)
                continue
            middle, low, high = ([row["ms"][q] for row in mine] for q in ("median", "low", "high"))
            (line,) = axes.plot(ks, middle, marker="o", label=name)
            axes.vlines(ks, low, high, color=line.get_color())
        axes.set(yscale="log", xlabel="attack steps k", ylabel="ms a step (logarithmic)")
        axes.set_xticks(sorted({row["k"] for row in rows}))
        figure.suptitle("\n".join(textwrap.wrap(title, 88)), fontsize=9, x=0.01, ha="left")
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(folder / "steps.png")
        figure.savefig(folder / "steps.svg", metadata={"Date": None})
