"""Writes the tables of pages that quote docs/results, from its runs: python scripts/quote.py"""

import json
import re
from pathlib import Path
from statistics import mean

RUNS = Path(__file__).parents[1] / "docs/results/runs.jsonl"
MARKED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.S)
BIG = {"ReLU, PGD-1": "relu-pgd1", "SiLU, PGD-1": "silu-pgd1", "ReLU, PGD-3 (control)": "relu-pgd3"}
SMALL = {"SiLU, PGD-1 (`make run`)": "silu-pgd1", "ReLU, PGD-1": "relu-pgd1"}
PAGES = {  # the rows of a page's table: a label, and the runs' name without seed and hash
    "README.md": {k: f"cifar10-resnet18-{name}-15ep" for k, name in BIG.items()},
    "docs/measured.md": {k: f"digits-resnet10-{name}-40ep" for k, name in SMALL.items()},
}


def filled(page: str, text: str, runs: list[dict]) -> str:
    """The page's text with its table made of these runs; with `strong` where one has met it."""
    rows = [["training", "clean", "robust, PGD-20", "robust, `strong`"], ["---"] * 4]
    for label, name in PAGES[page].items():
        best = [r["result"]["best"] for r in runs if re.sub(r"-s\d+-\w+$", "", r["name"]) == name]
        rows.append([label, *(cell(best, attack) for attack in ("clean", "pgd20", "strong"))])
    many = 4 if any(row[3] != "-" for row in rows[2:]) else 3
    return MARKED.sub("".join(f"| {' | '.join(row[:many])} |\n" for row in rows), text)


def cell(best: list[dict], attack: str) -> str:
    """Percent: each seed, of more than two the mean and its range."""
    shares = [100 * found["accuracy"] for b in best if (found := {**b, **b["robust"]}.get(attack))]
    if len(shares) < 3:
        return ", ".join(f"{share:.1f}" for share in shares) or "-"
    return f"{mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"


if __name__ == "__main__":
    kept = [json.loads(line) for line in RUNS.read_text().splitlines()]
    for page in PAGES:
        path = RUNS.parents[2] / page
        path.write_text(filled(page, path.read_text(), kept))
