"""Reads run directories, or a file of kept runs, and changes none of them:

sat-report outputs                    # tables and figures of all experiments
sat-report outputs --keep FILE.jsonl  # adds the runs to a file, for the same report
sat-report --status outputs           # finished, running, stopped, failed
sat-report --transfer outputs         # images crafted on each run, counted on each other

Tables go to the terminal and, as Markdown, HTML, CSV, PNG and SVG, into
outputs/report.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sat.errors import Fault, Refused
from sat.loggers import screen
from sat.loggers.markdown import html, terminal
from sat.loggers.screen import refuse, say
from sat.loggers.usage import Parser
from sat.report import pages, tables
from sat.report.runs import keep
from sat.report.status import states


def answer(given: Namespace) -> None:
    """Prints and writes what is asked for. Raises Refused, Fault or OSError where it can't be."""
    place, others = given.outputs, given.page or given.keep or given.config_dir
    if given.config_dir and not given.config_dir.is_dir():
        raise Refused(f"--config-dir: {given.config_dir}: no such folder")
    if given.status and (given.transfer or given.to or others) or given.transfer and others:
        raise Refused(
            "--status writes nothing, and --transfer into --to alone; leave the rest away"
        )
    screen.stage("reading the runs")
    if given.status:
        return say(states(place))
    if given.transfer:
        from sat.report.transfer import transfer

        return say(transfer(place, given.to or place / "report"))
    report = tables.read(place, given.config_dir)
    say(terminal(pages.markdown(report)))
    alone = place.is_file() or (place / "config.yaml").is_file()
    if folder := given.to or (None if alone else place / "report"):
        say(f"written: {write(report, folder, given.page or folder / 'report.md')}")
    elif given.page:
        raise Refused(f"--page {given.page}: {place} is no folder of runs; name --to FOLDER")
    if given.keep:
        keep(report.runs, given.keep)
        say(f"kept: {given.keep}")


def write(report: tables.Report, folder: Path, page: Path) -> Path:
    """Figures and a CSV file a table, into a folder; the page, which is returned, and as HTML."""
    screen.stage("drawing figures")
    from sat.report.figures import draw

    for place in (folder, page.parent):
        place.mkdir(parents=True, exist_ok=True)
    figures = draw(report.tables, folder / "figures") if report.tables else []
    for table in report.tables:
        (folder / f"{table.name}.csv").write_text(pages.csv_of(table))
    text = pages.markdown(report, figures, page)
    page.write_text(text)
    page.with_suffix(".html").write_text(html(text, page))
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 2 where what is asked for can't be had."""
    screen.set_up(logging.WARNING)
    parser = Parser("sat-report", None, __doc__)
    add = parser.add_argument
    add("outputs", type=Path, help="a folder of runs (record.root), a run, or a file")
    add("--to", type=Path, metavar="FOLDER", help="where to write (OUTPUTS/report)")
    add("--page", type=Path, metavar="FILE.md", help="the Markdown page (FOLDER/report.md)")
    add("--keep", type=Path, metavar="FILE", help="add the runs, without flags, to this file")
    add("--config-dir", type=Path, metavar="DIR", help="your own experiments, as of sat")
    add("--status", action="store_true", help="list the runs and their state")
    add("--transfer", action="store_true", help="who fools whom, after evaluation=transfer")
    given, more = parser.parse_known_args(arguments)
    if more:
        folder = "one folder is read; --keep FILE of each adds up, for sat-report FILE"
        parser.error(f"{more[0]}: {'no such option' if more[0][:1] == '-' else folder}")
    try:
        answer(given)
        return 0
    except (Refused, Fault) as error:
        refuse(error)
    except OSError as error:
        place = error.filename or given.to or given.outputs
        refuse(f"{place}: can't be read or written ({error.strerror or error})")
    finally:
        screen.stage()
    return 2


if __name__ == "__main__":
    sys.exit(main())
