"""The figures of a study: each of a table's `figures` as PNG and SVG, the same bytes each time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from canvas import (
    INK,
    MARKERS,
    STYLE,
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
from PIL import Image
from placing import beside
from study import Number, Row, Table
from trends import epochs, lines


@dataclass(frozen=True)
class Figure:
    table: str  # Table.name
    setting: str  # Table.setting: two tables may share a name, but not this
    title: str
    png: Path
    svg: Path
    text: str  # what is seen, in a sentence, for those who can't


def draw(tables: Sequence[Table], folder: Path) -> list[Figure]:
    """RowRng each table's figures into the folder; what can't be drawn is logged in a line."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for table, stem in zip(tables, stems(tables), strict=True):
            for n, entry in enumerate(table.spec.get("figures") or (), 1):
                kind = entry.get("kind")
                try:
                    if kind not in KINDS:
                        raise Undrawable(f"no such kind; write one of {', '.join(KINDS)}")
                    made, text = KINDS[kind](table, entry)
                except Undrawable as fault:
                    log.warning("%s: figure %d (%s) left out: %s", stem, n, kind, fault)
                    continue
                png, svg = (folder / f"{stem}-{n}-{kind}.{ending}" for ending in ("png", "svg"))
                _save(made, png)
                made.savefig(svg, metadata={"Date": None})
                svg.write_text(_shortened(svg.read_text("utf-8")), "utf-8")
                title = title_of(table, kind)
                drawn.append(Figure(table.name, table.setting, title, png, svg, text))
    return drawn


def _save(figure: Any, path: Path) -> None:
    """A PNG of 256 colours: half the bytes, and no eye sees it."""
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    few = drawn.quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True, dpi=(figure.dpi, figure.dpi))


def _shortened(svg: str) -> str:
    """Paths to a hundredth of a point: half the bytes, and no eye sees it."""
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)


def stems(tables: Sequence[Table]) -> list[str]:
    """How the files of each table begin: its name, and a number where a name comes again."""
    taken: list[str] = []
    for table in tables:
        stem = name = re.sub(r"[^\w.+=-]+", "_", table.name)
        count = 1
        while stem in taken:
            stem = f"{name}_{(count := count + 1)}"
        taken.append(stem)
    return taken


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
    note = bars_note(*zip(*pairs, strict=True)) + "; dashed: Pareto front"
    note += alarms_note(rows)
    figure = sheet(table, title_of(table, "scatter"), note, rows)
    axes = figure.subplots()
    percent_axis(axes.xaxis, x, "clean accuracy, %")
    percent_axis(axes.yaxis, y, f"robust accuracy, %,\nunder {attack_name(table.attack)}")
    means = [(100 * clean.mean, 100 * robust.mean) for clean, robust in pairs]
    front = pareto(means)
    corners = [(x[0], means[front[0]][1]), *(means[k] for k in front), (means[front[-1]][0], y[0])]
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-pre", color="#999999", linestyle="--",
              linewidth=1, zorder=1)  # fmt: skip
    specks = []
    for k, (clean, robust) in enumerate(pairs):
        colour, (at, up) = INK[k % len(INK)], means[k]
        shared = [seed for seed in clean.seeds if seed in robust.seeds]
        seeds = [(100 * clean.seeds[seed], 100 * robust.seeds[seed]) for seed in shared]
        axes.errorbar(at, up, bars(robust), bars(clean), color=colour, linewidth=1, alpha=0.7)
        if len(seeds) > 1:
            axes.plot(*zip(*seeds, strict=True), ".", color=colour, alpha=0.35, markersize=5,
                      markeredgewidth=0)  # fmt: skip
        if rows[k].alarms:
            cross(axes, at, up, colour)
        else:
            axes.plot(at, up, MARKERS[k % len(MARKERS)], color=colour, zorder=4)
        specks += seeds
        specks += [(value, up) for value in np.linspace(*reach(clean), 40)]
        specks += [(at, value) for value in np.linspace(*reach(robust), 40)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    beside(axes, means, [wrapped(row.label) for row in rows], specks)
    on = ", ".join(_told(rows[k], table) for k in front)
    kind = f"Clean against robust accuracy ({attack_name(table.attack)}) of {counted(rows)}"
    return figure, f"{kind}; on the Pareto front: {on}; {_extremes(rows, table)}."


def _told(row: Row, table: Table) -> str:
    clean, robust = best(row, "clean"), best(row, table.attack)
    return f"{row.label} ({100 * clean.mean:.1f} % clean, {100 * robust.mean:.1f} % robust)"


def _extremes(rows: Sequence[Row], table: Table) -> str:
    by = sorted(rows, key=lambda row: best(row, table.attack).mean)
    low, high = (f"{row.label}, {100 * best(row, table.attack).mean:.1f} %"
                 for row in (by[0], by[-1]))  # fmt: skip
    return f"most robust: {high}; least: {low}"


def dots(table: Table, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """A line a row: robust beside clean with intervals and seeds; published numbers apart."""
    rows = measured(table, table.attack)
    names = [table.attack] + ["clean"] * any(("best", "clean") in row.numbers for row in rows)
    published = any(row.published for row in rows)
    differences = [row.differences.get(("best", table.attack)) for row in rows]
    starred = [k for k, d in enumerate(differences) if d and d.marked and d.test == "seeds"]
    shown = [[best(row, name) for row in rows if ("best", name) in row.numbers] for name in names]
    note = bars_note(*shown) + alarms_note(rows)
    if starred:
        note += "; *: differs from the reference, p < 0.05 after Holm's correction"
    if published:
        said = table.spec.get("published", {})
        note += f". Published: {said.get('setting', '')} ({said.get('source', 'no source')}), "
        note += "filled: robust, open: clean"
    lines = sum(1 + wrapped(row.label).count("\n") for row in rows)
    figure = sheet(table, title_of(table, "dots"), note, rows, max(2.9, 1.9 + 0.21 * lines))
    panels = figure.subplots(
        1, len(names) + published, sharey=True, squeeze=False,
        width_ratios=[3, 2][: len(names)] + [2] * published,
    )[0]  # fmt: skip
    for axes, name, place in zip(panels, names, (0, 1), strict=False):
        _measured_dots(axes, rows, name, place)
    for k in starred:
        number, edge = best(rows[k], table.attack), panels[0].get_xlim()[1]
        end = min(max(reach(number)[1], *(100 * s for s in number.seeds.values())), edge)
        panels[0].annotate("*", (end, k), (4, -2), textcoords="offset points", fontsize=11,
                           va="center", annotation_clip=False)  # fmt: skip
    if published:
        _published_dots(panels[-1], rows)
    panels[0].set_yticks(range(len(rows)), [wrapped(row.label) for row in rows])
    panels[0].set_ylim(len(rows) - 0.3, -0.6)
    text = f"Robust accuracy ({attack_name(table.attack)}) of {counted(rows)} with 95 % intervals"
    return figure, f"{text}; {_extremes(rows, table)}."


def _measured_dots(axes: Any, rows: Sequence[Row], name: str, place: int) -> None:
    found = {k: best(row, name) for k, row in enumerate(rows) if ("best", name) in row.numbers}
    limits = window(list(found.values()))
    robust = name != "clean"
    told = f"robust accuracy, %,\nunder {attack_name(name)}" if robust else "clean\naccuracy, %"
    percent_axis(axes.xaxis, limits, told, bins=6 if robust else 4)
    axes.set_title("robust" if robust else "clean", fontsize=9)
    for k, number in found.items():
        if len(number.seeds) > 1:
            seeds = [100 * share for share in number.seeds.values()]
            axes.plot(seeds, [k + 0.27] * len(seeds), ".", color=INK[place], alpha=0.5,
                      markersize=5, markeredgewidth=0)  # fmt: skip
        axes.errorbar(
            100 * number.mean, k, xerr=bars(number), color=INK[place], marker="os"[place],
            markerfacecolor=INK[place] if robust else "white",
        )  # fmt: skip
        if rows[k].alarms:
            cross(axes, 100 * number.mean, k, INK[place])
    axes.tick_params(axis="y", length=0)


def _published_dots(axes: Any, rows: Sequence[Row]) -> None:
    given = [
        (k, name, row.published[name])
        for k, row in enumerate(rows)
        for name in ("robust", "clean")
        if row.published and name in row.published
    ]
    numbers = [Number(v / 100, v / 100, v / 100, {}) for *_, v in given]
    percent_axis(axes.xaxis, window(numbers), "published\naccuracy, %", bins=3)
    for k, name, value in given:
        axes.plot(value, k, "D", color="#777777", markersize=5,
                  markerfacecolor="#777777" if name == "robust" else "white")  # fmt: skip
    axes.set_title("published,\nnot measured here", fontsize=9, color="#555555")
    axes.set_facecolor("#f6f6f6")
    axes.tick_params(axis="y", length=0)


KINDS = {"scatter": scatter, "dots": dots, "lines": lines, "epochs": epochs}
