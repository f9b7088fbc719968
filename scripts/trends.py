"""Figures with lines: accuracy over what rows differ in, and over the epochs of a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from canvas import (
    INK,
    MARKERS,
    Undrawable,
    alarms_note,
    attack_name,
    bars,
    bars_note,
    best,
    counted,
    cross,
    log,
    measured,
    percent_axis,
    reach,
    sheet,
    title_of,
    window,
    wrapped,
)
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from placing import beside, spread
from settings import text_of
from study import Row, Table

COSTS = {
    "gradients": "gradient computations in training, per image",
    "multiply_adds": "multiply-adds of one image's forward",
    "parameters": "parameters",
}
COST_NAMES = {"gradients": "gradient computations", "multiply_adds": "multiply-adds"}
NAMES = {"attack.steps": "attack steps", "dataset.image_size": "image size, pixels"}
ENDS = 6, 12  # lines, and characters a name, up to which names stand at the ends of lines


def lines(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """Robust and, beside it, clean accuracy over a number that rows differ in, or over a cost.

    A row that has no such number (ReLU, over alpha) is a horizontal line. With `join: false`, or
    where several rows of a line have one x, points with their rows' names stand for lines.
    """
    x, rows = entry.get("x"), measured(table, table.attack)
    series, level = grouped(rows, x, entry.get("series") or (), table.spec)
    values = sorted({value for points in series.values() for value, _ in points})
    if len(values) < 2:
        raise Undrawable(f"{x} has no two values among the rows")
    names = [table.attack] + ["clean"] * any(("best", "clean") in row.numbers for row in rows)
    shown = [[best(row, name) for row in rows if ("best", name) in row.numbers] for name in names]
    points = [point for line in series.values() for point in line]
    note = bars_note(*shown).replace("; faint: each seed", "") + "; grey: the same" * bool(level)
    note += alarms_note(row for _, row in points)
    log_scale = values[0] > 0 and values[-1] / values[0] > 8
    joined = entry.get("join", True) and not _upright(series, values, log_scale)
    title = f"{title_of(table, 'lines')}: over {COST_NAMES.get(x) or axis_name(x)}"
    figure = sheet(table, title, note, rows, 3.6 if joined else 5.8)
    shape = (1, len(names)) if joined else (len(names), 1)  # names of rows take a page's width
    panels = list(figure.subplots(*shape, sharex=not joined, squeeze=False).flat)
    for axes, name, numbers in zip(panels, names, shown, strict=True):
        robust = name != "clean"
        told = f"robust accuracy, %,\nunder {attack_name(name)}" if robust else "clean accuracy, %"
        percent_axis(axes.yaxis, window(numbers), told)
        number_axis(axes, values, x, log_scale)
        plot_series(axes, name, series, log_scale, joined)
        for row in level:
            plot_level(axes, name, row)
    others = [row.label for row in level]
    if joined:
        name_lines(figure, panels, [*series, *others], series, values[-1])
    else:
        name_lines(figure, panels, others, {}, values[-1])
        name_points(figure, panels, names, [row for _, row in points])
        series = {row.label: [(value, row)] for value, row in points}
    text = f"Robust accuracy ({attack_name(table.attack)}) over {axis_name(x)}"
    return figure, f"{text}: {'; '.join(_trend(*each, table.attack) for each in series.items())}."


def _trend(name: str, points: Sequence[tuple[float, Row]], attack: str) -> str:
    (first, a), (last, b) = points[0], points[-1]
    told = f"{100 * best(a, attack).mean:.1f} % at {amount(first)}"
    if len(points) > 1:
        told += f" to {100 * best(b, attack).mean:.1f} % at {amount(last)}"
    return f"{name} {told}".strip()


def grouped(
    rows: Sequence[Row], x: str, keys: Sequence[str], spec: Mapping[str, Any]
) -> tuple[dict[str, list[tuple[float, Row]]], list[Row]]:
    """The points of each line by its name, along x; and the rows that have no x."""
    found: dict[str, list[tuple[float, Row]]] = {}
    level = []
    for row in rows:
        value = getattr(row, x) or None if x in COSTS else row.keys.get(x)
        if isinstance(value, int | float) and not isinstance(value, bool):
            name = named(row, keys, spec)
            found.setdefault(name, []).append((float(value), row))
        elif x not in COSTS:
            level.append(row)
    return {name: sorted(points, key=lambda p: p[0]) for name, points in found.items()}, level


def named(row: Row, keys: Sequence[str], spec: Mapping[str, Any]) -> str:
    labels = spec.get("labels") or {}
    return " ".join(filter(None, (text_of(key, row.keys.get(key), labels) for key in keys)))


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
    name = axis_name(x) + (", log axis" if log_scale else "")
    axes.set_xlabel(wrapped(name, 30))
    margin = 0.07 * span
    ends = at[0] - margin, at[-1] + margin
    axes.set_xlim(*(np.exp(ends) if log_scale else ends))


def _upright(series: Mapping[str, Any], values: Sequence[float], log_scale: bool) -> bool:
    """Would a line stand upright, because two of its rows have one x, or nearly?"""
    scale = np.log if log_scale else np.asarray
    nearest = 0.01 * np.ptp(scale(values))
    xs = ([value for value, _ in points] for points in series.values())
    return any((np.diff(scale(line)) < nearest).any() for line in xs)


def plot_series(
    axes: Any, name: str, series: Mapping[str, Any], log_scale: bool, joined: bool
) -> None:
    """A line for each; beside each other by a hair, so that bars don't hide each other."""
    low, high = np.log(axes.get_xlim()) if log_scale else axes.get_xlim()
    for k, (label, points) in enumerate(series.items()):
        shown = [point for point in points if ("best", name) in point[1].numbers]
        if not shown:
            continue
        shift = (k - (len(series) - 1) / 2) * 0.012 * (high - low)
        at, numbers = np.array([v for v, _ in shown]), [best(row, name) for _, row in shown]
        at = at * np.exp(shift) if log_scale else at + shift
        axes.errorbar(
            at, [100 * number.mean for number in numbers],
            np.hstack([bars(number) for number in numbers]), color=INK[k % len(INK)],
            marker=MARKERS[k % len(MARKERS)], linestyle="-" if joined else "none", elinewidth=0.8,
            markerfacecolor="white" if name == "clean" else None, label=label if joined else None,
        )  # fmt: skip
        for x, number, (_, row) in zip(at, numbers, shown, strict=True):
            if row.alarms:
                cross(axes, x, 100 * number.mean, INK[k % len(INK)])


def name_points(figure: Any, panels: Any, names: Sequence[str], rows: Sequence[Row]) -> None:
    """The name of its row beside each point that plot_series drew of them."""
    for axes in panels:
        axes.label_outer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, name in zip(panels, names, strict=True):
        shown = [row for row in rows if ("best", name) in row.numbers]
        places = [tuple(p) for drawn in axes.containers for p in drawn[0].get_xydata()]
        specks = [(x, value) for (x, _), row in zip(places, shown, strict=True)
                 for value in np.linspace(*reach(best(row, name)), 40)]  # fmt: skip
        if places:
            beside(axes, places, [wrapped(row.label) for row in shown], specks)


def plot_level(axes: Any, name: str, row: Row) -> None:
    if ("best", name) in row.numbers:
        number = best(row, name)
        axes.axhspan(*reach(number), color="#888888", alpha=0.12, linewidth=0)
        axes.axhline(100 * number.mean, color="#444444", linestyle="--", label=row.label)


def name_lines(figure: Any, panels: Any, names: list[str], series: Any, last: float) -> None:
    """Names at the ends of lines where these end alike and names are short, else a legend."""
    if not any(names):
        return
    short = len(names) <= ENDS[0] and max(map(len, names)) <= ENDS[1]
    if not short or any(points[-1][0] < last for points in series.values()):
        found = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        one_line = sum(map(len, names)) + 8 * len(names) <= 84
        columns = len(names) if one_line else max(1, 84 // (max(map(len, names)) + 8))
        figure.legend([found[name] for name in names], names, loc="outside lower center",
                      ncols=columns)  # fmt: skip
        return
    texts = {axes: [_end(axes, *each) for each in _ends(axes)] for axes in panels}
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, found in texts.items():
        low, high = axes.get_ylim()
        gap = 11.5 / 72 * (high - low) / (axes.get_window_extent().height / figure.dpi)
        heights = spread([text.xy[1] for text in found], gap, low + gap / 2, high - gap / 2)
        for text, height in zip(found, heights, strict=True):
            text.set_position((1.05, height))


def _ends(axes: Any) -> list[tuple[str, str, float, float]]:
    found = []
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        end = line.get_xdata()[-1] if isinstance(handle, tuple) else axes.get_xlim()[1]
        found.append((label, line.get_color(), end, line.get_ydata()[-1]))
    return found


def _end(axes: Any, label: str, colour: str, x: float, y: float) -> Any:
    thin = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
    where = axes.get_yaxis_transform()
    return axes.annotate(
        label, (x, y), (1.05, y), textcoords=where, va="center", fontsize=9,
        annotation_clip=False, arrowprops={**thin, "relpos": (0, 0.5)},
    )  # fmt: skip


def epochs(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """Held-out accuracy over the training: a panel for each of `series`, the others grey in it.

    Mean over seeds in a band from the lowest seed to the highest; a dot at the best epoch.
    """
    keys = entry.get("series") or tuple(table.rows[0].keys if table.rows else ())
    panels: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for row in table.rows:
        if "robust" in (found := held_out(row.runs)):
            name = named(row, [key for key in row.keys if key in keys], table.spec)
            rest = named(row, [key for key in row.keys if key not in keys], table.spec)
            panels.setdefault(name or row.label, {})[rest] = found
        else:
            log.warning("%s: %s isn't drawn (no val/robust in metrics)", table.name, row.label)
    if not panels:
        raise Undrawable("no run has val/robust in its metrics.jsonl")
    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    high = -(-len(panels) // columns)
    note = "On held-out images, under the attack of the validations; marked: best epoch"
    if any(len(row.runs) > 1 for row in table.rows):
        note += "; band: lowest to highest seed"
    figure = sheet(table, title_of(table, "epochs"), note, table.rows, max(3.6, 1.3 + 1.35 * high))
    grid = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False)
    rests = list(dict.fromkeys(rest for panel in panels.values() for rest in panel))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for place, (axes, name) in enumerate(zip(grid.flat, panels, strict=False)):
        others = [c for other in panels if other != name for c in panels[other].values()]
        _epochs_panel(axes, name, panels[name], others, rests)
        axes.tick_params(labelbottom=place + columns >= len(panels))
        if place >= columns * (high - 1):
            axes.set_xlabel("epoch")
        if place % columns == 0:
            axes.set_ylabel("accuracy, %")
    every = [c for panel in panels.values() for found in panel.values() for c in found.values()]
    low, high = min(c[2].min() for c in every), max(c[3].max() for c in every)
    percent_axis(grid[0, 0].yaxis, (low - 0.07 * (high - low) - 1, high + 0.07 * (high - low) + 1),
                 grid[0, 0].get_ylabel(), bins=4)  # fmt: skip
    figure.legend(handles=_key(rests, len(panels) > 1), loc="outside lower center", ncols=4,
                  columnspacing=1.2, handlelength=1.8)  # fmt: skip
    return figure, _fall(panels)


def _epochs_panel(axes: Any, name: str, mine: Any, others: Any, rests: Sequence[str]) -> None:
    for found in others:
        axes.plot(*found["robust"][:2], color="#c4c4c4", linewidth=0.8, zorder=1)
    for rest, found in mine.items():
        k = rests.index(rest)
        for tag, style in (("clean", "--"), ("robust", "-")):
            if tag in found:
                at, mean, low, high = found[tag]
                axes.fill_between(at, low, high, color=INK[k % len(INK)], alpha=0.18, linewidth=0)
                axes.plot(at, mean, style, color=INK[k % len(INK)], linewidth=1.3, zorder=3)
        at, mean = found["robust"][:2]
        top = int(np.argmax(mean))
        axes.plot(at[top], mean[top], MARKERS[k % len(MARKERS)], color=INK[k % len(INK)],
                  markeredgecolor="white", markersize=6.5, zorder=4)  # fmt: skip
    axes.set_title(wrapped(name, 24), fontsize=9)


def _key(rests: Sequence[str], ghosts: bool) -> list[Line2D]:
    """Of the figure: what styles mean, and, where a panel has several rows, what colours mean."""
    several = len(rests) > 1
    ink = "#333333" if several else INK[0]
    key = [Line2D([], [], color=ink, label="robust"),
           Line2D([], [], color=ink, linestyle="--", label="clean")]  # fmt: skip
    if ghosts:
        key.append(Line2D([], [], color="#c4c4c4", linewidth=1, label="other panels, robust"))
    for k, rest in enumerate(rests if several else ()):
        key.append(Line2D([], [], color=INK[k % len(INK)], marker=MARKERS[k % len(MARKERS)],
                          label=rest or "(others)"))  # fmt: skip
    return key


def _fall(panels: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> str:
    def of(curve: np.ndarray) -> float:
        return float(curve[1].max() - curve[1][-1])

    each = {f"{name} {rest}".strip(): found["robust"]
            for name, panel in panels.items() for rest, found in panel.items()}  # fmt: skip
    name, curve = max(each.items(), key=lambda item: of(item[1]))
    top = int(np.argmax(curve[1]))
    return (
        f"Held-out robust accuracy over the epochs of {counted(each)}; the largest fall from the"
        f" best epoch to the last is that of {name}: from {curve[1][top]:.1f} % (epoch"
        f" {curve[0][top]:.0f}) to {curve[1][-1]:.1f} %."
    )


def held_out(runs: Sequence[Path]) -> dict[str, np.ndarray]:
    """Of `robust` and `clean`: epochs, and mean, lowest and highest over the runs, in percent."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for tag, curve in _curves(run).items():
            for epoch, share in curve.items():
                found.setdefault(tag, {}).setdefault(epoch, []).append(100 * share)
    return {
        tag: np.array([(e, np.mean(v), min(v), max(v)) for e, v in sorted(curve.items())]).T
        for tag, curve in found.items()
    }


def _curves(run: Path) -> dict[str, dict[float, float]]:
    """What a run's validations found, by epoch; lines that are cut off or damaged don't count."""
    curves: dict[str, dict[float, float]] = {}
    try:
        lines = (run / "metrics.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return curves
    for line in lines:
        try:
            entry = json.loads(line)
            epoch = round(float(entry["epoch"]), 2)
            for tag in ("robust", "clean"):
                if f"val/{tag}" in entry and 0 <= (share := float(entry[f"val/{tag}"])) <= 1:
                    curves.setdefault(tag, {})[epoch] = share
        except (ValueError, LookupError, TypeError):
            continue
    return curves
