"""The figures of tables, as PNG and SVG, the same bytes each time: `scatter` and `dots` of rows,
`lines` over a number that rows differ in, `epochs` of trainings."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from sat.report import canvas
from sat.report.canvas import (
    Undrawable,
    bars,
    bars_note,
    look,
    percent_axis,
    point,
    reach,
    sheet,
    window,
    wrapped,
)
from sat.report.rows import text_of
from sat.report.study import Table
from sat.report.tables import Number, Row

log = logging.getLogger("sat")
COSTS = {
    "gradients": "gradient computations in training, per image",
    "multiply_adds": "multiply-adds of one image's forward",
    "parameters": "parameters",
}
NAMES = {"attack.steps": "attack steps", "dataset.image_size": "image size, pixels"}
Points = list[tuple[float, Row]]  # of a line, by x
MOST = 60  # rows of a figure


@dataclass(frozen=True)
class Figure:
    table: str  # Table.name
    png: Path
    svg: Path
    text: str  # its title


def draw(tables: Sequence[Table], folder: Path) -> list[Figure]:
    """Draws each table's figures into the folder; what can't be drawn is logged in a line."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(canvas.STYLE):
        for table in tables:
            for n, entry in enumerate(table.spec.get("figures", ()), 1):
                kind = entry.get("kind")
                try:
                    if len(table.rows) > MOST:
                        raise Undrawable(f"more than {MOST} rows")
                    made = KINDS[kind](table, entry)
                except Undrawable as fault:
                    log.warning("%s: figure %d (%s) left out: %s", table.name, n, kind, fault)
                    continue
                stem = f"{table.name}-{n}-{kind}"
                png, svg = (folder / f"{stem}.{ending}" for ending in ("png", "svg"))
                save(made, png, svg)
                title = made.texts[0].get_text().replace("\n", " ")
                drawn.append(Figure(table.name, png, svg, title))
    return drawn


def save(figure: Any, png: Path, svg: Path) -> None:
    """A PNG of 256 colours, and paths of the SVG to a hundredth of a point: half the bytes of each,
    and no eye sees it."""
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    few = drawn.quantize(256, dither=Image.Dither.NONE)
    few.save(png, optimize=True, dpi=(figure.dpi, figure.dpi))
    figure.savefig(svg, metadata={"Date": None})
    shorten = lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0])  # noqa: E731
    svg.write_text(re.sub(r' d="[^"]*"', shorten, svg.read_text("utf-8")), "utf-8")


def measured(table: Table, *names: str) -> list[Row]:
    """The rows whose best checkpoint was measured with each of these."""
    rows = [row for row in table.rows if all(("best", name) in row.numbers for name in names)]
    if not rows:
        raise Undrawable(f"no row was measured with {' and '.join(names)}")
    return rows


def best(row: Row, name: str) -> Number:
    return row.numbers["best", name]


def percent(row: Row, name: str) -> float:
    return 100 * best(row, name).mean


def attack_name(attack: str) -> str:
    """`pgd20` as it is written: PGD-20."""
    found = re.fullmatch(r"(pgd|fgsm|apgd)(\d*)", attack)
    shown = "-".join(filter(None, found.groups())).upper() if found else attack
    return shown.replace("_", " ")


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats (as good in both, better in one), by their first value."""
    found = [
        k
        for k, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]
    return sorted(found, key=lambda k: (points[k][0], -points[k][1]))


def panels_of(
    table: Table, rows: Sequence[Row]
) -> tuple[list[tuple[str, str, list[Row]]], list[list[Number]]]:
    """What stands side by side: measure, title and the rows that have it, robust and then clean;
    and the numbers of each."""
    titles = {table.attack: f"robust ({attack_name(table.attack)})", "clean": "clean"}
    found = [
        (name, title, mine)
        for name, title in titles.items()
        if (mine := [row for row in rows if ("best", name) in row.numbers])
    ]
    return found, [[best(row, name) for row in mine] for name, _, mine in found]


def scatter(table: Table, entry: Mapping[str, Any]) -> Any:
    """Clean against robust: a point a row, bars of both intervals, seeds faint, the front."""
    rows = measured(table, "clean", table.attack)
    (robust, clean), numbers = panels_of(table, rows)
    y, x = map(window, numbers)
    note = bars_note(*numbers) + "; small: each seed; dashed: Pareto front"
    figure = sheet(table, "clean against robust", note, rows, handles=canvas.key(table, rows))
    axes = figure.subplots()
    percent_axis(axes.xaxis, x, "clean accuracy, %")
    percent_axis(axes.yaxis, y, f"robust accuracy ({attack_name(table.attack)}), %")
    means = [(percent(row, "clean"), percent(row, table.attack)) for row in rows]
    front = pareto(means)
    corners = [(x[0], means[front[0]][1]), *(means[k] for k in front), (means[front[-1]][0], y[0])]
    axes.plot(*zip(*corners, strict=True), "--", drawstyle="steps-pre", color="#999999",
              linewidth=1, zorder=1)  # fmt: skip
    for row, up, along, mean in zip(rows, *numbers, means, strict=True):
        axes.errorbar(*mean, bars(up), bars(along), color=look(row)[0], linewidth=1, alpha=0.5)
        shared = [seed for seed in along.seeds if seed in up.seeds]
        places = ([100 * number.seeds[seed] for seed in shared] for number in (along, up))
        canvas.seeds(axes, *places, row)
        point(axes, *mean, row, table.rows.index(row) + 1)
    return figure


def dots(table: Table, entry: Mapping[str, Any]) -> Any:
    """A line a row: robust beside clean with intervals and seeds."""
    rows = measured(table, table.attack)
    parts, numbers = panels_of(table, rows)
    found = [row.differences.get(("best", table.attack)) for row in rows]
    starred = [k for k, d in enumerate(found) if d and d.marked and d.test == "seeds"]
    note = bars_note(*numbers) + "; small: each seed"
    note += "; *: differs from the reference, p < 0.05 after Holm's correction" * bool(starred)
    labels = [wrapped(row.label) + " *" * (k in starred) for k, row in enumerate(rows)]
    count = len(rows) + "".join(labels).count("\n")
    figure = sheet(table, "robust and clean", note, rows, max(2.9, 1.9 + 0.21 * count))
    panels: Any = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, (name, title, mine), shown in zip(panels, parts, numbers, strict=True):
        percent_axis(axes.xaxis, window(shown), "accuracy, %", bins=5)
        axes.set_title(title)
        axes.tick_params(axis="y", length=0)
        for row in mine:
            k, number = rows.index(row), best(row, name)
            shares = [100 * share for share in number.seeds.values()]
            canvas.seeds(axes, shares, [k + 0.27] * len(shares), row)
            axes.errorbar(100 * number.mean, k, xerr=bars(number), color=look(row)[0])
            point(axes, 100 * number.mean, k, row)
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].set_ylim(len(rows) - 0.3, -0.6)
    return figure


def lines(table: Table, entry: Mapping[str, Any]) -> Any:
    """Robust and, beside it, clean accuracy over a number that rows differ in, or over a cost.

    A row that has no such number (ReLU, over alpha) is a horizontal line. With `join: false`
    numbered points stand for lines.
    """
    x, joined = str(entry.get("x")), entry.get("join", True)
    rows = measured(table, table.attack)
    series, level = grouped(rows, x, entry.get("series", ()), table.spec)
    values = sorted({value for points in series.values() for value, _ in points})
    if len(values) < 2:
        raise Undrawable(f"{x} has no two values among the rows")
    drawn = [row for line in series.values() for _, row in line]
    handles = strokes(series, level)
    if not joined:
        series = {row.label: [(value, row)] for line in series.values() for value, row in line}
        handles = canvas.key(table, drawn) + strokes({}, level)
    parts, numbers = panels_of(table, drawn + level)
    note = bars_note(*numbers) + "; grey: the same" * bool(level)
    figure = sheet(table, f"over {axis_name(x)}", note, drawn + level, handles=handles)
    panels: Any = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (name, title, mine), shown in zip(panels, parts, numbers, strict=True):
        percent_axis(axes.yaxis, window(shown), "accuracy, %")
        axes.set_title(title)
        number_axis(axes, values, x)
        for k, (points, handle) in enumerate(zip(series.values(), handles, strict=False)):
            there = [(value, row) for value, row in points if row in mine]
            aside = (2.5 * k - 1.25 * (len(series) - 1)) * joined
            curve(axes, name, there, handle, aside, None if joined else table)
        for row in (row for row in level if row in mine):
            axes.axhspan(*reach(best(row, name)), color="#888888", alpha=0.12, linewidth=0)
            axes.axhline(percent(row, name), color="#666666", linestyle="--")
    return figure


def strokes(series: Mapping[str, Points], level: Sequence[Row]) -> list[Line2D]:
    """The lines of a legend; of those of one look the second is dashed, the third dotted."""
    looks = [look(points[0][1]) for points in series.values()]
    styles = [("-", "--", ":", "-.")[looks[:k].count(each) % 4] for k, each in enumerate(looks)]
    return [
        *(Line2D([], [], color=colour, marker=marker, linestyle=style, label=name)
          for (colour, marker), style, name in zip(looks, styles, series, strict=True)),
        *(Line2D([], [], color="#666666", linestyle="--", label=row.label) for row in level),
    ]  # fmt: skip


def curve(
    axes: Any, name: str, points: Points, handle: Line2D, aside: float, numbered: Table | None
) -> None:
    """A line with its bars, some points to the side so that these don't hide each other's; or
    points alone, with their numbers in a table."""
    moved = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    if len(points) > 1:
        places = [(x, percent(row, name)) for x, row in points]
        axes.plot(*zip(*places, strict=True), handle.get_linestyle(), color=handle.get_color(),
                  transform=moved)  # fmt: skip
    for x, row in points:
        axes.errorbar(x, percent(row, name), bars(best(row, name)), color=look(row)[0],
                      linewidth=0.8, transform=moved)  # fmt: skip
        number = numbered and numbered.rows.index(row) + 1
        point(axes, x, percent(row, name), row, number, transform=moved)


def grouped(
    rows: Sequence[Row], x: str, keys: Sequence[str], spec: Mapping[str, Any]
) -> tuple[dict[str, Points], list[Row]]:
    """The points of each line by its name, along x; and the rows that have no x."""
    found: dict[str, Points] = {}
    level, labels = [], spec.get("labels", {})
    for row in rows:
        value = getattr(row, x) or None if x in COSTS else row.keys.get(x)
        if isinstance(value, int | float) and not isinstance(value, bool):
            told = (text_of(key, row.keys.get(key), labels) for key in keys)
            found.setdefault(" ".join(filter(None, told)), []).append((float(value), row))
        elif x not in COSTS:
            level.append(row)
    return {name: sorted(points, key=lambda p: p[0]) for name, points in found.items()}, level


def axis_name(x: str) -> str:
    return COSTS.get(x) or NAMES.get(x) or x.rsplit(".", 1)[-1].replace("_", " ")


def amount(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:.4g}"


def number_axis(axes: Any, values: Sequence[float], x: str) -> None:
    """Ticks at values that occur, where their labels have room; a log axis where they span much."""
    log_scale = values[0] > 0 and values[-1] / values[0] > 8
    at = np.log(values) if log_scale else np.asarray(values)
    span, ticks = at[-1] - at[0], []
    wide = 0.05 + 0.035 * max(len(amount(value)) for value in values)  # of a panel, at 9 pt
    for place, value in zip(at[::-1], values[::-1], strict=True):
        if not ticks or ticks[-1][0] - place > wide * span:
            ticks.append((place, value))
    if log_scale:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([value for _, value in ticks], [amount(value) for _, value in ticks])
    axes.set_xlabel(wrapped(axis_name(x) + ", log axis" * log_scale, 30))
    ends = at[0] - 0.07 * span, at[-1] + 0.07 * span
    axes.set_xlim(*(np.exp(ends) if log_scale else ends))


def epochs(table: Table, entry: Mapping[str, Any]) -> Any:
    """Held-out accuracy over the training: a panel a row, the others grey in it.

    Mean over seeds in a band from the lowest seed to the highest; a mark at the best epoch.
    """
    curves = {row.label: held_out(row) for row in table.rows}
    rows = [row for row in table.rows if "robust" in curves[row.label]]
    if not rows:
        raise Undrawable("no run has val/robust in its metrics")
    columns = min(len(rows), 2 if len(rows) == 4 else 3)
    high = -(-len(rows) // columns)
    note = "On held-out images, under the attack of the validations; solid: robust, dashed: clean,"
    note += " grey: the other panels' robust; marked: best epoch; band: lowest to highest seed"
    figure = sheet(table, "over the training", note, rows, max(3.6, 1.3 + 1.35 * high))
    grid: Any = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(rows):
            axes.set_visible(False)
            continue
        for other in rows:
            axes.plot(*curves[other.label]["robust"][:2], color="#c4c4c4", linewidth=0.8, zorder=1)
        _epochs_panel(axes, rows[place], curves[rows[place].label])
        axes.tick_params(labelbottom=place + columns >= len(rows))
    every = [curve for row in rows for curve in curves[row.label].values()]
    low, high = min(curve[2].min() for curve in every), max(curve[3].max() for curve in every)
    percent_axis(grid[0, 0].yaxis, (low - 0.07 * (high - low) - 1, high + 0.07 * (high - low) + 1),
                 "", bins=4)  # fmt: skip
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    return figure


def _epochs_panel(axes: Any, row: Row, found: Mapping[str, np.ndarray]) -> None:
    colour, marker = look(row)
    for tag, style in (("clean", "--"), ("robust", "-")):
        if tag in found:
            at, mean, low, high = found[tag]
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(at, mean, style, color=colour, linewidth=1.3, zorder=3)
    at, mean = found["robust"][:2]
    top = int(np.argmax(mean))
    axes.plot(at[top], mean[top], marker, color=colour, markersize=6.5, zorder=4,
              markerfacecolor="white" if row.alarms else colour)  # fmt: skip
    axes.set_title(wrapped(row.label, 24), fontsize=9)


def held_out(row: Row) -> dict[str, np.ndarray]:
    """Of `robust` and `clean`: epochs, and mean, lowest and highest over the seeds, in percent."""
    found: dict[str, dict[float, list[float]]] = {"robust": {}, "clean": {}}
    for run in row.runs:
        for line in run.validations()[0]:
            for tag, curve in found.items():
                curve.setdefault(round(line["epoch"], 2), []).append(100 * line[f"val/{tag}"])
    return {
        tag: np.array([(e, np.mean(v), min(v), max(v)) for e, v in sorted(curve.items())]).T
        for tag, curve in found.items()
        if curve
    }


KINDS = {"scatter": scatter, "dots": dots, "lines": lines, "epochs": epochs}
