"""A report as text: Markdown, the terminal, and CSV."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs import Measure
from seeds import LEGEND as OTHERS_LEGEND
from seeds import averages
from study import Difference, Report, Row, Table

from sat.loggers import screen

FILE = "report.md"
LEGENDS = {
    "±": "±: 95 % interval of the mean over seeds (Student's t), on the same test images.",
    "[": "[low, high], without ±: one seed, and Wilson's 95 % interval over its test images, which"
    " tells nothing of other seeds.",
    " to ": "Differences in points, with 95 % intervals, paired by seed (Student's t).",
    "*": "*: p < 0.05 after Holm's correction over the differences of its column.",
    "(!)": "(!): runs of this row raised alarms; its numbers are in doubt.",
    "†": "†: one seed each, compared image by image (Newcombe's interval, McNemar's exact test):"
    " this tells two networks apart, not their configurations.",
}


def cells_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: accuracies in percent, of the checkpoint best but for `last`."""
    rows, attack = table.rows, table.attack
    columns: list[tuple[str, Any]] = [("", lambda row: row.label + " (!)" * bool(row.alarms))]
    for name in ("parameters", "multiply_adds", "gradients"):
        title = name.replace("_", "-")
        if len({getattr(row, name) for row in rows} - {None}) > 1:
            columns.append((title, lambda row, name=name: count(getattr(row, name))))
    columns.append(("seeds", lambda row: str(len(row.runs))))
    for measure in shown(table):
        columns.append((title_of(measure), lambda row, m=measure: number(row, m)))
    if table.reference is not None:
        for measure in (("best", "clean"), ("best", attack)):
            if any(measure in row.differences for row in rows):
                title = f"{measure[1]} - {table.reference}"
                columns.append((title, lambda row, m=measure: difference(row.differences.get(m))))
    for name in ("clean", "robust"):
        if any(name in (row.published or {}) for row in rows):
            columns.append((f"published {name}", lambda row, name=name: published(row, name)))
    return [title for title, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def shown(table: Table) -> list[Measure]:
    """The measures that have a column: all of best, and of last the judging attack's."""
    found = dict.fromkeys(measure for row in table.rows for measure in row.numbers)
    best = [measure for measure in found if measure[0] == "best"]
    last = [measure for measure in found if measure[0] == "last"]
    return [*best, *(m for m in last if m[1] == table.attack or not best)]


def title_of(measure: Measure) -> str:
    return f"{'last ' * (measure[0] == 'last')}{measure[1]}, %"


def count(value: float | None) -> str:
    """`308,538`, `1.82e9`."""
    if value is None:
        return "-"
    if value < 1e8:
        return f"{value:,.10g}"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits}e{int(power)}"


def number(row: Row, measure: Measure) -> str:
    """`78.4 ± 1.7`, with n where some seeds lack it; `78.3 [73.7, 82.3]` of one seed."""
    if (found := row.numbers.get(measure)) is None:
        return "-"
    some = f" (n={len(found.seeds)})" if len(found.seeds) < len(row.runs) else ""
    if len(found.seeds) == 1:
        return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]{some}"
    return f"{100 * found.mean:.1f} ± {100 * (found.high - found.mean):.1f}{some}"


def difference(found: Difference | None) -> str:
    if found is None:
        return "-"
    mark = " *" * (found.marked and found.test == "seeds") + " †" * (found.test == "images")
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}){mark}"


def published(row: Row, name: str) -> str:
    found = (row.published or {}).get(name)
    return "-" if found is None else f"{found:.4g}"


def legend(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the signs mean that stand in a table's cells."""
    text = "\n".join(cell for row in rows for cell in row)
    checkpoint = "Accuracies of the checkpoint that held-out training images chose (best), or the"
    return [f"{checkpoint} last one.", *(line for sign, line in LEGENDS.items() if sign in text)]


def remarks(table: Table) -> list[str]:
    """What stands under a table, beside its legend."""
    lines = []
    if given := table.spec.get("published"):
        setting, source = given.get("setting", "setting not told"), given.get("source", "no source")
        lines.append(f"Published: {setting} ({source}).")
    lines.append("; ".join(f"{name}: {text}" for name, text in table.facts.items()) + ".")
    return lines


def heading(table: Table) -> str:
    return str(table.spec.get("title") or table.experiment)


# terminal -----------------------------------------------------------------------------------------


def terminal(report: Report) -> str:
    """The report as plain text, its tables aligned."""
    parts = []
    for table in report.tables:
        head, rows = cells_of(table)
        lines = [f"{heading(table)} ({table.experiment}): {table.setting}"]
        lines += [table.spec["question"]] if table.spec.get("question") else []
        lines += [screen.table(head, rows), "", *legend(rows), *remarks(table)]
        lines += [f"{v.answer}: {v.text} ({v.reason})" for v in table.verdicts]
        lines += [rule_of([table])] if table.verdicts else []
        parts.append("\n".join([*lines, *table.notes]))
    if report.others:
        head, rows, notes = averages(report.others)
        parts.append("\n".join([screen.table(head, rows), "", *notes, OTHERS_LEGEND]))
    if not parts:
        parts.append("no finished run")
    if report.notes:
        parts.append("\n".join(["Not in the table:", *(f"  {line}" for line in report.notes)]))
    return "\n\n".join(parts)


# Markdown -----------------------------------------------------------------------------------------


def markdown(report: Report, figures: Sequence[Any], page: Path) -> str:
    """The report as a Markdown file at `page`, from where its links start."""
    parts = [report.preface.strip() or "# Results", *glance(report)]
    experiments = dict.fromkeys(table.experiment for table in report.tables)
    for experiment in experiments:
        mine = [table for table in report.tables if table.experiment == experiment]
        parts.append(f"## {heading(mine[0])} (`{experiment}`)")
        parts.append(str(mine[0].spec.get("question") or ""))
        for table in mine:
            parts += section(table, [f for f in figures if f.table == table.name], page)
    if report.others:
        head, rows, notes = averages(report.others)
        parts += ["## Other runs", grid(head, rows), " ".join(OTHERS_LEGEND.split()), listed(notes)]
    if report.notes:
        parts += ["## In no table", listed(report.notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def glance(report: Report) -> list[str]:
    """Every claim with what the numbers of each data set say of it."""
    head, rows = glance_of(report.tables)
    if not rows:
        return []
    lines = ["| " + " | ".join(map(plain, head)) + " |", "| --- " * len(head) + "|"]
    for experiment, text, *cells in rows:
        told = [plain(experiment), plain(text), *map(answered, cells)]
        lines.append("| " + " | ".join(told) + " |")
    return ["## The claims at a glance", rule_of(report.tables), "\n".join(lines)]


def answered(cell: str) -> str:
    """A cell of the claims, its answer in bold."""
    answer, colon, reason = cell.partition(": ")
    return f"**{answer}**: {plain(reason)}" if colon else plain(cell)


def glance_of(tables: Sequence[Table]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: experiment, claim, and a cell a data set (a further setting of one has its
    number behind): `supports: silu against relu: +1.2 points ...`."""
    judged = [table for table in tables if table.verdicts]
    columns = list(dict.fromkeys((table.dataset, table.number) for table in judged))
    claims: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for table in judged:
        for v in table.verdicts:
            cells = claims.setdefault((table.experiment, v.text), {})
            cells[table.dataset, table.number] = f"{v.answer}: {v.reason}"
    head = ["experiment", "claim", *(name + f" ({n})" * (n > 1) for name, n in columns)]
    rows = [
        [experiment, text, *(cells.get(column, "-") for column in columns)]
        for (experiment, text), cells in claims.items()
    ]
    return head, rows


def rule_of(tables: Sequence[Table]) -> str:
    """How a verdict is reached."""
    count = sum(len(table.verdicts) for table in tables)
    return (
        f"Verdicts ({count}) are by the paired difference of two rows over seeds (Student's t). It"
        " supports a claim, or contradicts it, where p < 0.05 after Holm's correction over the"
        " claims of its table, and else says nothing; a claim of equality is supported where the"
        " 95 % interval lies within its bounds. Each interval in brackets is of 95 % for itself."
        " Not run: a row is missing. Two networks of one seed decide nothing."
    )


def section(table: Table, figures: Sequence[Any], page: Path) -> list[str]:
    """One table of an experiment: numbers, figures, claims, and what is to be known of them."""
    head, rows = cells_of(table)
    parts = [f"### {plain(table.setting)}", grid(head, rows), plain(" ".join(legend(rows)))]
    for figure in figures:
        link = os.path.relpath(figure.png, page.parent).replace(os.sep, "/").replace(" ", "%20")
        parts.append(f"![{plain(figure.text)}]({link})")
    claims = [f"**{v.answer}**: {plain(v.text)} ({plain(v.reason)})" for v in table.verdicts]
    parts += ["What the paper claims, and what these numbers say of it:"] if claims else []
    parts += ["\n".join(f"- {line}" for line in claims), *map(plain, remarks(table))]
    return [*parts, listed(table.notes)]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)


def listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown takes as it is: in no cell a bar, nowhere emphasis or a tag."""
    for sign in "\\|*_<[]`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


# CSV ----------------------------------------------------------------------------------------------


def csv_of(table: Table) -> str:
    """A line for each row, checkpoint and measure; accuracies and differences as fractions."""
    seeds = sorted({seed for row in table.rows for seed in row.seeds})
    keys = list(table.spec["rows"])
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["row", *keys, "parameters", "multiply_adds", "gradients", "published clean",
           "published robust", "checkpoint", "measure", "seeds", "images", "mean", "low", "high",
           *(f"seed {seed}" for seed in seeds), "difference", "difference_low", "difference_high",
           "p", "test", "significant"])  # fmt: skip
    for row in table.rows:
        told = [row.label, *(row.keys[key] for key in keys)]
        told += [row.parameters, row.multiply_adds, row.gradients]
        said = row.published or {}
        told += [said[name] / 100 if name in said else None for name in ("clean", "robust")]
        for measure, found in row.numbers.items():
            values = [len(found.seeds), found.images, found.mean, found.low, found.high]
            values += [found.seeds.get(seed) for seed in seeds]
            cells = [*told, *measure, *values, *tested(row.differences.get(measure))]
            write([f"{cell:.8g}" if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue()


def tested(found: Difference | None) -> list[Any]:
    if found is None:
        return [None] * 6
    return [found.mean, found.low, found.high, found.p, found.test, found.marked]
