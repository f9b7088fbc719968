"""The figures of tables, as PNG and SVG, the same bytes each time: `scatter` and `dots` of rows,
`lines` over a number that rows differ in, `epochs` of trainings."""

import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator
from PIL import Image

from sat.arguments import is_number
from sat.errors import Refused
from sat.report.rows import COSTS, Row, label_of
from sat.report.runs import Measured
from sat.report.tables import Table
from sat.statistics import Estimate

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
    "font.size": 9,
    "axes.titlesize": 9,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.dpi", "savefig.dpi"), 200),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "axes.edgecolor": "#888888",
    "grid.color": "#e4e4e4",
    "text.parse_math": False,  # a name may hold $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sat",  # the same ids each time
}
NOTE = (
    "Checkpoint chosen on held-out images; bars: 95 % intervals over seeds, or over test images"
    " where there is one seed, as far as the frame; small: each seed"
)
DASHES = ("-", "--", ":", "-.")
MOST = 60  # rows of a figure


class Drawn(NamedTuple):
    """A figure's file and what it shows; or, without a file, why it is not drawn."""

    table: str  # Table.name
    text: str
    png: Path | None = None


def draw(tables: Sequence[Table], folder: Path) -> list[Drawn]:
    """Draws each table's figures into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for table in tables:
            for n, entry in enumerate(table.experiment.figures, 1):
                kind, over = entry["kind"], f" over {entry['x']}" if "x" in entry else ""
                text = f"{table.experiment.title}: {kind}{over}"
                png = folder / f"{table.name}-{n}-{kind}.png"
                try:
                    if len(table.rows) > MOST:
                        raise Refused(f"more than {MOST} rows")
                    figure = KINDS[kind](table, entry)
                except Refused as fault:
                    for old in (png, png.with_suffix(".svg")):  # of other runs
                        old.unlink(missing_ok=True)
                    drawn.append(Drawn(table.name, f"Not drawn: {text}: {fault}."))
                    continue
                figure.savefig(png)
                few = Image.open(png).convert("RGB").quantize(dither=Image.Dither.NONE)
                few.save(png, optimize=True)  # a third of the bytes, and no eye sees it
                figure.savefig(png.with_suffix(".svg"), metadata={"Date": None})
                drawn.append(Drawn(table.name, text, png))
    return drawn


def look(row: Row) -> dict[str, Any]:
    """A row's colour and marker, the same in every figure: of its activation, and of the number of
    steps of its training attack. Hollow where it raised alarms."""
    hue = zlib.crc32(row.activation.encode()) / 2**32  # of an activation of the user's own
    colour = COLOURS.get(row.activation) or to_hex(hsv_to_rgb((hue, 0.7, 0.6)))
    face = "white" if row.alarms else colour
    return {"color": colour, "marker": MARKERS.get(row.steps, "X"), "markerfacecolor": face}


def sheet(
    table: Table, what: str, rows: Sequence[Row], note: str = NOTE, height: float = 2.6,
    handles: Sequence[Line2D] = (),
) -> Figure:  # fmt: skip
    """An empty figure with axes of that height in inches, under the table's title, with what of it
    is shown, and a caption: seeds, the note, and what is not drawn; with a legend of the handles
    below."""
    drawn = [row.numbers.get(("best", name)) for row in rows for name in ("clean", table.attack)]
    seeds = sorted(len(number.seeds) for number in drawn if number) or [0]
    many = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    absent = ", ".join(row.label for row in table.rows if row not in rows)
    said = f"{many} seed{'s' * (many != '1')}. {note}."
    said += f" Not drawn, for want of the numbers: {absent}." * bool(absent)
    said += " Hollow: raised alarms." * any(row.alarms for row in rows)
    head = textwrap.wrap(f"{table.experiment.title}, {table.dataset}: {what}", 66)
    caption = textwrap.wrap(said, 88)
    widest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(len(handles), 84 // (widest + 8)))
    below = 0.1 + 0.19 * len(head)
    top = below + 0.03 + 0.155 * len(caption)
    height += top + 0.17 * -(-len(handles) // columns)
    figure = Figure(figsize=(6.3, height))
    figure.text(0.013, 1 - 0.07 / height, "\n".join(head), va="top", size=11, weight="bold")
    figure.text(0.013, 1 - below / height, "\n".join(caption), va="top", color="#555555")
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - top / height))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.8)
    return figure


def panels(figure: Figure, table: Table, **shared: Any) -> Iterator[tuple[Any, tuple[str, str]]]:
    """Axes side by side, robust and then clean, with what they show."""
    titles = {table.attack: f"robust ({table.attack})", "clean": "clean"}
    for axes, name in zip(figure.subplots(1, 2, **shared), titles, strict=True):
        axes.set_title(titles[name])
        yield axes, ("best", name)


def mark(axes: Any, row: Row, x: float | Estimate, y: float | Estimate, text: str = "") -> None:
    """A row's marker, in which a text may stand; where a coordinate is an accuracy, with the bar of
    its interval and a small point for each seed."""
    style, measured = look(row), [at for at in (x, y) if isinstance(at, Estimate)]
    place = [100 * at.mean if at in measured else at for at in (x, y)]
    reach = {bar: [[100 * (at.mean - at.low)], [100 * (at.high - at.mean)]]
             for bar, at in (("xerr", x), ("yerr", y)) if at in measured}  # fmt: skip
    axes.errorbar(*place, **reach, color=style["color"], linewidth=1, alpha=0.6)
    if len(shared := sorted(set.intersection(*({*at.seeds} for at in measured)))) > 1:
        dots = [[100 * at.seeds[seed] if isinstance(at, Estimate) else at for seed in shared]
                for at in (x, y)]  # fmt: skip
        axes.plot(*dots, ".", color=style["color"], alpha=0.4, markersize=5, markeredgewidth=0)
    axes.plot(*place, **style, markersize=11 if text else 6, zorder=4, clip_on=False)
    axes.annotate(text, place, ha="center", va="center_baseline", fontsize=7, fontweight="bold",
                  color=style["color"] if row.alarms else "white", zorder=5)  # fmt: skip


def frame(axes: Any, side: str, numbers: Iterable[Estimate], label: str = "accuracy, %") -> None:
    """The limits of an axis, x or y, in percent: what holds means and seeds, with some room; the
    bars of few seeds may go on, for Student's interval of two would hide all else."""
    shares = [100 * share for each in numbers for share in (each.mean, *each.seeds.values())]
    room = max(0.3 * (max(shares) - min(shares)), 0.5)
    limits = max(min(shares) - room, 0), min(max(shares) + room, 100)
    axes.set(**{f"{side}lim": limits, f"{side}label": label})


def drawable(table: Table, x: str) -> list[tuple[Row, Any]]:
    """Rows with the value of each: a number of its own, or its clean accuracy; without rows that
    lack it, or were not measured clean and under the judging attack."""
    found: list[tuple[Row, Any]] = []
    for row in table.rows:
        value = row.keys.get(x) if x not in COSTS else getattr(row, x) or None
        value = row.numbers.get(("best", "clean")) if x == "clean" else value
        measured = {("best", "clean"), ("best", table.attack)} <= row.numbers.keys()
        if measured and (is_number(value) or isinstance(value, Estimate)):
            found.append((row, value))
    if not found:
        raise Refused(f"no row has {x}, and accuracy under an attack that all rows have")
    return found


def scatter(table: Table, entry: Mapping[str, Any]) -> Figure:
    """Robust over clean accuracy, or over a number: a numbered point a row, and the rows that no
    other beats in both accuracies."""
    x = entry.get("x", "clean")
    rows, places = zip(*drawable(table, x), strict=True)
    robust = [row.numbers["best", table.attack] for row in rows]
    numbers = [str(table.rows.index(row) + 1) for row in rows]
    spots = [tuple(round(100 * at.mean, 1) if isinstance(at, Estimate) else at for at in point)
             for point in zip(places, robust, strict=True)]  # fmt: skip
    shown = [numbers[spots.index(spot)] for spot in spots]  # of one place the first one's
    handles = [
        Line2D([], [], **look(row), linestyle="", label=f"{number} {row.label}" + drawn)
        for row, number, first in zip(rows, numbers, shown, strict=True)
        for drawn in [f" (at {first})" * (first != number)]
    ]
    note = NOTE + "; dashed: what no other row beats in both" * (x == "clean")
    figure = sheet(table, f"robust over {x.replace('_', ' ')}", rows, note, handles=handles)
    axes = figure.subplots()
    for point in zip(rows, places, robust, shown, strict=True):
        mark(axes, *point)
    frame(axes, "y", robust, f"{table.attack} accuracy, %")
    if x != "clean":
        number_axis(axes, places, x)
        return figure
    frame(axes, "x", places, "clean accuracy, %")
    front = pareto([(100 * a.mean, 100 * b.mean) for a, b in zip(places, robust, strict=True)])
    corners = [(0, front[0][1]), *front, (front[-1][0], 0)]
    axes.plot(*zip(*corners, strict=True), "--", drawstyle="steps-pre", color="#999999", zorder=1,
              linewidth=1)  # fmt: skip
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats (as good in both, better in one), by their first value."""
    beats = lambda a, b: a != b and a[0] >= b[0] and a[1] >= b[1]  # noqa: E731
    return sorted(b for b in {*points} if not any(beats(a, b) for a in points))


def dots(table: Table, entry: Mapping[str, Any]) -> Figure:
    """A line a row: robust beside clean."""
    rows = [row for row, _ in drawable(table, "clean")]
    labels = [textwrap.fill(row.label, 34) for row in rows]
    count = len(rows) + "".join(labels).count("\n")
    figure = sheet(table, "robust and clean", rows, height=0.8 + 0.21 * count)
    for axes, measure in panels(figure, table, sharey=True):
        for k, row in enumerate(rows):
            mark(axes, row, row.numbers[measure], k)
        frame(axes, "x", [row.numbers[measure] for row in rows])
    figure.axes[0].set_yticks(range(len(rows)), labels)
    figure.axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def lines(table: Table, entry: Mapping[str, Any]) -> Figure:
    """Robust and, beside it, clean accuracy over a number that rows differ in, or over a cost; of
    lines of one colour the second is dashed, the third dotted."""
    x, series = str(entry["x"]), dict[str, list[tuple[Row, float]]]()
    points = sorted(drawable(table, x), key=lambda point: point[1])
    rows, values = zip(*points, strict=True)
    if len({*values}) < 2:
        raise Refused(f"{x} has no two values among the rows")
    for row, value in points:
        keys = {key: row.keys.get(key) for key in entry.get("series", ())}
        name = label_of(keys or {"activation": row.activation}, table.experiment.labels)
        series.setdefault(name, []).append((row, value))
    handles: list[Line2D] = []
    for label, line in series.items():
        style = look(replace(line[0][0], alarms=0))
        before = sum(handle.get_color() == style["color"] for handle in handles)
        handles.append(Line2D([], [], **style, linestyle=DASHES[before % 4], label=label))
    figure = sheet(table, f"over {x.replace('_', ' ')}", rows, handles=handles)
    for axes, measure in panels(figure, table):
        for line, handle in zip(series.values(), handles, strict=True):
            style = {"linestyle": handle.get_linestyle(), "color": handle.get_color()}
            means = [100 * row.numbers[measure].mean for row, _ in line]
            axes.plot([value for _, value in line], means, **style)
            for row, value in line:
                mark(axes, row, value, row.numbers[measure])
        frame(axes, "y", [row.numbers[measure] for row in rows])
        number_axis(axes, values, x)
    return figure


def number_axis(axes: Any, values: Sequence[float], x: str) -> None:
    """Ticks at the values of a key, which are few; a log axis where they span much."""
    axes.set_xlabel(x.replace("_", " "))
    if x in COSTS:
        axes.xaxis.set_major_formatter(EngFormatter())
        return
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks := sorted({*values})) <= 8:
        axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])


def epochs(table: Table, entry: Mapping[str, Any]) -> Figure:
    """Held-out accuracy over the training: a panel a row, the others grey in it; the mean over
    seeds with a mark at the best epoch, and each seed."""
    found = [(row, held_out(row.runs, "robust")) for row in table.rows]
    if not (curves := [(row, robust) for row, robust in found if len(robust)]):
        raise Refused("no run has val/robust in its metrics")
    columns = min(len(curves), 2 if len(curves) == 4 else 3)
    high = -(-len(curves) // columns)
    note = "On held-out images, under the attack of the validations; solid: robust, dashed: clean,"
    note += " grey: the other panels' robust; marked: best epoch; thin: each seed"
    rows, height = [row for row, *_ in curves], max(2.6, 0.5 + 1.35 * high)
    figure = sheet(table, "over the training", rows, note, height)
    grid = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (row, robust) in zip(grid.flat, curves, strict=False):
        for _, other in curves:
            axes.plot(*other.T, color="#c4c4c4", linewidth=0.8, zorder=1)
        style = look(row)
        for tag, line in (("clean", "--"), ("robust", "-")):
            for run in row.runs:
                seed = held_out([run], tag)
                axes.plot(*seed.T, line, color=style["color"], linewidth=0.6, alpha=0.5, zorder=2)
            mean = held_out(row.runs, tag)
            axes.plot(*mean.T, line, color=style["color"], linewidth=1.5, zorder=3)
        axes.plot(*robust[robust[:, 1].argmax()], **style, markersize=6.5, zorder=4)
        axes.set_title(textwrap.fill(row.label, 24))
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))  # type: ignore[attr-defined]
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    return figure


def held_out(runs: Sequence[Measured], tag: str) -> np.ndarray:
    """Epoch, and the mean over the runs in percent, [N, 2]."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for line in run.validations:
            found.setdefault(round(line["epoch"], 2), []).append(100 * line[f"val/{tag}"])
    return np.array([(epoch, np.mean(v)) for epoch, v in sorted(found.items())]).reshape(-1, 2)


KINDS = {"scatter": scatter, "dots": dots, "lines": lines, "epochs": epochs}
