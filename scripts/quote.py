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
    """The page's text with its table made of these runs: each seed, of more than two the range."""
    rows = ["| training | clean | robust, PGD-20 |", "|---|---|---|"]
    for label, name in PAGES[page].items():
        best = [r["result"]["best"] for r in runs if re.sub(r"-s\d+-\w+$", "", r["name"]) == name]
        for entries in ([b["clean"] for b in best], [b["robust"]["pgd20"] for b in best]):
            shares = [100 * entry["accuracy"] for entry in entries]
            spread = f"{mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"
            label += " | " + (", ".join(f"{x:.1f}" for x in shares) if len(best) < 3 else spread)
        rows.append(f"| {label} |")
    return MARKED.sub("\n".join(rows) + "\n", text)


if __name__ == "__main__":
    kept = [json.loads(line) for line in RUNS.read_text().splitlines()]
    for name in PAGES:
        page = RUNS.parents[2] / name
        page.write_text(filled(name, page.read_text(), kept))
