"""The figure of the benchmark: the time of a step over k, against the limit."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from sat.report.canvas import INK, STYLE, WIDTH
from cases import units
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter


def draw_steps(found: dict[str, Any], about: str, folder: Path) -> list[Path]:
    """`steps.png` and `steps.svg`: medians and quartiles of each loop; below them the line of
    2k + 3 units at the rate of the matrix product."""
    rows, unit = found["rows"], 2 * found["multiply_adds"] * found["batch"]
    steps = sorted({row["k"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for number, name in enumerate(dict.fromkeys(row["loop"] for row in rows)):
            mine = [row for row in rows if row["loop"] == name]
            middle, low, high = (
                [1e3 * row["seconds"][key] for row in mine] for key in ("median", "low", "high")
            )
            ink, marker = INK[number % len(INK)], "os^DvPXp"[number % 8]
            axes.plot([row["k"] for row in mine], middle, color=ink, marker=marker, label=name)
            axes.vlines([row["k"] for row in mine], low, high, color=ink)
        rate = found["limit"]["flop_per_second"]
        limit = [1e3 * unit * units(k) / rate for k in steps]
        by = f"limit: {found['limit']['by']} matrix product"
        axes.plot(steps, limit, "--", color="black", label=by)
        axes.set(yscale="log", xlabel="attack steps k", ylabel="ms a step (logarithmic)")
        axes.set_xticks(steps)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        figure.suptitle("\n".join(textwrap.wrap(about, 88)), fontsize=9, x=0.01, ha="left")
        figure.legend(loc="outside lower center", ncols=3)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "steps.png", folder / "steps.svg"]
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths
