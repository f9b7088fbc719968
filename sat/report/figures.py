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
from matplotlib.ticker import NullLocator
from PIL import Image

from sat.report.canvas import (
    STYLE,
    Undrawable,
    bars,
    bars_note,
    key,
    legend,
    legend_lines,
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
MOST = 60  # rows of a figure


@dataclass(frozen=True)
class Figure:
    table: str  # Table.name
    png: Path
    svg: Path
    text: str  # what is seen, in a sentence, for those who can't


def draw(tables: Sequence[Table], folder: Path) -> list[Figure]:
    """RowRng each table's figures into the folder; what can't be drawn is logged in a line."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for table in tables:
            for n, entry in enumerate(table.spec.get("figures") or (), 1):
                kind = entry.get("kind")
                try:
                    if len(table.rows) > MOST:
                        raise Undrawable(f"more than {MOST} rows")
                    made, text = KINDS[kind](table, entry)
                except Undrawable as fault:
                    log.warning("%s: figure %d (%s) left out: %s", table.name, n, kind, fault)
                    continue
                stem = f"{table.name}-{n}-{kind}"
                png, svg = (folder / f"{stem}.{ending}" for ending in ("png", "svg"))
                save(made, png, svg)
                drawn.append(Figure(table.name, png, svg, text))
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


def scatter(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """Clean against robust: a point a row, bars of both intervals, seeds faint, the front."""
    rows = measured(table, "clean", table.attack)
    pairs = [(best(row, "clean"), best(row, table.attack)) for row in rows]
    x, y = (window([pair[side] for pair in pairs]) for side in (0, 1))
    note = bars_note(*zip(*pairs, strict=True)) + "; small: each seed; dashed: Pareto front"
    height = 3.6 + 0.17 * legend_lines([f"12 {row.label}" for row in rows])[1]
    figure = sheet(table, "clean against robust", note, rows, height)
    axes = figure.subplots()
    percent_axis(axes.xaxis, x, "clean accuracy, %")
    percent_axis(axes.yaxis, y, f"robust accuracy ({attack_name(table.attack)}), %")
    means = [(100 * clean.mean, 100 * robust.mean) for clean, robust in pairs]
    front = pareto(means)
    corners = [(x[0], means[front[0]][1]), *(means[k] for k in front), (means[front[-1]][0], y[0])]
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-pre", color="#999999", linestyle="--",
              linewidth=1, zorder=1)  # fmt: skip
    for k, (row, (clean, robust)) in enumerate(zip(rows, pairs, strict=True)):
        colour, (at, up) = look(row)[0], means[k]
        axes.errorbar(at, up, bars(robust), bars(clean), color=colour, linewidth=1, alpha=0.5)
        shared = [seed for seed in clean.seeds if seed in robust.seeds]
        seeds = [(100 * clean.seeds[seed], 100 * robust.seeds[seed]) for seed in shared]
        if len(seeds) > 1:
            axes.plot(*zip(*seeds, strict=True), ".", color=colour, alpha=0.35, markersize=5,
                      markeredgewidth=0)  # fmt: skip
        point(axes, at, up, row, table.rows.index(row) + 1)
    legend(figure, key(table, rows))
    on = ", ".join(
        f"{rows[k].label} ({means[k][0]:.1f} % clean, {means[k][1]:.1f} % robust)" for k in front
    )
    kind = f"Clean against robust accuracy ({attack_name(table.attack)}) of {len(rows)} rows"
    return figure, f"{kind}; on the Pareto front: {on}; {extremes(rows, table)}."


def extremes(rows: Sequence[Row], table: Table) -> str:
    by = sorted(rows, key=lambda row: percent(row, table.attack))
    low, high = (f"{row.label}, {percent(row, table.attack):.1f} %" for row in (by[0], by[-1]))
    return f"most robust: {high}; least: {low}"


def dots(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """A line a row: robust beside clean with intervals and seeds."""
    rows = measured(table, table.attack)
    names = [table.attack] + ["clean"] * any(("best", "clean") in row.numbers for row in rows)
    found = [row.differences.get(("best", table.attack)) for row in rows]
    starred = [k for k, d in enumerate(found) if d and d.marked and d.test == "seeds"]
    shown = [[best(row, name) for row in rows if ("best", name) in row.numbers] for name in names]
    note = bars_note(*shown) + "; small: each seed"
    if starred:
        note += "; *: differs from the reference, p < 0.05 after Holm's correction"
    lines = sum(1 + wrapped(row.label).count("\n") for row in rows)
    figure = sheet(table, "robust and clean", note, rows, max(2.9, 1.9 + 0.21 * lines))
    panels: Any = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name, numbers in zip(panels, names, shown, strict=True):
        title = "clean" if name == "clean" else f"robust ({attack_name(name)})"
        percent_axis(axes.xaxis, window(numbers), "accuracy, %", bins=5)
        axes.set_title(title, fontsize=9)
        axes.tick_params(axis="y", length=0)
        for k, row in enumerate(rows):
            if ("best", name) in row.numbers:
                _dot(axes, k, row, best(row, name))
    for k in starred:
        number, edge = best(rows[k], table.attack), panels[0].get_xlim()[1]
        end = min(max(reach(number)[1], *(100 * s for s in number.seeds.values())), edge)
        panels[0].annotate("*", (end, k), (4, -2), textcoords="offset points", fontsize=11,
                           va="center", annotation_clip=False)  # fmt: skip
    panels[0].set_yticks(range(len(rows)), [wrapped(row.label) for row in rows])
    panels[0].set_ylim(len(rows) - 0.3, -0.6)
    text = f"Robust accuracy ({attack_name(table.attack)}) of {len(rows)} rows with 95 % intervals"
    return figure, f"{text}; {extremes(rows, table)}."


def _dot(axes: Any, k: int, row: Row, number: Number) -> None:
    if len(number.seeds) > 1:
        seeds = [100 * share for share in number.seeds.values()]
        axes.plot(seeds, [k + 0.27] * len(seeds), ".", color=look(row)[0], alpha=0.5,
                  markersize=5, markeredgewidth=0)  # fmt: skip
    axes.errorbar(100 * number.mean, k, xerr=bars(number), color=look(row)[0])
    point(axes, 100 * number.mean, k, row)


def lines(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """Robust and, beside it, clean accuracy over a number that rows differ in, or over a cost.

    A row that has no such number (ReLU, over alpha) is a horizontal line. With `join: false`
    numbered points stand for lines.
    """
    x, rows = entry.get("x"), measured(table, table.attack)
    series, level = grouped(rows, x, entry.get("series") or (), table.spec)
    values = sorted({value for points in series.values() for value, _ in points})
    if len(values) < 2:
        raise Undrawable(f"{x} has no two values among the rows")
    names = [table.attack] + ["clean"] * any(("best", "clean") in row.numbers for row in rows)
    drawn = [row for line in series.values() for _, row in line]
    log_scale = values[0] > 0 and values[-1] / values[0] > 8
    joined = entry.get("join", True)
    shown = [[best(row, n) for row in drawn + level if ("best", n) in row.numbers] for n in names]
    note = bars_note(*shown) + "; grey: the same" * bool(level)
    titles = (
        [*series, *(row.label for row in level)] if joined else [f"12 {r.label}" for r in drawn]
    )
    height = 3.6 + 0.17 * legend_lines(titles)[1]
    figure = sheet(table, f"over {COSTS.get(x) or axis_name(x)}", note, drawn + level, height)
    panels: Any = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name, numbers in zip(panels, names, shown, strict=True):
        robust = f"robust accuracy ({attack_name(name)}), %"
        percent_axis(
            axes.yaxis, window(numbers), "clean accuracy, %" if name == "clean" else robust
        )
        number_axis(axes, values, x, log_scale)
        _series(axes, name, series, log_scale, None if joined else table)
        for row in (row for row in level if ("best", name) in row.numbers):
            axes.axhspan(*reach(best(row, name)), color="#888888", alpha=0.12, linewidth=0)
            axes.axhline(percent(row, name), color="#666666", linestyle="--", label=row.label)
    legend(figure, panels[0].get_legend_handles_labels()[0] if joined else key(table, drawn))
    text = f"Robust accuracy ({attack_name(table.attack)}) over {axis_name(x)}"
    told = series if joined else {row.label: [(v, row)] for p in series.values() for v, row in p}
    return figure, f"{text}: {'; '.join(_trend(*each, table.attack) for each in told.items())}."


def _trend(name: str, points: Sequence[tuple[float, Row]], attack: str) -> str:
    ends = [f"{percent(row, attack):.1f} % at {amount(x)}" for x, row in (points[0], points[-1])]
    return f"{name} {' to '.join(dict.fromkeys(ends))}".strip()


def grouped(
    rows: Sequence[Row], x: str, keys: Sequence[str], spec: Mapping[str, Any]
) -> tuple[dict[str, list[tuple[float, Row]]], list[Row]]:
    """The points of each line by its name, along x; and the rows that have no x."""
    found: dict[str, list[tuple[float, Row]]] = {}
    level, labels = [], spec.get("labels") or {}
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


def number_axis(axes: Any, values: Sequence[float], x: str, log_scale: bool) -> None:
    """Ticks at values that occur, where their labels have room."""
    if log_scale:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    at = np.log(values) if log_scale else np.asarray(values)
    span, ticks = at[-1] - at[0], []
    wide = 0.05 + 0.035 * max(len(amount(value)) for value in values)  # of a panel, at 9 pt
    for place, value in zip(at[::-1], values[::-1], strict=True):
        if not ticks or ticks[-1][0] - place > wide * span:
            ticks.append((place, value))
    axes.set_xticks([value for _, value in ticks], [amount(value) for _, value in ticks])
    axes.set_xlabel(wrapped(axis_name(x) + (", log axis" if log_scale else ""), 30))
    ends = at[0] - 0.07 * span, at[-1] + 0.07 * span
    axes.set_xlim(*(np.exp(ends) if log_scale else ends))


def _series(
    axes: Any, name: str, series: Mapping[str, Any], log_scale: bool, numbered: Table | None
) -> None:
    """A line for each, beside each other by a hair, so that bars don't hide each other; of those
    of one look the second is dashed, the third dotted. Or points, with their numbers in a table."""
    low, high = np.log(axes.get_xlim()) if log_scale else axes.get_xlim()
    looks: list[tuple[str, str]] = []
    for k, (label, points) in enumerate(series.items()):
        looks.append(look(points[0][1]))
        style = ("-", "--", ":", "-.")[looks[:-1].count(looks[-1]) % 4]
        shift = (k - (len(series) - 1) / 2) * 0.012 * (high - low)
        places = []
        for value, row in (each for each in points if ("best", name) in each[1].numbers):
            at = value * np.exp(shift) if log_scale else value + shift
            places.append((at, percent(row, name)))
            axes.errorbar(*places[-1], bars(best(row, name)), color=look(row)[0], elinewidth=0.8)
            point(axes, *places[-1], row, numbered and numbered.rows.index(row) + 1)
        if places and not numbered:
            axes.plot(*zip(*places, strict=True), style, color=looks[-1][0], label=label)


def epochs(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
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
    return figure, _fall({row.label: curves[row.label]["robust"] for row in rows})


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


def _fall(curves: Mapping[str, np.ndarray]) -> str:
    name, curve = max(curves.items(), key=lambda item: item[1][1].max() - item[1][1][-1])
    top = int(np.argmax(curve[1]))
    return (
        f"Held-out robust accuracy over the epochs of {len(curves)} rows; the largest fall from the"
        f" best epoch to the last is that of {name}: from {curve[1][top]:.1f} % (epoch"
        f" {curve[0][top]:.0f}) to {curve[1][-1]:.1f} %."
    )


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
