"""Reads run directories and changes nothing:

python scripts/report.py outputs                    # configurations, averaged over seeds
python scripts/report.py --status outputs           # finished, running, stopped, failed
python scripts/report.py --compare RUN_A RUN_B      # image by image, with a paired test
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from compare import compare
from seeds import over_seeds_table, read_run
from yaml import YAMLError

from sat.checkpoint import read
from sat.console import duration, table
from sat.errors import Refused
from sat.record import CHECKPOINTS, is_running, read_result
from sat.results import measured, percent


def runs_in(root: Path) -> list[Path]:
    """Run directories below `root`, by name; those set aside by record.fresh are left out."""
    found = (path.parent for path in root.glob("**/config.yaml"))
    return sorted(run for run in found if ".replaced" not in run.parts)


def status(run: Path) -> tuple[str, dict[str, Any]]:
    """finished, running, stopped, failed or damaged; and the result as far as there is one."""
    try:
        result = read_result(run) or {}
    except ValueError as error:
        return "damaged", {"error": str(error)}
    if is_running(run):
        return "running", result
    if not result and (fault := last_error(run)):
        return "failed", {"error": f"{fault} (resumable)"}
    return result.get("status", "stopped"), result


def last_error(run: Path) -> str | None:
    """The fault that a run's log ends with, if it does."""
    try:
        last = (run / "log.txt").read_text().splitlines()[-1]
    except (OSError, IndexError):
        return None
    return last.split(" ERROR ", 1)[1] if " ERROR " in last else None


def row(run: Path, root: Path) -> list[str]:
    """Name, state, clean, robust and how far it came, of one run."""
    state, result = status(run)
    name = str(run.relative_to(root)) if run != root else run.name
    if state == "finished":
        best = next(iter(measured(result).values()))
        attack, robust = next(iter(best["robust"].items()), ("", None))
        took = duration(result["wall_seconds"])
        if (run / "flags" / "partial").exists():
            took += ", an evaluation stopped"
        return [name, state, percent(best["clean"]), f"{attack} {percent(robust)}".strip(), took]
    return [name, state, "-", "-", result.get("error") or progress(run)]


def progress(run: Path) -> str:
    """How far a run without a result has come, by its last metrics and its last checkpoint."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        epoch = f"epoch {json.loads(lines[-1])['epoch']:g}"
    except (OSError, IndexError, ValueError, KeyError):
        epoch = "no metrics yet"
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


def averages(runs: list[Path], root: Path) -> str:
    """Configurations over seeds, of finished runs; the others are named below."""
    finished, others = [], []
    for run in runs:
        name = str(run.relative_to(root)) if run != root else run.name
        state, result = status(run)
        try:
            if state == "finished":
                finished.append(read_run(run, name, result))
            else:
                others.append(": ".join([name, state, *filter(None, [result.get("error")])]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError) as error:
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            others.append(f"{name}: can't be read ({fault})")
    parts = [over_seeds_table(finished) if finished else "no finished run"]
    if others:
        parts.append("\n".join(["Not in the table:", *(f"  {line}" for line in others)]))
    return "\n\n".join(parts)


def report(arguments: argparse.Namespace) -> str:
    """What the command line asks for. Raises Refused where it can't be had."""
    if arguments.compare:
        if arguments.outputs or arguments.status:
            raise Refused(
                "--compare: takes two runs, and neither a folder nor --status beside them"
            )
        return compare(*arguments.compare, arguments.checkpoint or "best")
    if arguments.checkpoint:
        raise Refused(f"--checkpoint {arguments.checkpoint}: belongs to --compare")
    if (root := arguments.outputs) is None:
        raise Refused("no folder is named; name the record.root of your runs: outputs")
    if not root.is_dir():
        raise Refused(f"{root}: no such folder; name the record.root of your runs")
    if not (runs := runs_in(root)):
        raise Refused(f"{root}: holds no run; a run's directory has a config.yaml")
    return states(runs, root) if arguments.status else averages(runs, root)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    say = parser.add_argument
    say("outputs", type=Path, nargs="?", help="a folder of runs (record.root), or one run")
    say("--status", action="store_true", help="list the runs and their state")
    say("--compare", type=Path, nargs=2, metavar=("RUN_A", "RUN_B"), help="two run directories")
    say("--checkpoint", choices=CHECKPOINTS, help="which is compared (best)")
    try:
        print(report(parser.parse_args()))
    except Refused as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
