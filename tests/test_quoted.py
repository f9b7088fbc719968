"""What a page quotes is what docs/results holds."""

import json

import pytest
from conftest import ROOT

from sat.report.quoted import MARKED, PAGES, RUNS, filled


@pytest.mark.parametrize("page", PAGES)
def test_a_page_quotes_the_runs_of_the_results(page):
    """`python -m sat.report.quoted` writes what is wrong here."""
    text, lines = (ROOT / page).read_text(), (ROOT / RUNS).read_text().splitlines()
    assert len(MARKED.findall(text)) == 1 and filled(page, text, lines) == text
    name = next(iter(PAGES[page].values()))
    runs = [json.loads(line) for line in lines]
    best = next(run["result"]["best"] for run in runs if run["name"].startswith(f"{name}-s0-"))
    best["robust"]["pgd20"]["accuracy"] = 0.999
    other = filled(page, text, map(json.dumps, runs))
    changed = zip(text.splitlines(), other.splitlines(), strict=True)
    ((before, after),) = [(old, new) for old, new in changed if old != new]
    assert "99.9" in after and "99.9" not in before
