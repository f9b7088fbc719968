"""Text of any writer as Markdown; and Markdown for the terminal and as an HTML page."""

import base64
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

from sat.errors import printable
from sat.loggers import screen

CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .55rem .3rem 0; vertical-align: top; border-bottom: 1px solid #8888;
  font-variant-numeric: tabular-nums; text-align: left; } td:first-child { min-width: 7rem; }
[style*="right"] { white-space: nowrap; }
img { display: block; width: 100%; max-width: 720px; background: #fff; }
@media print { img, li, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def paragraph(text: str) -> str:
    return wrap(plain(text))


def wrap(text: str) -> str:
    """Text in lines of a plain terminal, none of which begins like an item of a list."""
    text = textwrap.fill(text, 98, break_long_words=False, break_on_hyphens=False)
    return re.sub(r"^(\d*)([-+.)#]) ", r"\1\\\2 ", text, flags=re.M)


def items(lines: Iterable[str]) -> str:
    return "\n".join("- " + wrap(line).replace("\n", "\n  ") for line in lines)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], keys: int = 1) -> str:
    """A Markdown table, its first columns, the keys of a row, to the left, numbers to the right."""
    sides = ["---"] * keys + ["---:"] * (len(head) - keys)
    lines = [[*map(plain, head)], sides, *([*map(plain, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown takes as it is, whoever wrote it: in no cell a bar, nowhere emphasis, a
    tag, a formula or a sign that moves a terminal's cursor."""
    text = re.sub(r"([\\|*<\[\]`&~$])", r"\\\1", printable(" ".join(text.split())))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is none


# shown --------------------------------------------------------------------------------------------


def terminal(text: str) -> str:
    """Markdown for the screen, which breaks its lines: without escapes, tables in columns."""
    parts = [aligned(part) if part.startswith("| ") else bare(re.sub(r"\n *(?!- )", " ", part))
             for part in text.strip().split("\n\n")]  # fmt: skip
    return "\n\n".join(parts)


def aligned(part: str) -> str:
    """A Markdown table in columns, the keys of a row in the first; the claims as a list."""
    lines = [[*map(bare, re.split(r"(?<!\\) \| ", line[2:-2]))] for line in part.split("\n")]
    sides = lines.pop(1)
    head, *rows = lines
    if "---:" not in sides:
        told = ((row, map(" ".join, zip(head[2:], row[2:], strict=True))) for row in rows)
        return "\n".join(f"- {row[0]}: {row[1]} ({', '.join(verdicts)})" for row, verdicts in told)
    keys = sides.index("---:")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:keys]
    head, *rows = (["  ".join(map(str.ljust, line, widths)), *line[keys:]] for line in lines)
    return screen.table(head, rows)


def bare(text: str) -> str:
    """Text as it was before `plain`."""
    return re.sub(r"\\(.)", r"\1", text)


def html(text: str, page: Path) -> str:
    """The Markdown at `page` as one HTML file that needs nothing beside it: no network, script or
    font; pictures are inside."""

    def inside(link: re.Match[str]) -> str:
        file = page.parent / unquote(link[1])
        data = base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""
        return f'src="data:image/png;base64,{data}"'

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'(?<=<img )src="([^":]+\.png)"', inside, body)
    title = re.search(r"<h1>(.*?)</h1>", body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title[1] if title else 'Results'}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )
