"""Whole steps of every loop over the number of attack steps, against the limit of the machine.

The peak is the fastest large matrix product; a step of PGD-k is 2k + 3 units of work whatever a
loop computes. Ratios are medians of those of a round. Memory is that of a step beside weights and
optimiser.
"""

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sat.bench.book import Measurements, Row
from sat.bench.case import Case, units
from sat.bench.loops import GRAPHS, PEERS, Loop, loops_of
from sat.bench.stopwatch import (
    Timed,
    Times,
    beside_products,
    milliseconds,
    paired,
    peak_bytes,
    product_flop,
    settings,
    under,
)


def measurements(case: Case, own: Namespace) -> Measurements:
    """One for each k; the first attacked one comes first, and has the memory."""
    loops, notes = loops_of(case, own.compile)
    if notes:
        yield "left out", lambda: [{"note": note} for note in notes]
    first = next((k for k in own.steps if k), 0)
    for k in sorted(own.steps, key=lambda k: (k != first, k)):
        yield f"k={k}", partial(measure, case, loops, k, own.rounds, k == first)


def measure(case: Case, loops: Sequence[Loop], k: int, rounds: int, memory: bool) -> list[Row]:
    """A step of each loop, and the matrix products, round by round."""
    x, y = case.images()
    calls = {loop.name: Timed(partial(loop.step, k, x, y)) for loop in loops}
    timed = {loop.name: under(loop.choices, calls[loop.name]) for loop in loops}
    times, peak = beside_products(timed, case.device, rounds)
    rows: list[Row] = []
    for loop in loops:
        row = step(case, loop.name, k, times, peak)
        if memory and loop.name != GRAPHS:  # which allocates nothing in a step
            with settings(loop.choices):
                held = peak_bytes(calls[loop.name].run, case.device)
            row["MiB an image"] = held / case.batch / 2**20
        rows.append(row | {"about": {"choices": loop.choices, "seconds": times[loop.name]}})
    flop = product_flop(case.device) / 1e12
    for name in [name for name in times if name not in calls]:
        rate = flop / median(times[name])
        rows.append({"name": name, "k": k, "ms": milliseconds(times[name]), "TFLOP/s": rate})
    return rows


def step(case: Case, name: str, k: int, times: Times, peak: Sequence[float]) -> Row:
    """A loop at one k, beside the limit and the peers of the same round."""
    mine, flop = times[name], case.flop(k)
    row = {
        "name": name, "k": k, "ms": milliseconds(mine),
        "images/s": case.batch / median(mine),
        "TFLOP/s": flop / median(mine) / 1e12,
        "% of peak": paired(lambda t, best: 100 * flop / t / best, mine, peak),
    }  # fmt: skip
    for peer in PEERS:
        if peer in times:
            row[f"times {peer}"] = paired(lambda t, other: other / t, mine, times[peer])
    return row


def draw(rows: Sequence[Row], case: Case, title: str, folder: Path) -> None:
    """`steps.png` and `steps.svg`: medians and quartiles of each loop over k; below them the line
    of 2k + 3 units at the rate of the matrix product."""
    import matplotlib
    from matplotlib.figure import Figure

    timed = [row for row in rows if "images/s" in row]
    limit = max(row["TFLOP/s"] for row in rows if row.get("name", "").endswith("product"))
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "sat", "savefig.dpi": 200}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.3, 4.0), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(row["name"] for row in timed):
            plot(axes, [row for row in timed if row["name"] == name])
        steps = sorted({row["k"] for row in timed})
        least = [units(k) * case.unit / limit / 1e9 for k in steps]
        axes.plot(steps, least, "--", color="black", label="limit")
        axes.set(yscale="log", xlabel="attack steps k", ylabel="ms a step (logarithmic)")
        axes.set_xticks(steps)
        figure.suptitle("\n".join(textwrap.wrap(title, 88)), fontsize=9, x=0.01, ha="left")
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(folder / "steps.png")
        figure.savefig(folder / "steps.svg", metadata={"Date": None})


def plot(axes: Any, rows: Sequence[Row]) -> None:
    rows = sorted(rows, key=lambda row: row["k"])
    ks, spreads = [row["k"] for row in rows], [row["ms"] for row in rows]
    middle, low, high = ([each[key] for each in spreads] for key in ("median", "low", "high"))
    (line,) = axes.plot(ks, middle, marker="o", label=rows[0]["name"])
    axes.vlines(ks, low, high, color=line.get_color())
