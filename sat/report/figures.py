"""The figures of tables, as PNG and SVG, the same bytes each time: `scatter` and `dots` of rows,
`lines` over a number that rows differ in, `epochs` of trainings."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullLocator
from PIL import Image

from sat.report.canvas import STYLE, frame, look, mark, sheet
from sat.report.rows import label_of, name_of
from sat.report.runs import Measure
from sat.report.spec import is_number
from sat.report.tables import Row, Table

COSTS = ("gradients", "multiply_adds", "parameters")  # an image in training, a forward, all
NOTE = (
    "Checkpoint chosen on held-out images; bars: 95 % intervals over seeds, or over test images"
    " where there is one seed, as far as the frame; small: each seed"
)


class Undrawable(ValueError):
    """A figure that lacks data: one line of why."""


@dataclass(frozen=True)
class Drawn:
    """A figure's files and what it shows; or, without files, why it is not drawn."""

    table: str  # Table.name
    text: str
    png: Path | None = None


def draw(tables: Sequence[Table], folder: Path) -> list[Drawn]:
    """Draws each table's figures into the folder, as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for table in tables:
            for n, entry in enumerate(table.experiment.spec.get("figures", ()), 1):
                kind = entry["kind"]
                text = f"{table.experiment.title}: {kind}"
                text += f" over {axis_name(entry['x'])}" if "x" in entry else ""
                try:
                    figure = KINDS[kind](table, entry)
                except Undrawable as fault:
                    drawn.append(Drawn(table.name, f"No figure {text}: {fault}."))
                    continue
                png, svg = (folder / f"{table.name}-{n}-{kind}.{end}" for end in ("png", "svg"))
                figure.savefig(png)
                Image.open(png).convert("RGB").quantize(64).save(
                    png, optimize=True
                )  # half as large
                figure.savefig(svg, metadata={"Date": None})
                drawn.append(Drawn(table.name, text, png))
    return drawn


def attack_name(attack: str) -> str:
    """`pgd20` as it is written: PGD-20."""
    found = re.fullmatch(r"(pgd|fgsm|apgd)(\d*)", attack)
    shown = "-".join(filter(None, found.groups())).upper() if found else attack
    return shown.replace("_", " ")


def axis_name(x: str) -> str:
    return name_of(x).replace("_", " ")


def measured(table: Table, x: str = "") -> dict[int, Any]:
    """The rows whose best checkpoint was measured with the judging attack, by their place in the
    table: with `x`, a number of theirs or clean accuracy; None where they lack it."""
    found = {}
    for k, row in enumerate(table.rows):
        if x == "clean":
            value = row.numbers.get(("best", "clean"))
        else:
            value = (getattr(row, x) or None) if x in COSTS else row.keys.get(x)
            value = float(value) if is_number(value) else None
        if ("best", table.attack) in row.numbers:
            found[k] = value
    if not found:
        raise Undrawable(f"no row was measured with {table.attack or 'an attack of all rows'}")
    return found


def panels(
    figure: Any, table: Table, rows: Sequence[Row], **shared: Any
) -> Iterator[tuple[Any, Measure]]:
    """Axes side by side, robust and then clean, with what they are to show of rows."""
    titles = {table.attack: f"robust ({attack_name(table.attack)})", "clean": "clean"}
    there = [name for name in titles if any(("best", name) in row.numbers for row in rows)]
    grid = figure.subplots(1, len(there), squeeze=False, **shared)
    for axes, name in zip(grid[0], there, strict=True):
        axes.set_title(titles[name])
        yield axes, ("best", name)


def scatter(table: Table, entry: Mapping[str, Any]) -> Any:
    """Robust over clean accuracy, or over a number: a numbered point a row, and the rows that no
    other beats in both accuracies."""
    x, robust = entry.get("x", "clean"), ("best", table.attack)
    at = {k: value for k, value in measured(table, x).items() if value is not None}
    rows = [table.rows[k] for k in at]
    if not rows:
        raise Undrawable(f"no row has {axis_name(x)}")
    handles = [
        Line2D([], [], **look(table.rows[k]), linestyle="", label=f"{k + 1} {table.rows[k].label}")
        for k in at
    ]
    note = NOTE + "; dashed: what no other row beats in both" * (x == "clean")
    figure = sheet(table, rows, note, handles=handles)
    axes = figure.subplots()
    for k, value in at.items():
        mark(axes, table.rows[k], value, table.rows[k].numbers[robust], str(k + 1))
    label = f"robust accuracy ({attack_name(table.attack)}), %"
    frame(axes, "y", [row.numbers[robust] for row in rows], label)
    if x != "clean":
        number_axis(axes, list(at.values()), x)
        return figure
    frame(axes, "x", at.values(), "clean accuracy, %")
    front = pareto(
        [(100 * c.mean, 100 * table.rows[k].numbers[robust].mean) for k, c in at.items()]
    )
    corners = [(0, front[0][1]), *front, (front[-1][0], 0)]
    axes.plot(*zip(*corners, strict=True), "--", drawstyle="steps-pre", color="#999999", zorder=1,
              linewidth=1)  # fmt: skip
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats (as good in both, better in one), by their first value."""
    beaten = lambda x, y: any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)  # noqa: E731
    return sorted({point for point in points if not beaten(*point)})


def dots(table: Table, entry: Mapping[str, Any]) -> Any:
    """A line a row: robust beside clean."""
    rows = [table.rows[k] for k in measured(table)]
    labels = [textwrap.fill(row.label, 34) for row in rows]
    count = len(rows) + "".join(labels).count("\n")
    figure = sheet(table, rows, NOTE, 0.8 + 0.21 * count)
    for axes, measure in panels(figure, table, rows, sharey=True):
        for k, row in enumerate(rows):
            if measure in row.numbers:
                mark(axes, row, row.numbers[measure], k)
        frame(axes, "x", [row.numbers[measure] for row in rows if measure in row.numbers])
    figure.axes[0].set_yticks(range(len(rows)), labels)
    figure.axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def lines(table: Table, entry: Mapping[str, Any]) -> Any:
    """Robust and, beside it, clean accuracy over a number that rows differ in, or over a cost. A row
    that has no such number (ReLU, over alpha) is a horizontal line."""
    x, labels = str(entry["x"]), table.experiment.spec.get("labels", {})
    at = measured(table, x)
    values = sorted({value for value in at.values() if value is not None})
    if len(values) < 2:
        raise Undrawable(f"{axis_name(x)} has no two values among the rows")
    series: dict[str, list[int]] = {}
    for k in sorted((k for k in at if at[k] is not None), key=lambda k: at[k]):
        keys = {key: table.rows[k].keys.get(key) for key in entry.get("series", ())}
        series.setdefault(label_of(keys, labels), []).append(k)
    level = [table.rows[k] for k in at if at[k] is None and x not in COSTS]
    handles: list[Line2D] = []
    for label, places in series.items():
        style = look(table.rows[places[0]])
        alike = sum(h.get_color() == style["color"] for h in handles) % 4
        style["linestyle"] = ("-", "--", ":", "-.")[alike]
        handles.append(Line2D([], [], **style, label=label))
    grey = [Line2D([], [], color="#666666", linestyle="--", label=row.label) for row in level]
    rows = [*(table.rows[k] for places in series.values() for k in places), *level]
    figure = sheet(table, rows, NOTE, handles=[*handles, *grey])
    for axes, measure in panels(figure, table, rows):
        for places, handle in zip(series.values(), handles, strict=True):
            there = [(at[k], table.rows[k]) for k in places if measure in table.rows[k].numbers]
            means = [(value, 100 * row.numbers[measure].mean) for value, row in there]
            axes.plot(*np.array(means).reshape(-1, 2).T, handle.get_linestyle(),
                      color=handle.get_color())  # fmt: skip
            for value, row in there:
                mark(axes, row, value, row.numbers[measure])
        for number in (row.numbers[measure] for row in level if measure in row.numbers):
            axes.axhspan(100 * number.low, 100 * number.high, color="#888888", alpha=0.12)
            axes.axhline(100 * number.mean, color="#666666", linestyle="--")
        frame(axes, "y", [row.numbers[measure] for row in rows if measure in row.numbers])
        number_axis(axes, values, x)
    return figure


def number_axis(axes: Any, values: Sequence[float], x: str) -> None:
    """Ticks at the values of a key, which are few; a log axis where they span much."""
    values = sorted({*values})
    if x in COSTS:
        axes.xaxis.set_major_formatter(EngFormatter())
    elif values[0] > 0 and values[-1] > 8 * values[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if x not in COSTS and len(values) <= 8:
        axes.set_xticks(values, [f"{value:.4g}" for value in values])
    axes.set_xlabel(axis_name(x))


def epochs(table: Table, entry: Mapping[str, Any]) -> Any:
    """Held-out accuracy over the training: a panel a row, the others grey in it; the mean over
    seeds in a band from the lowest to the highest, with a mark at the best epoch."""
    curves = {k: held_out(row) for k, row in enumerate(table.rows)}
    there = [k for k, curve in curves.items() if len(curve["robust"])]
    if not there:
        raise Undrawable("no run has val/robust in its metrics")
    columns = min(len(there), 2 if len(there) == 4 else 3)
    high = -(-len(there) // columns)
    note = "On held-out images, under the attack of the validations; solid: robust, dashed: clean,"
    note += " grey: the other panels' robust; marked: best epoch; band: lowest to highest seed"
    figure = sheet(table, [table.rows[k] for k in there], note, max(2.6, 0.5 + 1.35 * high))
    grid = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(there) :]:
        axes.set_visible(False)
    for k, axes in zip(there, grid.flat, strict=False):
        for other in there:
            axes.plot(*curves[other]["robust"][:, :2].T, color="#c4c4c4", linewidth=0.8, zorder=1)
        style = look(table.rows[k])
        for tag, line in (("clean", "--"), ("robust", "-")):
            at, mean, low, top = curves[k][tag].T
            axes.fill_between(at, low, top, color=style["color"], alpha=0.18, linewidth=0)
            axes.plot(at, mean, line, color=style["color"], linewidth=1.3, zorder=3)
        axes.plot(at[mean.argmax()], mean.max(), **style, markersize=6.5, zorder=4)
        axes.set_title(textwrap.fill(table.rows[k].label, 24))
        axes.set_ylim(0, 100)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    return figure


def held_out(row: Row) -> dict[str, np.ndarray]:
    """Of `robust` and `clean`: epoch, and mean, lowest and highest over the seeds in percent,
    [N, 4]."""
    found: dict[str, dict[float, list[float]]] = {"robust": {}, "clean": {}}
    for run in row.runs:
        for line in run.validations()[0]:
            for tag, curve in found.items():
                curve.setdefault(round(line["epoch"], 2), []).append(100 * line[f"val/{tag}"])
    return {
        tag: np.array([(e, np.mean(v), min(v), max(v)) for e, v in sorted(curve.items())])
        for tag, curve in found.items()
    }


KINDS = {"scatter": scatter, "dots": dots, "lines": lines, "epochs": epochs}
