"""What a page quotes is what docs/results holds."""

import json
import runpy

import pytest
from conftest import ROOT

QUOTE = runpy.run_path(str(ROOT / "scripts/quote.py"))
filled, pages = QUOTE["filled"], QUOTE["PAGES"]


@pytest.mark.parametrize("page", pages, ids=lambda page: page.name)
def test_a_page_quotes_the_runs_of_the_results(page):
    """`python scripts/quote.py` writes what is wrong here."""
    kept = (ROOT / "docs/results/runs.jsonl").read_text().splitlines()
    text, runs = page.read_text(), [json.loads(line) for line in kept]
    assert filled(text, runs) == text
    name = QUOTE["MARKED"].search(text)[1].splitlines()[0].split(" = ")[1]
    best = next(run["result"]["best"] for run in runs if run["name"].startswith(f"{name}-s0-"))
    best["robust"]["pgd20"]["accuracy"] = 0.999
    changed = zip(text.splitlines(), filled(text, runs).splitlines(), strict=True)
    ((before, after),) = [(old, new) for old, new in changed if old != new]
    assert "99.9" in after and "99.9" not in before
