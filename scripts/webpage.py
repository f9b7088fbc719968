"""The report as one HTML file that needs nothing beside it: no network, no script, no fonts."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from canvas import attack_name
from plots import Figure
from study import Difference, Measure, Number, Row, Table

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ANSWERS = {"supports": ("yes", "✓"), "contradicts": ("no", "✗")}  # else: says nothing
CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #5c5c5c; --line: #d8d8d8;
  --shade: #f4f5f7; --yes: #00704f; --no: #b04300; --link: #005a93; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #17191c; --soft: #a8a8a8;
  --line: #3a3d42; --shade: #22252a; --yes: #4cc9a0; --no: #ff9a5c; --link: #7cc4f5; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 900px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; } h2 { margin: 0; font-size: 1.35rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } a { color: var(--link); }
section { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 2px solid var(--line); }
.setting, small, figcaption, .fine { color: var(--soft); }
.setting { margin: .1rem 0 .6rem; } .fine, figcaption { font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { vertical-align: bottom; border-bottom-width: 2px; white-space: normal; }
td small { display: block; font-size: .78rem; } .published { background: var(--shade); }
th.published, td.published { padding-left: .7rem; }
.verdicts { list-style: none; padding: 0; } .verdicts li { padding: .3rem 0 .3rem .8rem;
  margin: .4rem 0; border-left: 4px solid var(--line); } .verdicts b { color: var(--soft); }
.verdicts .yes { border-color: var(--yes); } .yes b { color: var(--yes); }
.verdicts .no { border-color: var(--no); } .no b { color: var(--no); }
figure { margin: 1.2rem 0; } figure svg { display: block; width: 100%; max-width: 720px;
  height: auto; background: #fff; border-radius: 4px; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
@media print { body { max-width: none; font-size: 11pt; padding: 0; } nav { display: none; }
  figure, .verdicts li, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def page(
    title: str,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    notes: Sequence[str],
    preface: str,
) -> str:
    """The whole page; `preface` is plain text with empty lines between paragraphs."""
    said = "".join(f"<p>{escape(part)}</p>\n" for part in re.split(r"\n\s*\n", preface.strip()))
    contents = "".join(
        f'<li><a href="#table-{n}">{escape(_title(table))}</a> '
        f"<small>{escape(table.setting)}</small></li>\n"
        for n, table in enumerate(tables, 1)
    )
    numbered = list(enumerate(figures, 1))
    sections = "".join(
        _section(n, table, [each for each in numbered if _of(each[1], table)])
        for n, table in enumerate(tables, 1)
    )
    left_out = f"<section>\n<h2>Left out</h2>\n{_list(notes)}</section>\n" if notes else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{said}<nav>\n<h3>Contents</h3>\n<ol>\n{contents}</ol>\n</nav>\n"
        f"{sections}{left_out}</body>\n</html>\n"
    )


def _title(table: Table) -> str:
    return str(table.spec.get("title", table.experiment))


def _of(figure: Figure, table: Table) -> bool:
    return (figure.table, figure.setting) == (table.name, table.setting)


def _list(lines: Sequence[str]) -> str:
    return "<ul>\n" + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>\n"


def _section(n: int, table: Table, figures: Sequence[tuple[int, Figure]]) -> str:
    parts = [
        f'<section id="table-{n}">\n<h2>{escape(_title(table))}</h2>\n',
        f'<p class="setting">{escape(table.setting)}</p>\n',
    ]
    if question := table.spec.get("question"):
        parts.append(f"<p>{escape(str(question))}</p>\n")
    parts.append(f'<div class="wide">{_table(table)}</div>\n{_legend(table)}')
    if table.verdicts:
        parts.append(f"<h3>Claims</h3>\n{_verdicts(table)}")
    parts += [_figure(*each) for each in figures]
    facts = "; ".join(f"{name}: {text}" for name, text in table.facts.items())
    parts.append(f'<p class="fine">{escape(facts)}</p>\n' if facts else "")
    if table.notes:
        parts.append(f"<h3>Notes</h3>\n{_list(table.notes)}")
    return "".join(parts) + "</section>\n"


def _verdicts(table: Table) -> str:
    items = []
    for verdict in table.verdicts:
        kind, mark = ANSWERS.get(verdict.answer, ("none", "–"))
        items.append(
            f'<li class="{kind}"><b>{mark} {escape(verdict.answer)}</b> {escape(verdict.text)}'
            f"<br><small>{escape(verdict.reason)}</small></li>\n"
        )
    return f'<ul class="verdicts">\n{"".join(items)}</ul>\n'


def _table(table: Table) -> str:
    measures = list(dict.fromkeys(measure for row in table.rows for measure in row.numbers))
    attacks = [m for m in measures if m[0] == "best" and m[1] not in ("clean", table.attack)]
    columns = [("best", "clean"), ("best", table.attack), *attacks, ("last", table.attack)]
    columns = [measure for measure in columns if measure in measures]
    compared = [m for m in columns if any(m in row.differences for row in table.rows)]
    published = [
        name
        for name in ("clean", "robust")
        if any(row.published and name in row.published for row in table.rows)
    ]
    heads = [
        "",
        "seeds",
        *(_head(m) for m in columns),
        *(f"{_head(m)}, difference" for m in compared),
    ]
    cells = "".join(f"<th>{escape(head)}</th>" for head in heads)
    cells += "".join(f'<th class="published">published {name}</th>' for name in published)
    body = "".join(_row(row, columns, compared, published) for row in table.rows)
    return f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _head(measure: Measure) -> str:
    checkpoint, name = measure
    said = "clean" if name == "clean" else f"robust, {attack_name(name)}"
    return said if checkpoint == "best" else f"{said}, {checkpoint}"


def _row(
    row: Row, columns: Sequence[Measure], compared: Sequence[Measure], published: Sequence[str]
) -> str:
    counts = sorted({len(number.seeds) for number in row.numbers.values()})
    cells = [" to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
             if counts else "0"]  # fmt: skip
    cells += [_number(row.numbers.get(measure)) for measure in columns]
    cells += [_difference(row.differences.get(measure)) for measure in compared]
    told = row.published or {}
    shown = "".join(f"<td>{cell}</td>" for cell in cells)
    shown += "".join(
        f'<td class="published">{told[name]:.1f}</td>'
        if name in told
        else '<td class="published"></td>'
        for name in published
    )
    return f'<tr><th scope="row">{escape(row.label)}</th>{shown}</tr>\n'


def _number(number: Number | None) -> str:
    if number is None:
        return "–"
    low, high = (100 * min(max(share, 0), 1) for share in (number.low, number.high))
    return f"{100 * number.mean:.1f}<small>{low:.1f} to {high:.1f}</small>"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    star = " *" if found.marked else ""
    ends = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}</small><small>p = {found.p:.2g}"
    return f"{100 * found.mean:+.1f}{star}<small>{ends}</small>".replace("-", "−")


def _legend(table: Table) -> str:
    said = "Percent, of the checkpoint that held-out images chose, unless it says last; below each"
    said += " its 95 % interval."
    if any(row.differences for row in table.rows):
        keys = (table.spec.get("reference") or {}).items()
        row = ", ".join(f"{key} {value}" for key, value in keys)
        said += (
            f" Differences are to {row or 'the reference'}; *: p < 0.05 after Holm's correction."
        )
    source: Mapping[str, object] = table.spec.get("published") or {}
    if any(row.published for row in table.rows):
        said += f" Published, not measured here: {source.get('setting', 'setting unknown')}"
        said += f" ({source.get('source', 'source unknown')})."
    return f'<p class="fine">{escape(said)}</p>\n'


def _figure(n: int, figure: Figure) -> str:
    return (
        f"<figure>\n{inline(figure.svg, f'figure-{n}-', figure.text)}\n"
        f"<figcaption>{escape(figure.text)}</figcaption>\n</figure>\n"
    )


def inline(svg: Path, prefix: str, text: str) -> str:
    """An SVG file for the inside of a page: ids that no other figure has, and no style of its own.

    A style in an SVG holds for the whole page.
    """
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(svg.read_bytes())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, prefix + value)
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
    for key in ("width", "height"):  # the page decides; viewBox keeps the proportions
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", text)
    return ET.tostring(root, encoding="unicode")
