"""A report's Markdown as one HTML file that needs nothing beside it: no network, script or font."""

import base64
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from sat.report.figures import Figure

CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .55rem .3rem 0; vertical-align: top; border-bottom: 1px solid #8888;
  font-variant-numeric: tabular-nums; text-align: left; } td:first-child { min-width: 7rem; }
img { display: block; width: 100%; max-width: 720px; background: #fff; }
.supports { color: #00805a; } .contradicts { color: #d05000; }
@media print { img, li, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def html(markdown: str, figures: Sequence[Figure], page: Path) -> str:
    """The page of that Markdown, which is written for a file at `page`; with contents, and with
    its figures inside."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    drawn = {os.path.relpath(f.png, page.parent).replace(os.sep, "/"): f.svg for f in figures}
    title, contents = "Results", []
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and token.tag == "h1":
            title = inside.content
        elif token.type == "heading_open" and token.tag == "h2":
            token.attrSet("id", f"section-{len(contents) + 1}")
            place = token.attrGet("id")
            contents.append(f'<li><a href="#{place}">{reader.renderInline(inside.content)}</a>')
        for child in token.children or ():
            file = drawn.get(str(child.attrGet("src")).replace("%20", " "))
            if child.type == "image" and file is not None:
                data = base64.b64encode(file.read_bytes()).decode()
                child.attrSet("src", f"data:image/svg+xml;base64,{data}")
    body = reader.renderer.render(tokens, reader.options, {})
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    body = re.sub(r"<strong>(supports|contradicts)<", r'<strong class="\1">\1<', body)
    nav = f"<nav><ol>{''.join(contents)}</ol></nav>\n"
    before, heading, after = body.partition("<h2 ")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"{before}{nav}{heading}{after}</body>\n</html>\n"
    )
