"""Reads run directories, or a file of kept runs, and changes none of them:

sat-report outputs                    # tables and figures of all experiments
sat-report outputs --experiment NAME  # of one
sat-report outputs --keep FILE.jsonl  # adds the runs to a file, for the same report
sat-report --status outputs           # finished, running, stopped, failed
sat-report --compare RUN_A RUN_B      # image by image, with a paired test
sat-report --transfer outputs         # images crafted on each run, counted on each other

Tables go to the terminal and, as Markdown, HTML, CSV, PNG and SVG, into
outputs/report.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sat.errors import Refused
from sat.loggers import screen
from sat.loggers.screen import refuse, say
from sat.loggers.usage import Parser
from sat.report import pages, study
from sat.report.runs import keep
from sat.report.status import states


def outcome(arguments: Namespace) -> None:
    """Prints what the command line asks for. Raises Refused where it can't be had."""
    given = arguments.experiment or arguments.to or arguments.page or arguments.keep
    if arguments.status and given or arguments.compare and (given or arguments.status):
        raise Refused("--status and --compare write nothing; leave the other options away")
    screen.stage("reading the runs")
    if arguments.compare:
        if arguments.outputs:
            raise Refused("--compare: takes two runs, and no folder beside them")
        from sat.report.compare import compare

        return show(compare(*arguments.compare, arguments.checkpoint or "best"))
    if arguments.checkpoint:
        raise Refused(f"--checkpoint {arguments.checkpoint}: belongs to --compare")
    if (place := arguments.outputs) is None:
        raise Refused("no folder is named; name the record.root of your runs: outputs")
    if arguments.transfer:
        from sat.report.transfer import transfer

        return say(transfer(place, arguments.to or place / "report"))
    if arguments.status:
        return say(states(place))
    report = study.read(place, arguments.experiment)
    show(pages.markdown(report))
    alone = place.is_file() or (place / "config.yaml").is_file()
    if alone and arguments.page and not arguments.to:
        raise Refused(f"--page {arguments.page}: {place} is no folder of runs; name --to FOLDER")
    try:
        if arguments.to or not alone:
            folder = arguments.to or place / "report" / (arguments.experiment or "")
            say(f"written: {write(report, folder, arguments.page or folder / 'report.md')}")
        if arguments.keep:
            keep(report.runs, arguments.keep)
            say(f"kept: {arguments.keep}")
    except OSError as error:
        raise Refused(f"{error.filename}: can't be written ({error.strerror})") from error


def show(markdown: str) -> None:
    text = pages.terminal(markdown)
    screen.stage()
    print(text, flush=True)


def write(report: study.Report, folder: Path, page: Path) -> Path:
    """Figures and a CSV file a table, into a folder; the page as Markdown and HTML, which is
    returned."""
    screen.stage("drawing figures")
    from sat.report.figures import draw

    for place in (folder, page.parent):
        place.mkdir(parents=True, exist_ok=True)
    figures = draw(report.tables, folder / "figures") if report.tables else []
    for table in report.tables:
        (folder / f"{table.name}.csv").write_text(pages.csv_of(table))
    text = pages.markdown(report, figures, page)
    page.write_text(text)
    page.with_suffix(".html").write_text(pages.html(text, page))
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    screen.set_up(logging.WARNING)
    parser = Parser("sat-report", None, __doc__)
    add = parser.add_argument
    add("outputs", type=Path, nargs="?", help="a folder of runs (record.root), a run, or a file")
    add("--experiment", metavar="NAME", help="only the runs of this experiment")
    add("--to", type=Path, metavar="FOLDER", help="where to write (OUTPUTS/report)")
    add("--page", type=Path, metavar="FILE.md", help="the Markdown page (FOLDER/report.md)")
    add("--keep", type=Path, metavar="FILE", help="add the runs, without flags, to this file")
    add("--status", action="store_true", help="list the runs and their state")
    add("--compare", type=Path, nargs=2, metavar=("RUN_A", "RUN_B"), help="two run directories")
    add("--transfer", action="store_true", help="who fools whom, after evaluation=transfer")
    add("--checkpoint", choices=("last", "best"), help="which is compared (best)")
    try:
        outcome(parser.parse_args(arguments))
    except Refused as error:
        refuse(error)
        return 2
    finally:
        screen.stage()
    return 0


if __name__ == "__main__":
    sys.exit(main())
