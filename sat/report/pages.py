"""A report as a page of Markdown, and its tables as CSV."""

import csv
import io
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sat.loggers.markdown import grid, items, paragraph, plain
from sat.report.claims import LEVEL, count_of
from sat.report.rows import COSTS, Row, label_of, name_of, shown_as
from sat.report.runs import Measure
from sat.report.spec import COLLAPSE, OTHERS, Experiment
from sat.report.tables import Report, Table
from sat.statistics import Estimate

LEGEND = """Accuracies are of the checkpoint that held-out training images chose (best), or of the
last one. ±: 95 % interval of the mean over seeds (Student's t), on the same test images. [low,
high]: that interval where it ends at 0 or 100 %, and of one seed Wilson's over its test images,
which tells nothing of other seeds. Differences in points, with 95 % intervals, are paired by seed
(Student's t), so there is none where two rows share less than two; *: p < 0.05 after Holm's
correction over the differences of its column. (!): runs of this row raised alarms; its numbers are
in doubt. gradients: computed in a training for each image, k + 1 an epoch with PGD-k. Behind 'test
images' stands their checksum: where it differs, so do the images."""
RULE = """Verdicts are by the paired difference of two rows over seeds (Student's t). It supports a
claim, or contradicts it, where p < 0.05 after Holm's correction over the claims of its table, and
else says nothing; a claim of equality is supported where the 95 % interval lies within its bounds,
and contradicted where it lies beyond them. Collapses are compared by Fisher's exact test.
Each interval in brackets is of 95 % for itself. Not run: a row is missing."""


def markdown(report: Report, figures: Sequence[Any] = (), page: Path = Path("report.md")) -> str:
    """The report as a Markdown file at `page`, from where its links start."""
    parts = [report.preface.strip() or "# Results", paragraph(LEGEND)]
    if claims := glance(report.tables):
        parts += ["## The claims at a glance", paragraph(RULE), claims]
    for experiment, tables in groupby(report.tables, lambda table: table.experiment):
        code = f" (`{experiment.name}`)" * experiment.is_asked_for
        parts += [f"## {plain(experiment.title)}{code}", paragraph(experiment.question)]
        for table in tables:
            parts += [f"### {plain(table.place)}", paragraph(f"{table.setting}.")]
            parts += [grid(*cells_of(table))]
            for figure in (figure for figure in figures if figure.table == table.name):
                link = quote(os.path.relpath(figure.png, page.parent)) if figure.png else ""
                parts += [f"![{plain(figure.text)}]({link})" if link else paragraph(figure.text)]
            verdicts = [
                f"**{v.answer}**: {plain(f'{v.text} ({v.reason})')}" for v in table.verdicts
            ]
            facts = "; ".join(f"{name}: {fact}" for name, fact in (table.facts or {}).items())
            parts += [items(verdicts), paragraph(published(experiment)), paragraph(f"{facts}.")]
            parts += [items(map(plain, table.notes))]
    parts += [] if report.tables else ["No finished run."]
    parts += ["## In no table", items(map(plain, report.notes))] if report.notes else []
    return "\n\n".join(filter(None, parts)) + "\n"


def glance(tables: Sequence[Table]) -> str:
    """A line a claim: the verdict on each data set."""
    claims: dict[tuple[str, str], dict[str, str]] = {}
    for table in tables:
        for verdict in table.verdicts:
            told = claims.setdefault((table.experiment.name, verdict.text), {})
            told[table.place] = verdict.answer
    columns = list(dict.fromkeys(column for told in claims.values() for column in told))
    rows = [[*claim, *(told.get(each, "-") for each in columns)] for claim, told in claims.items()]
    return grid(["experiment", "claim", *columns], rows, len(columns) + 2) if rows else ""


# cells --------------------------------------------------------------------------------------------


def cells_of(table: Table) -> tuple[list[str], list[tuple[str, ...]], int]:
    """Head and rows of a table, and how many columns say what a row is: accuracies in percent, of
    the checkpoint best but for `last`. Rows without an experiment have a column for each key that
    tells them apart."""
    rows, experiment = table.rows, table.experiment
    apart = experiment.rows if experiment.name == OTHERS else ()
    columns = [(name_of(key), [shown_as(key, row.keys[key]) for row in rows]) for key in apart]
    called = [(row.beside if apart else row.label) + " (!)" * bool(row.alarms) for row in rows]
    columns.append(("", [text.strip() for text in called]))
    keys = len(columns)
    for name in COSTS:
        costs = [getattr(row, name) for row in rows]
        if len({*costs} - {None}) > 1:
            told = ["-" if cost is None else f"{cost:,.10g}" for cost in costs]
            columns.append((name.replace("_", "-"), told))
    columns.append(("seeds", [str(len(row.runs)) for row in rows]))
    if any(claim["measure"] == COLLAPSE for claim in experiment.claims):
        columns.append(("collapsed", [count_of(row) for row in rows]))
    found = dict.fromkeys(measure for row in rows for measure in row.numbers)
    best = [measure for measure in found if measure[0] == "best"]
    last = [m for m in found if m[0] == "last" and (m[1] == table.attack or not best)]
    for which, name in (*best, *last):
        title = f"{'last ' * (which == 'last')}{name}, %"
        columns.append((title, [number(row, (which, name)) for row in rows]))
    for name in ("clean", table.attack):
        if any(("best", name) in row.differences for row in rows):
            told = [difference(row.differences.get(("best", name))) for row in rows]
            columns.append((f"{name} - {table.reference}", told))
    return [title for title, _ in columns], [*zip(*(c for _, c in columns), strict=True)], keys


def number(row: Row, measure: Measure) -> str:
    """`78.4 ± 1.7`, with n where some seeds lack it; `78.3 [73.7, 82.3]` of one seed."""
    if (found := row.numbers.get(measure)) is None:
        return "-"
    mean, low, high = (100 * share for share in (found.mean, found.low, found.high))
    some = f" (n={len(found.seeds)})" if len(found.seeds) < len(row.runs) else ""
    if len(found.seeds) == 1 or low <= 0 or high >= 100:
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]{some}"
    return f"{mean:.1f} ± {high - mean:.1f}{some}"


def difference(found: Estimate | None) -> str:
    """`+1.3 (-6.6 to +9.3) *`, in points."""
    if found is None:
        return "-"
    points = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return points + " *" * (found.p < LEVEL)


def published(experiment: Experiment) -> str:
    """What others printed: `Published: ImageNet (Xie et al.): ReLU 68.8 clean, 33 robust; ...`."""
    if not (given := experiment.published):
        return ""
    told = []
    for row in given["rows"]:
        keys = {key: row[key] for key in experiment.rows if key in row}
        numbers = [f"{row[name]:.4g} {name}" for name in ("clean", "robust") if name in row]
        told.append(f"{label_of(keys, experiment.labels)} {', '.join(numbers)}")
    setting, source = given.get("setting", "setting not told"), given.get("source", "no source")
    return f"Published, not measured here: {setting} ({source}): {'; '.join(told)}."


def csv_of(table: Table) -> str:
    """A line for each row, checkpoint and measure; accuracies and differences as fractions."""
    seeds = sorted({run.seed for row in table.rows for run in row.runs})
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["row", *table.experiment.rows, *COSTS, "alarms", "checkpoint", "measure", "seeds",
           "images", "mean", "low", "high", *(f"seed {seed}" for seed in seeds), "difference",
           "difference_low", "difference_high", "p_holm"])  # fmt: skip
    for row in table.rows:
        told = [row.label, *row.keys.values(), *(getattr(row, cost) for cost in COSTS), row.alarms]
        for measure, found in row.numbers.items():
            of = row.differences.get(measure)
            cells = [*told, *measure, len(found.seeds), found.images]
            cells += [found.mean, found.low, found.high, *(found.seeds.get(k) for k in seeds)]
            cells += [of.mean, of.low, of.high, of.p] if of else [None] * 4
            write([f"{cell:.8g}" if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue()
