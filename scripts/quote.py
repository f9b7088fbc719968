"""Writes the tables of pages that quote docs/results, from its runs: python scripts/quote.py"""

import json
import re
from pathlib import Path
from statistics import mean

RUNS = Path(__file__).parents[1] / "docs/results/runs.jsonl"
MARKED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.S)
PAGES = {  # the rows of a page's table: a label, and the runs' name without seed and hash
    "README.md": {
        "ReLU, PGD-1": "cifar10-resnet18-relu-pgd1-15ep",
        "SiLU, PGD-1": "cifar10-resnet18-silu-pgd1-15ep",
        "ReLU, PGD-3 (the control)": "cifar10-resnet18-relu-pgd3-15ep",
    },
    "docs/measured.md": {
        "SiLU, PGD-1 (`make run`)": "digits-resnet10-silu-pgd1-40ep",
        "ReLU, PGD-1": "digits-resnet10-relu-pgd1-40ep",
    },
}


def filled(page: str, text: str, runs: list[dict]) -> str:
    """The page's text with its table made of these runs, and a column of `strong` where one of them
    was measured with it."""
    best = {
        label: [r["result"]["best"] for r in runs if re.sub(r"-s\d+-\w+$", "", r["name"]) == name]
        for label, name in PAGES[page].items()
    }
    strong = {label: [b["robust"]["strong"] for b in of if "strong" in b["robust"]]
              for label, of in best.items()}  # fmt: skip
    images = {f"{each['images']:,}" for of in strong.values() for each in of}
    rows = [["training", "clean", "robust, PGD-20"]]
    rows[0] += [f"robust, `strong` (first {' or '.join(sorted(images))})"] * bool(images)
    rows += [["---"] * len(rows[0])]
    for label, of in best.items():
        row = [label, shares([b["clean"] for b in of]), shares([b["robust"]["pgd20"] for b in of])]
        rows += [row + [", ".join(map(interval, strong[label])) or "-"] * bool(images)]
    return MARKED.sub("".join(f"| {' | '.join(row)} |\n" for row in rows), text)


def shares(entries: list[dict]) -> str:
    """Each seed in percent; of more than two the mean and the range."""
    found = [100 * entry["accuracy"] for entry in entries]
    if len(found) < 3:
        return ", ".join(f"{share:.1f}" for share in found)
    return f"{mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def interval(entry: dict) -> str:
    """`37.0 (30.6 to 43.9)`: the 95 % interval of one network."""
    share, low, high = (100 * each for each in (entry["accuracy"], *entry["ci95"]))
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    kept = [json.loads(line) for line in RUNS.read_text().splitlines()]
    for name in PAGES:
        page = RUNS.parents[2] / name
        page.write_text(filled(name, page.read_text(), kept))
