"""What a page quotes is what docs/results holds."""

import runpy
from dataclasses import replace

import pytest
from conftest import ROOT

from sat.report.runs import finished

QUOTE = runpy.run_path(str(ROOT / "scripts/quote.py"))
filled, pages = QUOTE["filled"], QUOTE["PAGES"]


@pytest.mark.parametrize("page", pages, ids=lambda page: page.name)
def test_a_page_quotes_the_runs_of_the_results(page):
    """`python scripts/quote.py` writes what is wrong here."""
    text, runs = page.read_text(), finished(ROOT / "docs/results/runs.jsonl")
    assert filled(text, runs) == text
    table, around = QUOTE["MARKED"].search(text), " ".join(text.split())
    rows = tuple(line.split(" = ")[1] for line in table[1].splitlines())
    for name in rows:  # seeds of one training, which a name without its hash may not tell
        (first, *others) = [run.decided for run in runs if run.name.startswith(f"{name}-s")]
        assert all(decided == first for decided in others), name
    met = [r.result.best.robust.get("strong") for r in runs if r.name.startswith(rows)]
    assert all(f"first {one.images:,})" in around for one in met if one), "of how many images"
    best = next(r.result.best for r in runs if r.name.startswith(f"{rows[0]}-s0-"))
    best.robust["pgd20"] = replace(best.robust["pgd20"], accuracy=0.999)
    changed = zip(text.splitlines(), filled(text, runs).splitlines(), strict=True)
    ((before, after),) = [(old, new) for old, new in changed if old != new]
    assert "99.9" in after and "99.9" not in before
