"""What a page quotes is what docs/results holds."""

import json
import runpy

import pytest
from conftest import ROOT

QUOTE = runpy.run_path(str(ROOT / "scripts/quote.py"))
filled, pages = QUOTE["filled"], QUOTE["PAGES"]


@pytest.mark.parametrize("page", pages)
def test_a_page_quotes_the_runs_of_the_results(page):
    """`python scripts/quote.py` writes what is wrong here."""
    runs = [json.loads(line) for line in QUOTE["RUNS"].read_text().splitlines()]
    text = (ROOT / page).read_text()
    assert len(QUOTE["MARKED"].findall(text)) == 1 and filled(page, text, runs) == text
    names = tuple(pages[page].values())
    met = [r["result"]["best"]["robust"].get("strong") for r in runs if r["name"].startswith(names)]
    assert all(f"first {one['images']:,})" in text.replace("\n", " ") for one in met if one)
    name = next(iter(pages[page].values()))
    best = next(run["result"]["best"] for run in runs if run["name"].startswith(f"{name}-s0-"))
    best["robust"]["pgd20"]["accuracy"] = 0.999
    changed = zip(text.splitlines(), filled(page, text, runs).splitlines(), strict=True)
    ((before, after),) = [(old, new) for old, new in changed if old != new]
    assert "99.9" in after and "99.9" not in before
