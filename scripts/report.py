"""Reads run directories and changes none of them:

python scripts/report.py outputs                    # tables and figures of all experiments
python scripts/report.py outputs --experiment NAME  # of one
python scripts/report.py --status outputs           # finished, running, stopped, failed
python scripts/report.py --compare RUN_A RUN_B      # image by image, with a paired test

Tables go to the terminal and, as Markdown, HTML, CSV, PNG and SVG, into outputs/report.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import evidence
import pages
import study
from runs import FAULTS, one_line, runs_in, status

from sat.errors import Refused
from sat.loggers.screen import duration, percent, table
from sat.rundir.record import CHECKPOINTS


def row(run: Path, root: Path) -> list[str]:
    """Name, state, clean, robust and how far it came, of one run."""
    name = str(run.relative_to(root)) if run != root else run.name
    try:
        return [name, *told(run)]
    except FAULTS as error:
        return [name, "damaged", "-", "-", one_line(error)]


def told(run: Path) -> list[str]:
    """The same without the name. Raises one of FAULTS where a file is not as a run writes it."""
    state, result = status(run)
    if state == "finished":
        best = next(p for p in map(result.get, ("best", "last", "last_raw")) if p and "clean" in p)
        attack, robust = next(iter(best["robust"].items()), ("", None))
        took = duration(result["wall_seconds"])
        if (run / "flags" / "partial").exists():
            took += ", an evaluation stopped"
        return [state, percent(best["clean"]), f"{attack} {percent(robust)}".strip(), took]
    return [state, "-", "-", " ".join(str(result.get("error") or progress(run)).split())[:200]]


def progress(run: Path) -> str:
    """How far a run without a result has come, by its last metrics and its last checkpoint."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        epoch = f"epoch {json.loads(lines[-1])['epoch']:g}"
    except (OSError, IndexError, ValueError, KeyError):
        epoch = "no metrics yet"
    from sat.rundir.checkpoint import read

    try:
        saved = f"saved at step {read(run / 'checkpoints' / 'last.pt')['step']}"
    except (OSError, ValueError, KeyError):
        saved = "no checkpoint"
    return f"{epoch}, {saved}"


def states(runs: list[Path], root: Path) -> str:
    """The table of --status, and how many runs are in each state."""
    rows = [row(run, root) for run in runs]
    listed = [row[1] for row in rows]
    counts = ", ".join(f"{listed.count(state)} {state}" for state in dict.fromkeys(listed))
    head = ["run", "status", "clean", "robust (best)", "time or progress"]
    return f"{table(head, rows)}\n{counts}"


def outcome(arguments: argparse.Namespace) -> None:
    """Prints what the command line asks for. Raises Refused where it can't be had."""
    given = arguments.experiment or arguments.to or arguments.page or arguments.keep
    if arguments.status and given or arguments.compare and (given or arguments.status):
        raise Refused("--status and --compare write nothing; leave the other options away")
    if arguments.compare:
        if arguments.outputs:
            raise Refused("--compare: takes two runs, and no folder beside them")
        from compare import compare

        return print(compare(*arguments.compare, arguments.checkpoint or "best"))
    if arguments.checkpoint:
        raise Refused(f"--checkpoint {arguments.checkpoint}: belongs to --compare")
    if (root := arguments.outputs) is None:
        raise Refused("no folder is named; name the record.root of your runs: outputs")
    if not root.is_dir():
        raise Refused(f"{root}: no such folder; name the record.root of your runs")
    if arguments.status:
        if not (runs := runs_in(root)):
            raise Refused(f"{root}: holds no run; a run's directory has a config.yaml")
        return print(states(runs, root))
    report = study.read(root, arguments.experiment)
    print(pages.terminal(report))
    one_run = (root / "config.yaml").is_file()
    if one_run and arguments.page and not arguments.to:
        raise Refused(f"--page {arguments.page}: {root} is one run; name --to FOLDER as well")
    try:
        if arguments.to or not one_run:
            folder = root / "report" / (arguments.experiment or "")
            page = write(report, arguments.to or folder, arguments.page)
            print(f"\nwritten: {page}")
        if arguments.keep:
            lines = evidence.keep(report, root, arguments.keep)
            print("\n".join([f"kept: {arguments.keep}", *lines]))
    except OSError as error:
        raise Refused(f"{error.filename}: can't be written ({error.strerror})") from error


def write(report: study.Report, folder: Path, page: Path | None) -> Path:
    """Markdown, HTML, figures and a CSV file a table, into a folder; returns the page."""
    from plots import draw
    from webpage import page as html

    folder.mkdir(parents=True, exist_ok=True)
    figures = draw(report.tables, folder / "figures") if report.tables else []
    first, _, rest = report.preface.strip().partition("\n")
    title, preface = (first[2:], rest) if first.startswith("# ") else ("Results", report.preface)
    left = [f"{len(report.others)} finished runs of no experiment are in {pages.FILE} alone"]
    notes = [*report.notes, *left * bool(report.others)]
    text = html(title, report.tables, figures, notes, preface)
    (folder / "report.html").write_text(text)
    for each in report.tables:
        (folder / f"{each.name}.csv").write_text(pages.csv_of(each))
    page = page or folder / pages.FILE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(pages.markdown(report, figures, page))
    return page


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    say = parser.add_argument
    say("outputs", type=Path, nargs="?", help="a folder of runs (record.root), or one run")
    say("--experiment", metavar="NAME", help="only the runs of this experiment")
    say(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to write (OUTPUTS/report)",
    )
    say("--page", type=Path, metavar="FILE.md", help="the Markdown page (FOLDER/report.md)")
    say("--keep", type=Path, metavar="FOLDER", help="copy there what the report rests on")
    say("--status", action="store_true", help="list the runs and their state")
    say("--compare", type=Path, nargs=2, metavar=("RUN_A", "RUN_B"), help="two run directories")
    say("--checkpoint", choices=CHECKPOINTS, help="which is compared (best)")
    try:
        outcome(parser.parse_args())
    except Refused as error:
        print(error)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
