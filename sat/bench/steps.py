"""Whole steps of every loop over the number of attack steps."""

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sat.bench.book import Measurements, Row
from sat.bench.case import Case, units
from sat.bench.counting import counted, limits
from sat.bench.loops import PEERS, Loop, loops_of
from sat.bench.stopwatch import COPY, Stopwatch, Timed, peak, row_of, spread


def steps(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """Whole steps of every loop over the number of attack steps, against the limits of the machine.

    The peak is the fastest large matrix product; a step of PGD-k is 2k + 3 units of work whatever a
    loop computes. Limits are by the roofline: each operation of our eager step takes as long as
    that product's rate or a copy's lets it, whichever is longer; `fused` moves what products and
    convolutions read and write, and nothing else. Ratios are medians of those of a round. Memory is
    that of a step beside weights and optimiser; busy is the share of the time in which a GPU works.
    """
    loops, notes = loops_of(case, own.compile)
    if notes:
        yield "left out", 0, lambda: [{"note": note} for note in notes]
    order = sorted(own.steps, key=lambda k: k == 0)
    for k in order:
        # on a GPU ceilings and least times take most of a row, whatever k
        cost = 1 if case.device.type == "cuda" else units(k)
        yield f"k={k}", cost, partial(measure, case, loops, k, watch, k == order[0])


def measure(case: Case, loops: Sequence[Loop], k: int, watch: Stopwatch, first: bool) -> list[Row]:
    """A step of each loop, and the machine's limits and ceilings, round by round."""
    images = case.images()
    calls = {c.name: Timed(partial(c.step, k, *images), choices=c.choices) for c in loops}
    times, rates = watch.beside_ceilings(calls)
    best, copy = peak(rates), rates[COPY]
    bounds = limits(counted(calls["sat"]).each, float(np.median(best)), float(np.median(copy)))
    rows: list[Row] = []
    for loop in loops:
        mine = times[loop.name]
        row = row_of(loop.name, case.batch, mine) | {"k": k}
        rate = units(k) * case.unit / mine
        row |= {"TFLOP/s": float(np.median(rate)) / 1e12, "% of peak": spread(100 * rate / best),
                "% of limit": 100 * bounds["limit, fused"][0] / float(np.median(mine))}  # fmt: skip
        if (share := watch.busy(calls[loop.name])) is not None:
            row["busy, %"] = share
        row |= {f"times {peer}": spread(times[peer] / mine) for peer in PEERS if peer in times}
        if first and not (loop.choices["compile"] or loop.choices["graph"]):
            row["MiB an image"] = counted(calls[loop.name]).most / case.batch / 2**20
        rows.append(row | {"about": {"choices": loop.choices, "seconds": mine.tolist()}})
    for name, (seconds, memory) in bounds.items():
        binds = f"memory, {memory:.0%}" if memory > 0.5 else f"product, {1 - memory:.0%}"
        rate = case.batch / seconds
        rows.append({"name": name, "k": k, "ms": 1e3 * seconds, "images/s": rate, "binds": binds})
    for name, rates_of in rates.items():
        unit, size = ("GB/s", 1e9) if name == COPY else ("TFLOP/s", 1e12)
        rows.append({"name": name, "k": k, unit: spread(rates_of / size)})
    return rows


def draw(rows: Sequence[Row], title: str, folder: Path) -> None:
    """`steps.png`: medians and quartiles of each loop, and the limits, over k."""
    from matplotlib.figure import Figure

    rows = sorted((row for row in rows if "images/s" in row), key=lambda row: row["k"])
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
    figure.suptitle(textwrap.fill(title, 88), fontsize=9, x=0.01, ha="left")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(folder / "steps.png", dpi=200)
