"""The figure of the benchmark: the time of a step over k, against the limit."""

from pathlib import Path
from typing import Any

import matplotlib
from canvas import INK, MARKERS, STYLE, WIDTH
from cases import units
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_steps(found: dict[str, Any], about: str, folder: Path) -> list[Path]:
    """`steps.png` and `steps.svg`: medians and quartiles of each loop; below them the line of
    2k + 3 units at the rate of the matrix product."""
    rows, unit = found["rows"], 2 * found["multiply_adds"] * found["batch"]
    steps = sorted({row["k"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for number, name in enumerate(dict.fromkeys(row["loop"] for row in rows)):
            mine = [row for row in rows if row["loop"] == name]
            middle = [1e3 * row["seconds"]["median"] for row in mine]
            reach = [[m - 1e3 * row["seconds"]["low"] for m, row in zip(middle, mine, strict=True)],
                     [1e3 * row["seconds"]["high"] - m for m, row in zip(middle, mine, strict=True)]]  # fmt: skip
            axes.errorbar([row["k"] for row in mine], middle, reach, label=name,
                          color=INK[number % len(INK)], marker=MARKERS[number % len(MARKERS)])  # fmt: skip
        rate = found["limit"]["flop_per_second"]
        limit = [1e3 * unit * units(k) / rate for k in steps]
        by = f"limit: 2k + 3 units, {found['limit']['by']} product"
        axes.plot(steps, limit, "--", color="black", label=by)
        axes.set(yscale="log", xlabel="attack steps k", ylabel="ms a step (logarithmic)")
        axes.set_xticks(steps)
        axes.set_title(about, fontsize=9, loc="left", wrap=True)
        figure.legend(loc="outside right upper")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "steps.png", folder / "steps.svg"]
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths
