"""docs/results.md is what the evidence beside it says."""

import importlib
import json
import re
import sys
import types

import yaml
from conftest import ROOT

KEPT = ROOT / "docs/results"


def test_the_page_and_its_tables_come_out_of_the_evidence_again(monkeypatch, tmp_path, capsys):
    """`make results` without its figures, which take a minute and depend on matplotlib."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    report = importlib.import_module("report")
    stubs = {"plots": {"draw": lambda *_: []}, "webpage": {"page": lambda *_: ""}}
    for name, functions in stubs.items():
        module = types.ModuleType(name)
        module.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    page = tmp_path / "results.md"
    given = ["report.py", f"{KEPT / 'runs'}", "--to", f"{tmp_path / 'to'}", "--page", f"{page}"]
    monkeypatch.setattr(sys, "argv", given)
    assert report.main() == 0
    words = [line for line in page.read_text().splitlines() if line]
    written = (ROOT / "docs/results.md").read_text().splitlines()
    assert [line for line in written if line and not line.startswith("![")] == words
    tables = sorted(path.name for path in (tmp_path / "to").glob("*.csv"))
    assert tables == sorted(path.name for path in KEPT.glob("*.csv")) and tables
    assert all((tmp_path / "to" / n).read_text() == (KEPT / n).read_text() for n in tables)


def test_every_figure_of_the_page_is_there_and_no_other():
    linked = re.findall(r"^!\[.+\]\((results/figures/\S+\.png)\)$",
                        (ROOT / "docs/results.md").read_text(), re.M)  # fmt: skip
    assert linked and len(set(linked)) == len(linked)
    kept = {f"results/figures/{path.name}" for path in (KEPT / "figures").glob("*.png")}
    assert set(linked) == kept


def test_the_evidence_names_no_machine_and_is_small():
    files = [path for path in (KEPT / "runs").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    for path in files:
        text = path.read_text()
        assert not re.search(r"/(tmp|home|root|work|Users)/", text), path
        if path.name == "result.json":
            result = json.loads(text)
            assert result["status"] == "finished"
        if path.name == "config.yaml":
            assert yaml.safe_load(text)["record"]["root"] == "outputs"
