"""What all figures of a study share: the look, the head with its caption, axes in percent."""

import logging
import re
import textwrap
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from study import Number, Row, Table

log = logging.getLogger("sat")

WIDTH, DPI = 6.3, 200  # inches; half a page holds 6.3 x 3.6
# Okabe and Ito's colours, told apart by the colour-blind; with the markers, 56 pairs
INK = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "lines.linewidth": 1.5,
    "lines.markersize": 6,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "text.parse_math": False,  # a name may hold $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sat",  # the same ids each time
}


class Undrawable(ValueError):
    """A figure that lacks data, or that nothing here draws: one line of why."""


def sheet(table: Table, title: str, note: str, rows: Sequence[Row], height: float = 3.6) -> Figure:
    """An empty figure under its title and a caption: setting, seeds, and the note."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    seeds = {len(number.seeds) for row in rows for number in row.numbers.values()} or {0}
    many = " to ".join(str(count) for count in sorted({min(seeds), max(seeds)}))
    said = f"{table.setting}; {many} seed{'s' * (many != '1')}. {note}."
    head, caption = textwrap.wrap(title, 66), textwrap.wrap(said, 88)
    top = 0.07
    for lines, size, weight, colour, line in (
        (head, 11, "bold", "black", 0.19), (caption, 9, "normal", "#555555", 0.155),
    ):  # fmt: skip
        figure.text(0.08 / WIDTH, 1 - top / height, "\n".join(lines), va="top", fontsize=size,
                    fontweight=weight, color=colour)  # fmt: skip
        top += line * len(lines) + 0.03
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - top / height))
    return figure


def title_of(table: Table, kind: str) -> str:
    """`Activations: clean against robust`."""
    what = {
        "scatter": ": clean against robust",
        "dots": ": robust and clean",
        "epochs": ": over the training",
    }
    return f"{table.spec.get('title', table.experiment)}{what.get(kind, '')}"


def attack_name(attack: str) -> str:
    """`pgd20` as it is written: PGD-20."""
    found = re.fullmatch(r"(pgd|fgsm|apgd)(\d*)", attack)
    return (
        "-".join(filter(None, (found[1].upper(), found[2]))) if found else attack.replace("_", " ")
    )


def counted(rows: Sized) -> str:
    return f"{len(rows)} row{'s' * (len(rows) != 1)}"


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
    margin = 0.07 * (high - low)
    return max(low - margin, -0.5 * margin), min(high + margin, 100 + 0.5 * margin)


def bars_note(*panels: Sequence[Number]) -> str:
    """What the bars of these panels, each in its window, mean."""
    several = {len(number.seeds) > 1 for panel in panels for number in panel}
    over = {
        (True,): "of the mean over seeds; faint: each seed",
        (False,): "over test images",
    }.get(tuple(several), "over seeds, or over test images where there is one; faint: each seed")
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


def alarms_note(rows: Iterable[Row]) -> str:
    return "; x: raised alarms" * any(row.alarms for row in rows)


def cross(axes: Any, x: float, y: float, colour: str) -> None:
    """A marker for a row that raised alarms: hollow and crossed, over the row's own."""
    axes.plot(x, y, "o", color=colour, markerfacecolor="white", markersize=8, zorder=4)
    axes.plot(x, y, "x", color=colour, markersize=4.5, zorder=4)


def measured(table: Table, *names: str) -> list[Row]:
    """The rows whose best checkpoint was measured with each of these; others are logged."""
    rows = [row for row in table.rows if all(("best", name) in row.numbers for name in names)]
    if not rows:
        raise Undrawable(f"no row was measured with {' and '.join(names)}")
    for row in table.rows:
        if row not in rows:
            log.warning("%s: %s isn't drawn (%s)", table.name, row.label, " or ".join(names))
    return rows


def best(row: Row, name: str) -> Number:
    return row.numbers["best", name]
