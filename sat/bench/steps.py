"""Whole steps of every loop over the number of attack steps, against the limit of the machine."""

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sat.bench.case import Case, units
from sat.bench.loops import GRAPHS, PUBLISHED, Loop, loops_of
from sat.bench.part import Measurements, Part, described, quartiles
from sat.bench.stopwatch import (
    Product,
    Timed,
    interleaved,
    paired,
    peak_bytes,
    products,
    settings,
    spread,
)
from sat.bench.units import digits, size

HEAD = ["loop", "k", "ms a step", "quartiles", "images/s", "TFLOP/s", "share of peak",
        "times published", "times torchattacks", "memory an image"]  # fmt: skip
NOTE = """\
Shares are of the fastest large matrix product, for 2k + 3 units of work whatever a loop computes;
ratios are medians of those of a round. Memory is that of a step beside weights and optimiser."""


def measurements(case: Case, own: Namespace) -> Measurements:
    """One for each k; the first attacked one comes first, and has the memory."""
    loops, notes = loops_of(case, own.compile)
    if notes:
        yield "left out", lambda: [{"note": note} for note in notes]
    first = next((k for k in own.steps if k), 0)
    tops = products(case.device)
    for k in sorted(own.steps, key=lambda k: (k != first, k)):
        yield f"k={k}", partial(measure, case, loops, tops, k, own.rounds, k == first)


def measure(
    case: Case, loops: Sequence[Loop], tops: Sequence[Product], k: int, rounds: int, memory: bool
) -> list[dict[str, Any]]:
    """Seconds of a step of each loop, and of the matrix products, round by round."""
    x, y = case.images()
    calls = {loop.name: Timed(partial(loop.step, k, x, y), partial(settings, loop.choices))
             for loop in loops}  # fmt: skip
    times = interleaved(calls | {top.name: top.call for top in tops}, case.device, rounds)
    best = min(tops, key=lambda top: min(times[top.name]) / top.flop)
    rows: list[dict[str, Any]] = []
    for top in tops:
        rate = paired(lambda t, flop=top.flop: flop / t, times[top.name])
        rows.append({"product": top.name, "k": k, "seconds": spread(times[top.name]),
                     "flop_per_second": rate, "limit": top is best})  # fmt: skip
    for loop in loops:
        row = {"loop": loop.name, "choices": loop.choices, **step(case, loop.name, k, times, best)}
        if memory and loop.name != GRAPHS:  # which allocates nothing in a step
            with settings(loop.choices):
                row["bytes"] = peak_bytes(calls[loop.name].run, case.device)
        rows.append(row)
    return rows


def step(
    case: Case, name: str, k: int, times: dict[str, list[float]], best: Product
) -> dict[str, Any]:
    """A loop at one k: its share of the limit and its ratio to the published loop are those of the
    same round."""
    mine, flop = times[name], case.flop(k)
    share = lambda own, product: flop / own / (best.flop / product)  # noqa: E731
    found = {
        "k": k, "flop": flop, "batch": case.batch, "rounds": mine, "seconds": spread(mine),
        "images_per_second": paired(lambda t: case.batch / t, mine),
        "flop_per_second": paired(lambda t: flop / t, mine),
        "share_of_peak": paired(share, mine, times[best.name]),
    }  # fmt: skip
    for other in (PUBLISHED, "torchattacks"):
        if other in times:
            faster = paired(lambda own, others: others / own, mine, times[other])
            found[f"times_{other.split()[0]}"] = faster
    return found


def cells(row: dict[str, Any]) -> list[str]:
    time = [str(row["k"]), digits(1e3 * row["seconds"]["median"]), quartiles(row["seconds"], 1e3)]
    rate = digits(row["flop_per_second"]["median"] / 1e12)
    if "product" in row:
        limit = "the limit" * row["limit"]
        return [f"{row['product']} product", *time, "-", rate, limit, "-", "-", "-"]
    ratio = lambda key: f"{row[key]['median']:.2f}" if key in row else "-"  # noqa: E731
    return [
        row["loop"], *time, digits(row["images_per_second"]["median"]), rate,
        f"{row['share_of_peak']['median']:.1%}", ratio("times_published"),
        ratio("times_torchattacks"), size(row["bytes"] / row["batch"]) if "bytes" in row else "-",
    ]  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], case: Case, folder: Path) -> None:
    """`steps.png` and `steps.svg`: medians and quartiles of each loop over k; below them the line
    of 2k + 3 units at the rate of the matrix product."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "sat", "savefig.dpi": 200}
    timed = [row for row in rows if "loop" in row]
    steps = sorted({row["k"] for row in timed})
    rate = max(row["flop_per_second"]["median"] for row in rows if "product" in row)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.3, 4.0), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(row["loop"] for row in timed):
            mine = sorted((r for r in timed if r["loop"] == name), key=lambda row: row["k"])
            ks = [row["k"] for row in mine]
            middle, low, high = ([1e3 * row["seconds"][key] for row in mine]
                                 for key in ("median", "low", "high"))  # fmt: skip
            (line,) = axes.plot(ks, middle, marker="o", label=name)
            axes.vlines(ks, low, high, color=line.get_color())
        unit = 2 * case.cost.multiply_adds * case.batch / rate
        axes.plot(steps, [1e3 * unit * units(k) for k in steps], "--", color="black", label="limit")
        axes.set(yscale="log", xlabel="attack steps k", ylabel="ms a step (logarithmic)")
        axes.set_xticks(steps)
        title = textwrap.wrap(described(case), 88)
        figure.suptitle("\n".join(title), fontsize=9, x=0.01, ha="left")
        figure.legend(loc="outside lower center", ncols=3)
        for kind in ("png", "svg"):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(folder / f"steps.{kind}", metadata=metadata)


PART = Part("Steps", NOTE, HEAD, measurements, cells, draw)
