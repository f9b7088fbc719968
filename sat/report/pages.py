"""A report as text: Markdown, the terminal, and CSV.

`document` is the report as a list of blocks (kind and content); each format says how it writes a
block of each kind.
"""

import csv
import io
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sat.loggers import screen
from sat.report.rows import OTHERS, label_of
from sat.report.runs import Measure
from sat.report.study import Report, Table
from sat.report.tables import Difference, Row

Block = tuple[str, Any]
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
RULE = (
    "Verdicts ({}) are by the paired difference of two rows over seeds (Student's t). It supports a"
    " claim, or contradicts it, where p < 0.05 after Holm's correction over the claims of its"
    " table, and else says nothing; a claim of equality is supported where the 95 % interval lies"
    " within its bounds. Each interval in brackets is of 95 % for itself. Not run: a row is"
    " missing. Two networks of one seed decide nothing."
)

# the report as blocks -----------------------------------------------------------------------------


def document(report: Report, figures: Sequence[Any] = ()) -> list[Block]:
    """Every claim with what each data set says of it, then one section an experiment."""
    blocks: list[Block] = []
    head, rows = glance(report.tables)
    if rows:
        count = sum(len(table.verdicts) for table in report.tables)
        blocks += [("section", "The claims at a glance"), ("text", RULE.format(count))]
        blocks += [("claims", (head, rows))]
    before = None
    for table in report.tables:
        if (section := (table.experiment, table.title)) != before:
            code = f" (`{table.experiment}`)" * (table.experiment != OTHERS)
            blocks += [("section", table.title + code), ("text", table.spec.get("question") or "")]
            before = section
        mine = [figure for figure in figures if figure.table == table.name]
        blocks += table_blocks(table, mine)
    if report.notes:
        blocks += [("section", "In no table"), ("list", report.notes)]
    return [(kind, content) for kind, content in blocks if content]


def table_blocks(table: Table, figures: Sequence[Any]) -> list[Block]:
    """One table: numbers, figures, claims, and what is to be known of them."""
    head, rows = cells_of(table)
    shown = "\n".join(cell for row in rows for cell in row)
    legend = ["Accuracies of the checkpoint that held-out training images chose (best), or the"
              " last one.", *(line for sign, line in LEGENDS.items() if sign in shown)]  # fmt: skip
    place = table.dataset + f" ({table.number})" * (table.number > 1)
    blocks: list[Block] = [("place", place), ("text", f"{table.setting}.")]
    blocks += [("grid", (head, rows))]
    blocks += [("text", " ".join(legend)), *(("figure", figure) for figure in figures)]
    if table.verdicts:
        blocks += [("text", "What is claimed, and what these numbers say of it:")]
        told = [(v.answer, f"{v.text} ({v.reason})") for v in table.verdicts]
        blocks += [("verdicts", told)]
    blocks += [("text", published(table.spec))]
    facts = "; ".join(f"{name}: {text}" for name, text in table.facts.items())
    return [*blocks, ("text", f"{facts}." * bool(facts)), ("list", table.notes)]


def glance(tables: Sequence[Table]) -> tuple[list[str], list[list[str]]]:
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


# cells --------------------------------------------------------------------------------------------


def cells_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: accuracies in percent, of the checkpoint best but for `last`."""
    rows, attack = table.rows, table.attack
    columns: list[tuple[str, Any]] = [("", lambda row: row.label + " (!)" * bool(row.alarms))]
    for name in ("parameters", "multiply_adds", "gradients"):
        if len({getattr(row, name) for row in rows} - {None}) > 1:
            title = name.replace("_", "-")
            columns.append((title, lambda row, name=name: count(getattr(row, name))))
    columns.append(("seeds", lambda row: str(len(row.runs))))
    for measure in shown(table):
        title = f"{'last ' * (measure[0] == 'last')}{measure[1]}, %"
        columns.append((title, lambda row, m=measure: number(row, m)))
    for measure in (("best", "clean"), ("best", attack)) if table.reference else ():
        if any(measure in row.differences for row in rows):
            title = f"{measure[1]} - {table.reference}"
            columns.append((title, lambda row, m=measure: difference(row.differences.get(m))))
    return [title for title, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def shown(table: Table) -> list[Measure]:
    """The measures that have a column: all of best, and of last the judging attack's."""
    found = dict.fromkeys(measure for row in table.rows for measure in row.numbers)
    best = [measure for measure in found if measure[0] == "best"]
    last = [measure for measure in found if measure[0] == "last"]
    return [*best, *(m for m in last if m[1] == table.attack or not best)]


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


def published(spec: Mapping[str, Any]) -> str:
    """What others printed: `Published: ImageNet (Xie et al.): ReLU 68.8 clean, 33 robust; ...`."""
    if not (given := spec.get("published")):
        return ""
    labels, told = spec.get("labels", {}), []
    for row in given.get("rows", ()):
        keys = {key: row[key] for key in spec["rows"] if key in row}
        numbers = [f"{row[name]:.4g} {name}" for name in ("clean", "robust") if name in row]
        told.append(f"{label_of(keys, labels)} {', '.join(numbers)}")
    setting, source = given.get("setting", "setting not told"), given.get("source", "no source")
    return f"Published, not measured here: {setting} ({source}): {'; '.join(told)}."


# terminal, Markdown, CSV --------------------------------------------------------------------------


def terminal(report: Report) -> str:
    """The report as plain text, its tables aligned; claims stand below their tables alone."""
    write = {
        "section": lambda text: text.replace("`", ""),
        "grid": lambda grid: screen.table(*grid),
        "verdicts": lambda told: "\n".join(f"{answer}: {text}" for answer, text in told),
        "list": lambda lines: "\n".join(f"  {line}" for line in lines),
    }
    blocks = [block for block in document(report) if block[0] != "place"]
    if blocks and blocks[0][1] == "The claims at a glance":
        blocks = [*blocks[3:], *blocks[1:2]]
    parts = [write.get(kind, str)(content) for kind, content in blocks]
    return "\n\n".join(parts if report.tables else ["no finished run", *parts])


def markdown(report: Report, figures: Sequence[Any], page: Path) -> str:
    """The report as a Markdown file at `page`, from where its links start."""

    def picture(figure: Any) -> str:
        link = os.path.relpath(figure.png, page.parent).replace(os.sep, "/").replace(" ", "%20")
        return f"![{plain(figure.text)}]({link})"

    write = {
        "section": lambda text: f"## {text}",
        "place": lambda text: f"### {plain(text)}",
        "grid": lambda grid: table_of(*grid, "---:", plain),
        "claims": lambda grid: table_of(*grid, "---", answered),
        "figure": picture,
        "verdicts": lambda told: "\n".join(wrap(f"**{a}**: {plain(t)}", "- ") for a, t in told),
        "list": lambda lines: "\n".join(wrap(plain(line), "- ") for line in lines),
        "text": lambda text: wrap(plain(text)),
    }
    parts = [report.preface.strip() or "# Results"]
    parts += [write[kind](content) for kind, content in document(report, figures)]
    return "\n\n".join(parts) + "\n"


def wrap(text: str, first: str = "") -> str:
    """Text in lines of a plain terminal, none of which begins like an item of a list."""
    lines = textwrap.wrap(text, 98, break_long_words=False, break_on_hyphens=False)
    lines = [re.sub(r"^(\d*)([-+.)]) ", r"\1\\\2 ", line) for line in lines]
    return first + f"\n{' ' * len(first)}".join(lines)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], side: str, cell: Any) -> str:
    """A Markdown table, its first column to the left and the others to that side."""
    marks = ["---", *([side] * (len(head) - 1))]
    lines = [map(plain, head), marks, *(map(cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def answered(cell: str) -> str:
    """A cell of the claims, its answer in bold."""
    answer, colon, reason = cell.partition(": ")
    known = answer in ("supports", "contradicts", "says nothing", "not run")
    return f"**{answer}**: {plain(reason)}" if colon and known else plain(cell)


def plain(text: str) -> str:
    """Text that Markdown takes as it is: in no cell a bar, nowhere emphasis or a tag."""
    for sign in "\\|*_<[]`&~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def csv_of(table: Table) -> str:
    """A line for each row, checkpoint and measure; accuracies and differences as fractions."""
    seeds = sorted({seed for row in table.rows for seed in row.seeds})
    keys = list(table.spec["rows"])
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["row", *keys, "parameters", "multiply_adds", "gradients", "checkpoint", "measure",
           "seeds", "images", "mean", "low", "high",
           *(f"seed {seed}" for seed in seeds), "difference", "difference_low", "difference_high",
           "p", "test", "significant"])  # fmt: skip
    for row in table.rows:
        told = [row.label, *(row.keys[key] for key in keys)]
        told += [row.parameters, row.multiply_adds, row.gradients]
        for measure, found in row.numbers.items():
            values = [len(found.seeds), found.images, found.mean, found.low, found.high]
            values += [found.seeds.get(seed) for seed in seeds]
            d = row.differences.get(measure)
            tested = [d.mean, d.low, d.high, d.p, d.test, d.marked] if d else [None] * 6
            cells = [*told, *measure, *values, *tested]
            write([f"{cell:.8g}" if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue()
