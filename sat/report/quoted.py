"""Tables of pages that quote runs: each number of README and of docs/measured.md that docs/results
has too is written here, from the same file.

    python -m sat.report.quoted      # rewrites what stands between the marks
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

RUNS = Path("docs/results/runs.jsonl")
# The rows of a page's table: a label, and the name of the runs without seed and hash.
PAGES = {
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
MARKED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.S)


def filled(page: str, text: str, lines: Iterable[str]) -> str:
    """The page's text with its table made of the runs in these lines of JSON; with a column of
    `strong` where one of them was measured with it."""
    runs, best = [json.loads(line) for line in lines], {}
    for label, name in PAGES[page].items():
        found = {run["config"]["seed"]: run for run in runs if of(run["name"]) == name}
        best[label] = [found[seed]["result"]["best"] for seed in sorted(found)]
    strong = {label: [each["robust"]["strong"] for each in found if "strong" in each["robust"]]
              for label, found in best.items()}  # fmt: skip
    images = {f"{each['images']:,}" for found in strong.values() for each in found}
    head = ["training", "clean", "robust, PGD-20"]
    head += [f"robust, `strong` (first {' or '.join(sorted(images))})"] * bool(images)
    rows = [head, ["---"] * len(head)]
    for label, found in best.items():
        cells = [shares([each["clean"] for each in found])]
        cells += [shares([each["robust"]["pgd20"] for each in found])]
        cells += [", ".join(map(interval, strong[label])) or "-"] * bool(images)
        rows.append([label, *cells])
    return MARKED.sub("".join(f"| {' | '.join(row)} |\n" for row in rows), text)


def of(name: str) -> str:
    """A run's name without seed and hash."""
    return re.sub(r"-s\d+-\w+$", "", name)


def shares(found: list[dict[str, Any]]) -> str:
    """Accuracies in percent: of one or two seeds each, of more the mean (lowest to highest)."""
    values = [100 * each["accuracy"] for each in found]
    if len(values) < 3:
        return ", ".join(f"{value:.1f}" for value in values)
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def interval(found: dict[str, Any]) -> str:
    """`37.0 (30.6 to 43.9)`."""
    share, low, high = (100 * each for each in (found["accuracy"], *found["ci95"]))
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    for page in PAGES:
        given = Path(page).read_text()
        Path(page).write_text(filled(page, given, RUNS.read_text().splitlines()))
