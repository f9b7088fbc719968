"""The report as one HTML file that needs nothing beside it: no network, no script, no fonts."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pages
from plots import Figure
from study import Table

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ANSWERS = {
    "supports": ("yes", "✓"),
    "contradicts": ("no", "✗"),
    "says nothing": ("none", "–"),
    "not run": ("none", "·"),
}
CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #5c5c5c; --line: #d8d8d8;
  --shade: #f4f5f7; --yes: #00704f; --no: #b04300; --link: #005a93; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #17191c; --soft: #a8a8a8;
  --line: #3a3d42; --shade: #22252a; --yes: #4cc9a0; --no: #ff9a5c; --link: #7cc4f5; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; } h2 { margin: 0; font-size: 1.35rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } a { color: var(--link); }
section { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 2px solid var(--line); }
.setting, small, figcaption, .fine { color: var(--soft); }
.setting { margin: .1rem 0 .6rem; } .fine, figcaption { font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .55rem .3rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
tbody th { min-width: 7.2rem; } th:first-child, .glance th, .glance td { text-align: left; }
thead th { vertical-align: bottom; border-bottom-width: 2px; font-size: .8rem; }
td small { display: block; font-size: .76rem; white-space: nowrap; }
.published { background: var(--shade); }
.glance td { min-width: 7.5rem; } .glance small { white-space: normal; }
@media (max-width: 960px) { td small { white-space: normal; } }
.verdicts { list-style: none; padding: 0; } .verdicts li { padding: .3rem 0 .3rem .8rem;
  margin: .4rem 0; border-left: 4px solid var(--line); }
b { white-space: nowrap; color: var(--soft); } .verdicts .yes { border-color: var(--yes); }
.yes b { color: var(--yes); } .verdicts .no { border-color: var(--no); } .no b { color: var(--no); }
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
        f"{_glance(tables)}{sections}{left_out}</body>\n</html>\n"
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
    head, rows = pages.cells_of(table)
    parts.append(f'<div class="wide">{_table(head, rows)}</div>\n')
    under = " ".join(pages.legend(rows)), *pages.remarks(table)
    parts += [f'<p class="fine">{escape(text)}</p>\n' for text in under]
    if table.verdicts:
        parts.append(f"<h3>Claims</h3>\n{_verdicts(table)}")
    parts += [_figure(*each) for each in figures]
    if table.notes:
        parts.append(f"<h3>Notes</h3>\n{_list(table.notes)}")
    return "".join(parts) + "</section>\n"


def _glance(tables: Sequence[Table]) -> str:
    """Every claim with what each data set says of it."""
    head, rows = pages.glance_of(tables)
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        f'<tr><th scope="row">{escape(experiment)}</th><td>{escape(claim)}</td>'
        f"{''.join(map(_answer_cell, cells))}</tr>\n"
        for experiment, claim, *cells in rows
    )
    return (
        "<section>\n<h2>The claims at a glance</h2>\n"
        f'<p class="fine">{escape(pages.rule_of(tables))}</p>\n<div class="wide">'
        f'<table class="glance">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n'
        "</table></div>\n</section>\n"
    )


def _answer_cell(text: str) -> str:
    """`supports: +1.2 points (0.4 to 2.0)`: the answer in its colour, the numbers below."""
    for answer, (kind, mark) in ANSWERS.items():
        if text.startswith(answer):
            rest = escape(text.removeprefix(answer).removeprefix(":").strip())
            return f'<td class="{kind}"><b>{mark} {answer}</b> <small>{rest}</small></td>'
    return f"<td>{escape(text)}</td>"


def _verdicts(table: Table) -> str:
    items = []
    for verdict in table.verdicts:
        kind, mark = ANSWERS[verdict.answer]
        items.append(
            f'<li class="{kind}"><b>{mark} {verdict.answer}</b> {escape(verdict.text)}'
            f"<br><small>{escape(verdict.reason)}</small></li>\n"
        )
    return f'<ul class="verdicts">\n{"".join(items)}</ul>\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shades = [' class="published"' * text.startswith("published") for text in head]
    heads = "".join(f"<th{s}>{escape(text)}</th>" for s, text in zip(shades, head, strict=True))
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{s}>{_cell(c)}</td>" for s, c in zip(shades[1:], row[1:], strict=True))
        + "</tr>\n"
        for row in rows
    ]
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>"


def _cell(text: str) -> str:
    """A value, and below it, smaller, its interval."""
    value, *rest = re.split(r" (?=[(\[±])", text, maxsplit=1)
    return escape(value) + "".join(f" <small>{escape(each)}</small>" for each in rest)


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
