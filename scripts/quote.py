"""Writes the tables of pages that quote docs/results, from its runs: python scripts/quote.py"""

import re
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(ROOT := Path(__file__).parents[1]))

from sat.report.runs import Measured, finished  # noqa: E402

PAGES = (ROOT / "README.md", ROOT / "docs/measured.md")
MARKED = re.compile(r"<!-- results\n(.*?)-->\n(.*?)(?=<!-- /results -->)", re.S)
COLUMNS = {"clean": "clean", "PGD-20": "pgd20", "`strong`": "strong"}


def filled(text: str, runs: list[Measured]) -> str:
    """A page's text with its table made of the runs that its comment names, no column empty."""
    (marked,) = MARKED.finditer(text)
    table = [["training", *COLUMNS]]
    for training, name in (line.split(" = ") for line in marked[1].splitlines()):
        best = [r.result.best.accuracies for r in runs if re.sub(r"-s\d+-\w+$", "", r.name) == name]
        of = [[found[attack] for found in best if attack in found] for attack in COLUMNS.values()]
        table.append([training, *map(told, of)])
    head, *rows = zip(*(c for c in zip(*table, strict=True) if any(c[1:])), strict=True)
    lines = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
    return text[: marked.start(2)] + lines + text[marked.end(2) :]


def told(of: list) -> str:
    """Each seed in percent, with its interval where images are few; of more the mean and range."""
    if len(found := [100 * entry.accuracy for entry in of]) > 2:
        return f"{mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"
    bound = lambda e: " ({:.1f} to {:.1f})".format(*(100 * b for b in e.ci95))  # noqa: E731
    return ", ".join(f"{100 * e.accuracy:.1f}" + bound(e) * (e.images <= 1000) for e in of)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(), finished(ROOT / "docs/results/runs.jsonl")))
