"""What all figures share: one colour an activation, one marker a number of steps, the look, the
head with its caption, and a mark with its bars."""

import textwrap
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sat.report.tables import Number, Row, Table

WIDTH = 6.3  # inches
# Okabe and Ito's colours, told apart by the colour-blind, for those that papers compare most.
COLOURS = {
    "relu": "#000000", "silu": "#0072B2", "elu": "#D55E00", "celu": "#CC79A7", "gelu": "#E69F00",
    "softplus": "#56B4E9", "parametric_softplus": "#009E73", "smoothrelu": "#8B5A2B",
    "mish": "#6A3D9A", "squareplus": "#9A8B00", "pssilu": "#00A0A8", "leaky_relu": "#8C8C8C",
    "prelu": "#5F6F52", "gelu_tanh": "#B07800", "surrogate_relu": "#4D4D4D",
}  # fmt: skip
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


def look(row: Row) -> dict[str, Any]:
    """Its colour and its marker, the same in every figure: of its activation, and of the number of
    steps of its training attack. Hollow where it raised alarms."""
    hue = zlib.crc32(row.activation.encode()) / 2**32  # of an activation of the user's own
    colour = COLOURS.get(row.activation) or to_hex(hsv_to_rgb((hue, 0.7, 0.6)))
    face = "white" if row.alarms else colour
    return {"color": colour, "marker": MARKERS.get(row.steps, "X"), "markerfacecolor": face}


def sheet(
    table: Table, rows: Sequence[Row], note: str, height: float = 2.6,
    handles: Sequence[Line2D] = (),
) -> Figure:  # fmt: skip
    """An empty figure with axes of that height, under the table's title and a caption: setting,
    seeds, the note, and what is not drawn; with a legend of the handles below."""
    seeds = sorted({len(number.seeds) for row in rows for number in row.numbers.values()})
    many = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1]))) or "0"
    absent = ", ".join(row.label for row in table.rows if row not in rows)
    said = f"{many} seed{'s' * (many != '1')}. {note}."
    said += f" Not drawn, for want of the numbers: {absent}." * bool(absent)
    said += " Hollow: raised alarms." * any(row.alarms for row in rows)
    head, caption = (
        textwrap.wrap(f"{table.experiment.title}, {table.dataset}", 66),
        textwrap.wrap(said, 88),
    )
    widest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(len(handles), 84 // (widest + 8)))
    below = 0.1 + 0.19 * len(head)  # inches
    top = below + 0.03 + 0.155 * len(caption)
    height += top + 0.17 * -(-len(handles) // columns)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.013, 1 - 0.07 / height, "\n".join(head), va="top", size=11, weight="bold")
    figure.text(0.013, 1 - below / height, "\n".join(caption), va="top", color="#555555")
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - top / height))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.8)
    return figure


def mark(axes: Any, row: Row, x: float | Number, y: float | Number, text: str = "") -> None:
    """A row's marker, in which a text may stand; where a coordinate is an accuracy, with the bar of
    its interval and a small point for each seed."""
    style, given = look(row), (x, y)
    place = [100 * at.mean if isinstance(at, Number) else at for at in given]
    bars = [
        [[100 * (at.mean - at.low)], [100 * (at.high - at.mean)]]
        if isinstance(at, Number)
        else None
        for at in given
    ]
    axes.errorbar(*place, bars[1], bars[0], color=style["color"], linewidth=1, alpha=0.6)
    shared = set.intersection(*(set(at.seeds) for at in given if isinstance(at, Number)))
    if len(shared) > 1:
        dots = [
            [100 * at.seeds[seed] if isinstance(at, Number) else at for seed in sorted(shared)]
            for at in given
        ]
        axes.plot(*dots, ".", color=style["color"], alpha=0.4, markersize=5, markeredgewidth=0)
    axes.plot(*place, **style, markersize=11 if text else 6, zorder=4, clip_on=False)
    ink = style["color"] if row.alarms else "white"
    axes.annotate(text, place, ha="center", va="center_baseline", fontsize=7, zorder=5, color=ink,
                  fontweight="bold")  # fmt: skip


def frame(axes: Any, side: str, numbers: Iterable[Number], label: str = "accuracy, %") -> None:
    """The limits of an axis, x or y, in percent: what holds means and seeds, with some room; the
    bars of few seeds may go on, for Student's interval of two would hide all else."""
    shares = [100 * share for each in numbers for share in (each.mean, *each.seeds.values())]
    room = max(0.3 * (max(shares) - min(shares)), 0.5)
    limits = max(min(shares) - room, 0), min(max(shares) + room, 100)
    axes.set(**{f"{side}lim": limits, f"{side}label": label})
