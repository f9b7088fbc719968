"""Writes the tables of pages that quote docs/results, from its runs: python scripts/quote.py"""

import json
import re
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/measured.md")
MARKED = re.compile(r"<!-- results\n(.*?)-->\n(.*?)(?=<!-- /results -->)", re.S)


def filled(text: str, runs: list[dict]) -> str:
    """A page's text with its table made of the runs that its comment names, no column empty."""
    (marked,) = MARKED.finditer(text)
    table: dict[str, list[str]] = {}
    for training, name in (line.split(" = ") for line in marked[1].splitlines()):
        best = [r["result"]["best"] for r in runs if re.sub(r"-s\d+-\w+$", "", r["name"]) == name]
        of = {"clean": [b["clean"] for b in best], "PGD-20": [b["robust"]["pgd20"] for b in best]}
        of["`strong`"] = [b["robust"]["strong"] for b in best if "strong" in b["robust"]]
        for title, cell in {"training": training, **{t: told(e) for t, e in of.items()}}.items():
            table[title] = [*table.get(title, []), cell]
    table = {title: cells for title, cells in table.items() if any(cells)}
    rows = ([*table], ["---"] * len(table), *zip(*table.values(), strict=True))
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return text[: marked.start(2)] + lines + text[marked.end(2) :]


def told(of: list[dict]) -> str:
    """Each seed in percent, with its interval where images are few; of more the mean and range."""
    if len(found := [100 * entry["accuracy"] for entry in of]) > 2:
        return f"{mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"
    bound = lambda e: " ({:.1f} to {:.1f})".format(*(100 * b for b in e["ci95"]))  # noqa: E731
    return ", ".join(f"{100 * e['accuracy']:.1f}" + bound(e) * (e["images"] <= 1000) for e in of)


if __name__ == "__main__":
    kept = (ROOT / "docs/results/runs.jsonl").read_text().splitlines()
    for page in PAGES:
        page.write_text(filled(page.read_text(), [json.loads(line) for line in kept]))
