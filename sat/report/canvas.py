"""What all figures share: one colour an activation, one marker a number of steps, the look, the
head with its caption, and axes in percent."""

import textwrap
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sat.report.study import Table
from sat.report.tables import Number, Row

WIDTH = 6.3  # inches; half a page holds 6.3 x 3.6
# Okabe and Ito's colours, told apart by the colour-blind, for those that papers compare most.
COLOURS = {
    "relu": "#000000", "silu": "#0072B2", "elu": "#D55E00", "celu": "#CC79A7", "gelu": "#E69F00",
    "softplus": "#56B4E9", "parametric_softplus": "#009E73", "smoothrelu": "#8B5A2B",
    "mish": "#6A3D9A", "squareplus": "#9A8B00", "pssilu": "#00A0A8", "leaky_relu": "#8C8C8C",
    "prelu": "#5F6F52", "gelu_tanh": "#B07800", "surrogate_relu": "#4D4D4D",
}  # fmt: skip
SPARE = ("#1B6CA8", "#A83232", "#3E8E41", "#7B4B94", "#B5651D", "#2F8F8B")  # of a user's own
MARKERS = {0: "P", 1: "o", 2: "s", 3: "^", 4: "v", 5: "p", 7: "h", 10: "D"}  # others: X
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "legend.fontsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 9),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.dpi", "savefig.dpi"), 200),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "grid.color": "#e4e4e4",
    "text.parse_math": False,  # a name may hold $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sat",  # the same ids each time
}


class Undrawable(ValueError):
    """A figure that lacks data, or that nothing here draws: one line of why."""


def look(row: Row) -> tuple[str, str]:
    """Its colour and its marker, the same in every figure: of its activation, and of the number of
    steps of its training attack."""
    spare = SPARE[zlib.crc32(row.activation.encode()) % len(SPARE)]
    return COLOURS.get(row.activation, spare), MARKERS.get(row.steps, "X")


def sheet(
    table: Table, title: str, note: str, rows: Sequence[Row], height: float = 3.6,
    handles: Sequence[Line2D] = (),
) -> Figure:  # fmt: skip
    """An empty figure under its title and a caption: setting, seeds, the note, and what is not
    drawn; with a legend of the handles below, for which it gets higher."""
    seeds = {len(number.seeds) for row in rows for number in row.numbers.values()} or {0}
    many = " to ".join(str(count) for count in sorted({min(seeds), max(seeds)}))
    absent = ", ".join(row.label for row in table.rows if row not in rows)
    said = f"{table.setting}; {many} seed{'s' * (many != '1')}. {note}."
    said += f" Not drawn, for want of the numbers: {absent}." * bool(absent)
    said += " Hollow: raised alarms." * any(row.alarms for row in rows)
    title = table.title if title in table.title else f"{table.title}: {title}"
    head, caption = textwrap.wrap(title, 66), textwrap.wrap(said, 88)
    wide = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(len(handles), 84 // (wide + 8)))
    height += 0.17 * -(-len(handles) // columns)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    below = 0.1 + 0.19 * len(head)
    top = below + 0.03 + 0.155 * len(caption)
    figure.text(0.013, 1 - 0.07 / height, "\n".join(head), va="top", size=11, weight="bold")
    figure.text(0.013, 1 - below / height, "\n".join(caption), va="top", color="#555555")
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - top / height))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.8)
    return figure


def point(axes: Any, x: float, y: float, row: Row, number: int | None = None, **style: Any) -> None:
    """The marker of a row, in which its number may stand; hollow where it raised alarms."""
    (colour, marker), size = look(row), 6 if number is None else 11
    face, ink = ("white", colour) if row.alarms else (colour, "white")
    axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=size, zorder=4,
              **style)  # fmt: skip
    if number is not None:
        axes.annotate(str(number), (x, y), ha="center", va="center_baseline", fontsize=7, zorder=5,
                      color=ink, fontweight="bold")  # fmt: skip


def seeds(axes: Any, x: Sequence[float], y: Sequence[float], row: Row) -> None:
    """Small points, one a seed, where there are several."""
    if len(x) > 1:
        axes.plot(x, y, ".", color=look(row)[0], alpha=0.4, markersize=5, markeredgewidth=0)


def key(table: Table, rows: Sequence[Row]) -> list[Line2D]:
    """A legend: what the numbers in the markers stand for."""
    return [
        Line2D([], [], color=look(row)[0], marker=look(row)[1], linestyle="none",
               markerfacecolor="white" if row.alarms else look(row)[0],
               label=f"{table.rows.index(row) + 1} {row.label}")
        for row in rows
    ]  # fmt: skip


def wrapped(label: str, width: int = 34) -> str:
    return "\n".join(textwrap.wrap(label, width)) or label


def window(numbers: Iterable[Number]) -> tuple[float, float]:
    """Limits in percent that hold means and seeds, and intervals unless these are far wider.

    Student's interval of two seeds may be fifty times their distance; it would hide all else.
    """
    numbers = list(numbers)
    shares = [100 * share for n in numbers for share in (n.mean, *n.seeds.values())]
    low, high = min(shares), max(shares)
    room = max(1.5 * (high - low), 6)
    ends = [end for number in numbers for end in reach(number)]
    low = min(low, max(min(ends), low - room))
    high = max(high, min(max(ends), high + room))
    few = max(0, 1 - (high - low)) / 2  # points; all may be equal
    low, high = low - few, high + few
    margin = 0.09 * (high - low)
    return max(low - margin, -0.5 * margin), min(high + margin, 100 + 0.5 * margin)


def bars_note(*panels: Sequence[Number]) -> str:
    """What the bars of these panels, each in its window, mean."""
    several = {len(number.seeds) > 1 for panel in panels for number in panel}
    over = {
        (True,): "of the mean over seeds",
        (False,): "over test images",
    }.get(tuple(several), "over seeds, or over test images where there is one")
    note = f"Checkpoint chosen on held-out images; bars: 95 % intervals {over}"
    for panel in panels:
        low, high = window(panel)
        if any(reach(n)[0] < low or reach(n)[1] > high for n in panel):
            return f"{note}; bars that reach the frame go on"
    return note


def percent_axis(axis: Any, limits: tuple[float, float], label: str, bins: int = 6) -> None:
    """Limits, label, and ticks between 0 and 100 alone."""
    axis.set_label_text(label)
    places = MaxNLocator(bins, steps=[1, 2, 5, 10]).tick_values(*limits)
    kept = [p for p in places if max(limits[0], 0) <= p <= min(limits[1], 100)]
    axis.set_ticks(kept, [f"{place:g}" for place in kept])
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(*limits)


def reach(number: Number) -> tuple[float, float]:
    """The interval in percent, without what no accuracy can be: Student's of the mean knows not."""
    return max(100 * number.low, 0.0), min(100 * number.high, 100.0)


def bars(number: Number) -> np.ndarray:
    """How far the interval reaches below and above the mean, [2, 1], in percent."""
    mean, (low, high) = 100 * number.mean, reach(number)
    return np.array([[max(mean - low, 0)], [max(high - mean, 0)]])
