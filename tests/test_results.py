"""docs/results.md is what the file of runs beside it says."""

import json
import re

from conftest import ROOT

from sat.report import figures
from sat.report.command import main
from sat.report.runs import finished

KEPT = ROOT / "docs/results"


def test_the_page_and_its_tables_come_out_of_the_runs_again(monkeypatch, tmp_path, capsys):
    """`make results` without its figures, which take a minute and depend on matplotlib."""
    monkeypatch.setattr(figures, "draw", lambda tables, place: [])
    page = tmp_path / "results.md"
    given = [f"{KEPT / 'runs.jsonl'}", "--to", f"{tmp_path / 'to'}", "--page", f"{page}"]
    assert main(given) == 0
    words = [line for line in page.read_text().splitlines() if line]
    written = (ROOT / "docs/results.md").read_text().splitlines()
    drawn = ("![", "Not drawn: ")
    assert [line for line in written if line and not line.startswith(drawn)] == words
    tables = sorted(path.name for path in (tmp_path / "to").glob("*.csv"))
    assert tables == sorted(path.name for path in KEPT.glob("*.csv")) and tables
    assert all((tmp_path / "to" / n).read_text() == (KEPT / n).read_text() for n in tables)


def test_every_figure_of_the_page_is_there_and_no_other():
    linked = re.findall(r"^!\[.+\]\((results/figures/\S+\.png)\)$",
                        (ROOT / "docs/results.md").read_text(), re.M)  # fmt: skip
    assert linked and len(set(linked)) == len(linked)
    kept = {f"results/figures/{path.name}" for path in (KEPT / "figures").glob("*.png")}
    assert set(linked) == kept


def test_the_file_is_small_and_names_no_machine():
    text = (KEPT / "runs.jsonl").read_text()
    assert len(text) < 2e6 and not re.search(r"/(tmp|home|root|work|Users)/", text)
    runs = [json.loads(line) for line in text.splitlines()]
    assert all(run["result"]["status"] == "finished" for run in runs)
    assert all(run["config"]["record"]["root"] == "outputs" for run in runs)
    assert [run.name for run in finished(KEPT / "runs.jsonl")] == [run["name"] for run in runs]


def test_each_run_has_the_hash_that_it_would_have_today():
    from sat.config import check

    for run in finished(KEPT / "runs.jsonl"):
        assert check(run.config).hash == run.result.hash, run.name
