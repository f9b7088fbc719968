"""The command `sat-report`: pages, one file of kept runs, and states."""

import csv
import errno
import json
import os
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from threading import Event, Thread

import pytest
from conftest import ROOT
from written import CLAIM, Folder, change

from sat.loggers import screen
from sat.loggers.markdown import grid, html, terminal
from sat.report import figures, runs, tables
from sat.report.command import main


@pytest.fixture
def report(monkeypatch, capfd):
    """`report("--status", place)`: exit code and output; of figures one is made up."""

    def draw(tables, place):
        place.mkdir(parents=True, exist_ok=True)
        (place / "a b.png").write_bytes(b"drawn")
        name = tables[0].name
        return [figures.Drawn(name, "dots", place / "a b.png"), figures.Drawn(name, "Not drawn: x")]

    monkeypatch.setattr(figures, "draw", draw)

    def call(*arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # by argparse
            code = end.code
        out, err = capfd.readouterr()
        assert bool(err) == (code == 2) and (not err or err.startswith("! "))
        return code, out + err

    return call


@pytest.fixture
def three(folder, write) -> Folder:
    """ReLU and SiLU with three seeds each, and a claim."""
    folder.pair("relu", "silu", [9, 10, 11])
    write(claims=[CLAIM, {**CLAIM, "text": "The other <way>.", "better": CLAIM["than"],
                          "than": CLAIM["better"]}])  # fmt: skip
    (folder.outputs / "preface.md").write_text("# Mine\n\nSee [more](more.md).\n")
    return folder


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}


# pages --------------------------------------------------------------------------------------------


def test_the_command_writes_the_same_numbers_everywhere(report, three):
    code, out = report(three.outputs)
    assert code == 0 and "Is smooth better?" in out and "**supports**: SiLU wins." in out
    line = next(line for line in out.splitlines() if line.strip().startswith("SiLU  "))
    assert "62.0 ± 7.5" in line and "+10.0 (+7.5 to +12.5) *" in line
    written = three.outputs / "report"
    page = (written / "report.md").read_text()
    assert page.startswith("# Mine\n") and "## Activations (`x`)" in page
    row = next(line for line in page.splitlines() if line.startswith("| SiLU |"))
    assert row.split(" | ")[3] == "62.0 ± 7.5" and "+10.0 (+7.5 to +12.5) \\*" in row
    head = page.splitlines()[page.splitlines().index(row) - 3]
    assert head.count("|") == row.count("|")
    assert "![dots](figures/a%20b.png)\n\nNot drawn: x\n" in page
    assert "ImageNet (figure 2): ReLU 68.8 clean, 33 robust." in page
    assert "- **supports**: SiLU wins. (SiLU against ReLU: +10.0 points (7.5 to 12.5)" in page
    with open(written / "x-digits.csv") as file:
        lines = {(r["row"], r["checkpoint"], r["measure"]): r for r in csv.DictReader(file)}
    silu, relu = lines["SiLU", "best", "pgd20"], lines["ReLU", "best", "pgd20"]
    assert float(silu["mean"]) == pytest.approx(0.62) and silu["seed 2"] == "0.65"
    assert float(silu["difference"]) == pytest.approx(0.1) and float(silu["p_holm"]) < 0.05
    assert relu["difference"] == "" and len(lines) == 8
    before = contents(written)
    assert report(three.outputs) == (code, out) and contents(written) == before


def test_the_page_opens_with_every_claim(report, three):
    report(three.outputs)
    page = (three.outputs / "report/report.md").read_text()
    glance = page.split("## The claims at a glance")[1].split("\n## ")[0]
    assert "| x | SiLU wins. | supports |" in glance
    assert "| x | The other \\<way>. | contradicts |" in glance and "Verdicts are" in glance


class Reader(HTMLParser):
    """Balanced tags, ids, links and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.given, self.said, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.given += attrs
        if tag not in ("meta", "br", "li"):  # HTML closes these by itself
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.given += attrs

    def handle_endtag(self, tag):
        assert tag == "li" or self.open.pop() == tag, tag

    def handle_data(self, data):
        self.said.append(data)


def test_the_html_page_says_what_the_markdown_says_and_stands_alone(report, three):
    report(three.outputs)
    place = three.outputs / "report"
    page = (place / "report.html").read_text()
    read = Reader(page)
    said = "".join(read.said)
    text = re.sub(r"!\[.*\]\(.*\)|[|#`*]|-{3}:?", " ", (place / "report.md").read_text())
    words = re.sub(r"\\(.)|\]\(more.md\)", r"\1", text).replace("[more", "more").split()
    assert not [word for word in words if word not in said] and len(words) > 200
    assert "script" not in read.tags and "way" not in read.tags and "The other <way>." in said
    assert "<strong>supports</strong>" in page and "<title>Mine</title>" in page
    links = [value for name, value in read.given if name in ("href", "src")]
    assert links == ["more.md", "data:image/png;base64,ZHJhd24="] and "`" not in said


def test_what_a_page_is_given_is_text():
    evil = '<script>alert("x")</script> & [a](javascript:x)'
    read = Reader(html(f"# {evil}\n\n## {evil}\n\n| {evil} |\n| --- |\n| a |\n", Path("a.md")))
    assert "script" not in read.tags and "a" not in read.tags
    assert not any("javascript" in str(value) for name, value in read.given if name == "href")


EVIL = r"$a$ <b>|*x*|</b> \frac{1} & `c` [d](e) _f_ #g ~~h~~ &amp; 1."


def test_a_name_is_text_and_moves_no_cursor(report, folder):
    """In Markdown, in HTML, in the terminal and in CSV; and where a run is told to be damaged."""
    folder.add("relu", 0, 50, experiments=())
    folder.add("silu", 0, 50, experiments=(), choices={"activation": f"{EVIL}\x1b[2J"})
    (folder.outputs / "a\x1b[2Jb").mkdir()
    (folder.outputs / "a\x1b[2Jb/config.yaml").write_text("- 1")
    code, out = report(folder.outputs)
    assert code == 0 and EVIL in " ".join(out.split()) and "a\\x1b[2Jb" in out and "\x1b" not in out
    place = folder.outputs / "report"
    assert not any(b"\x1b" in (place / f"report.{end}").read_bytes() for end in ("md", "html"))
    read = Reader((place / "report.html").read_text())
    assert EVIL in "".join(read.said) and not {"b", "a", "code", "del"} & {*read.tags}
    with open(next(place.glob("*.csv"))) as file:
        assert {row["activation"] for row in csv.DictReader(file)} == {"relu", f"{EVIL}\x1b[2J"}
    assert "\x1b" not in report("--status", folder.outputs)[1]


def test_tables_fit_a_narrow_terminal(three, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    one = next(three.outputs.glob("relu-s0*"))
    for words in ([str(one)], ["--status", str(three.outputs)]):
        assert main(words) == 0
        lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
        assert max(map(len, lines)) <= 80 and len(lines) > 5
        assert "\u2026" not in "".join(lines)


def test_the_terminal_shows_the_page_without_escapes_and_its_tables_in_columns(monkeypatch, capsys):
    """What finds no room goes on below, with the keys of the rows."""
    head = ["activation", "steps", *(f"attack {k}, %" for k in range(9))]
    rows = [["ReLU", "1", *("[41, 43]",) * 9], ["a | b", "10", *("[1, 2]",) * 9]]
    whole = grid(head, rows, keys=2)
    text = grid(["experiment", "claim", "digits"], [["x", "It is.", "supports"]], keys=3)
    page = f"# A *title*\n\n{whole}\n\nlong\nlines\n\n- an item\n  goes on\n- another\n\n{text}\n"
    lines = terminal(page).split("\n")
    assert lines[:3] == ["# A *title*", "", "activation  steps  " + "  ".join(head[2:])]
    assert lines[4].split() == ["ReLU", "1", *("[41,", "43]") * 9]
    assert lines[5].startswith("a | b       10   ") and lines[5].endswith("      [1, 2]")
    assert lines[6:] == ["", "long lines", "", "- an item goes on", "- another", "",
                         "- x: It is. (digits supports)"]  # fmt: skip
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    screen.say(terminal(page))
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("\n"))) <= 60 and shown.count("[41, 43]") == 9
    assert [*dict.fromkeys(re.findall(r"attack \d", shown))] == [f"attack {k}" for k in range(9)]
    assert shown.count("\nReLU        1") == shown.count("\na | b       10") > 1


def test_the_page_may_stand_elsewhere(report, three, tmp_path):
    page = tmp_path / "docs" / "results.md"
    code, out = report(three.outputs, "--to", tmp_path / "docs" / "figs", "--page", page)
    assert code == 0 and f"written: {page}" in out
    assert "![dots](figs/figures/a%20b.png)" in page.read_text()
    assert "data:image/png" in page.with_suffix(".html").read_text()
    assert not (three.outputs / "report").exists()


def test_one_run_is_told_on_the_screen_and_written_where_it_is_said(report, three, tmp_path):
    run = next(three.outputs.glob("relu-s0*"))
    assert report(run)[0] == 0
    assert not (run / "report").exists() and not (three.outputs / "report").exists()
    code, out = report(run, "--page", tmp_path / "a.md")
    assert code == 2 and out.count("name --to FOLDER") == 1
    assert report(run, "--to", tmp_path / "there")[0] == 0
    assert (tmp_path / "there" / "x-digits.csv").exists()
    code, out = report(three.outputs, "--to", run / "config.yaml")
    (*_, told) = out.splitlines()
    assert code == 2 and told.startswith(f"! {run}/config.yaml: can't be read or written (")


def test_a_name_that_is_too_long_and_a_full_disk_are_told_in_a_line(report, three, monkeypatch):
    code, out = report("a" * 300)
    assert code == 2 and out == f"! {'a' * 300}: can't be read or written (File name too long)\n"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a write, which names no file
    monkeypatch.setattr(figures, "draw", lambda *_: (_ for _ in ()).throw(full))
    (*_, told) = report(three.outputs)[1].splitlines()
    assert told == f"! {three.outputs}: can't be read or written ({full.strerror})"


def test_what_is_not_finished_is_named(report, three):
    (next(three.outputs.glob("silu-s1*")) / "result.json").unlink()
    code, out = report(three.outputs)
    assert code == 0 and "In no table" in out and "silu-s1-3: stopped" in out
    for run in three.outputs.glob("*-s*/result.json"):
        run.unlink()
    assert report(three.outputs)[1].count("No finished run.") == 1


@pytest.mark.parametrize("wrong", [
    ["--status", ".", "--to", "a"], ["--status", "--transfer", "."],
    ["--transfer", ".", "--page", "a.md"], [], ["none"], ["--status", "."], ["."],
])  # fmt: skip
def test_options_that_are_ignored_nowhere(report, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out = report(*wrong)
    assert code == 2 and out.count("\n") == 1, out


def test_a_second_folder_is_answered_with_how_two_are_read(report):
    assert report("a", "b")[1].startswith("! sat-report: b: one folder is read; --keep FILE")


# one file of runs ---------------------------------------------------------------------------------


def test_kept_runs_give_the_same_report(report, three, tmp_path):
    rows = [{"step": 1, "epoch": 1.0, "val/clean": 0.5, "val/robust": 0.25, "diagnostics/x": 1.0},
            {"step": 2, "epoch": 2.0, "train/loss": 1.0}]  # fmt: skip
    run = next(three.outputs.glob("silu-s0*"))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "kept" / "runs.jsonl"
    code, out = report(three.outputs, "--keep", file)
    assert code == 0 and out.endswith(f"kept: {file}\n")
    (tmp_path / "kept/preface.md").write_text((three.outputs / "preface.md").read_text())
    assert report(file, "--to", tmp_path / "kept")[0] == 0
    mine, other = contents(tmp_path / "kept"), contents(three.outputs / "report")
    assert {name: mine[name] for name in other} == other
    found = {line.name: line for line in runs.finished(file)}
    assert found[run.name].validations == [
        {k: v for k, v in rows[0].items() if k != "diagnostics/x"}
    ]
    shutil.rmtree(run)
    change(next(three.outputs.glob("silu-s1*")) / "result.json", parameters=6)
    before = len(file.read_text().splitlines())
    report(three.outputs, "--keep", file)  # others stay, and one takes the place of its elder
    again = {line.name: line.result.parameters for line in runs.finished(file)}
    assert len(again) == before == 6 and sorted(again.values()) == [5, 5, 5, 5, 5, 6]


def test_two_that_keep_in_one_file_at_once_lose_no_row(three, tmp_path, monkeypatch):
    file, every, reading = tmp_path / "runs.jsonl", runs.finished(three.outputs), Event()
    kept_in = runs.kept_in
    runs.keep(every[:1], file)

    def slowly(place):
        found = kept_in(place)
        if reading.is_set():  # the second
            return found
        reading.set()
        second.start()
        second.join(0.5)  # which waits for the first
        return found

    second = Thread(target=runs.keep, args=(every[1:3], file))
    monkeypatch.setattr(runs, "kept_in", slowly)
    runs.keep(every[3:], file)
    second.join()
    assert len(file.read_text().splitlines()) == len(every) == 6
    assert [path.name for path in tmp_path.glob("*lock*")] == []


def test_kept_runs_name_no_machine(report, three, tmp_path):
    run = three.add("gelu", 0, 50, dataset={"root": "/home/me/sets/flowers"},
                    overrides=["seed=0", "record.root=/home/me/o", "+dataset.root=/home/me/sets"],
                    record={"root": "/home/me/outputs"})  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    result["environment"] |= {"host": "mine", "command": "/home/me/sat record.root=/home/me/o"}
    result["best"]["environment"] = result["best"]["robust"]["pgd20"]["environment"] = dict(
        result["environment"]
    )
    (run / "result.json").write_text(json.dumps(result))
    weights = three.add("elu", 0, 50, evaluate="/home/me/w.pt")
    assert report(three.outputs, "--keep", tmp_path / "runs.jsonl")[0] == 0
    text = (tmp_path / "runs.jsonl").read_text()
    assert "/home" not in text and "mine" not in text
    found = {line.name: line for line in runs.finished(tmp_path / "runs.jsonl")}
    assert found[run.name].config["dataset"]["root"] == "flowers"
    assert found[run.name].result.overrides == ["seed=0"]
    assert found[run.name].result.environment["device"] == "a machine"
    assert found[weights.name].config["evaluate"] == weights.name


@pytest.mark.parametrize("line", ['{"name": "a"', "[]", "{}", '{"name": 1, "experiments": [1]}'])
def test_a_damaged_line_is_left_out_and_never_overwritten(report, three, tmp_path, line):
    file = tmp_path / "runs.jsonl"
    report(three.outputs, "--keep", file)
    file.write_text(file.read_text() + line + "\n")
    code, out = report(file)
    assert code == 0 and "runs.jsonl:7: " in out and "62.0 ± 7.5" in out
    before = file.read_text()
    code, out = report(three.outputs, "--keep", file)
    assert code == 2 and "mend or delete the line" in out and file.read_text() == before


# states -------------------------------------------------------------------------------------------


def test_states_of_runs(report, three):
    running = three.add("elu", 0, 50)
    (running / "result.json").unlink()
    lines = [{"epoch": 1.0, "seconds": 10.0, "val/clean": 0.75, "val/robust": 0.5},
             {"epoch": 2.0, "seconds": 30.0, "train/loss": 1.0}]  # fmt: skip
    (running / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (running / "checkpoints").mkdir()
    (running / "checkpoints/last.pt").touch()
    fresh = three.add("celu", 0, 50)
    (fresh / "result.json").unlink()
    timeless = three.add("mish", 0, 50)
    (timeless / "result.json").unlink()
    rows = [{"epoch": 0.0, "alarm": "flat"}, {"epoch": 1.5, "alarm": "collapse"}, {"epoch": 1.5}]
    text = "\n".join(map(json.dumps, [*rows, {"epoch": 1.5, "alarm": "flat"}]))
    (timeless / "metrics.jsonl").write_text(text + '\n{"epo')
    random = next(three.outputs.glob("relu-s1*"))
    change(random / "result.json",
           alarms=[{"name": "random", "message": "as by chance"}] * 2)  # fmt: skip
    early = three.add("elu", 0, 50)
    (early / "result.json").unlink()
    (early / "metrics.jsonl").write_text('{"epoch": 0.0989, "seconds": 2.0}\n')
    untrained = three.add("sigmoid", 0, 50)
    change(untrained / "result.json", wall_seconds=0.0)
    failed = three.add("gelu", 0, 50)
    change(failed / "result.json", status="failed", error="the loss\nis not finite",
           alarms=[{"name": "flat", "message": "as before"}])  # fmt: skip
    (next(three.outputs.glob("silu-s2*")) / "result.json").write_text("{")
    raw = three.add("tanh", 0, 50)
    result = json.loads((raw / "result.json").read_text())
    only = {**result["last"], "robust": {}}
    change(raw / "result.json", best=None, last={"step": 1, "epoch": 4.0}, last_raw=only)
    code, out = report("--status", three.outputs)
    told = dict(re.findall(r"^(\S+)\n    (.+(?:\n    .+)*)", out, re.M))
    assert code == 0 and out.endswith("4 stopped, 1 failed, 7 finished, 1 damaged\n")
    assert told[raw.name].startswith("finished, clean ")
    assert told[running.name] == (
        "stopped, epoch 2 of 4, held out 75.0% clean 50.0% robust, 30s left"
    )
    assert told[fresh.name] == "stopped, no metrics yet"
    assert told[timeless.name] == (
        "stopped, epoch 1.5 of 4, no checkpoint: begins again, ALARM: flat, collapse"
    )
    assert told[random.name].endswith("trained in 1m00s, ALARM: random")
    assert told[early.name] == "stopped, epoch 0.1 of 4, no checkpoint: begins again"
    assert "trained in" not in told[untrained.name]
    assert told[failed.name] == "failed, the loss is not finite, ALARM: flat"
    assert told["relu-s0-0"] == "finished, clean 90.0%, pgd20 50.0%, trained in 1m00s"


# the real thing -----------------------------------------------------------------------------------


def test_runs_of_the_program_are_reported(sat, report, tmp_path, monkeypatch, capfd):
    done = sat("schedule.epochs=1")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "outputs")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts/report.py"), run_name="__main__")
    assert end.value.code == 0
    (line,) = re.findall("^ *SiLU .*", capfd.readouterr().out, re.M)
    row = re.split("  +", line.strip())
    clean = 100 * done.result["best"]["clean"]["accuracy"]
    assert row[1] == "1" and row[2].startswith(f"{clean:.1f} [")
    (table,) = tables.read(tmp_path / "outputs").tables
    assert table.dataset == "digits" and table.attack == "pgd20"
    assert "1 finished" in report("--status", tmp_path / "outputs")[1]
