"""Reads run directories: `python scripts/report.py --status outputs` lists their states."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sat.checkpoint import read
from sat.console import duration, table
from sat.record import is_running, read_result
from sat.results import percent


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
        best = result.get("best") or result["last"]
        attack, robust = next(iter(best["robust"].items()), ("", None))
        took = duration(result["wall_seconds"])
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outputs", type=Path, help="a folder of runs (record.root), or one run")
    parser.add_argument("--status", action="store_true", help="list the runs and their state")
    arguments = parser.parse_args()
    if not arguments.outputs.is_dir():
        print(f"{arguments.outputs}: no such folder; name the record.root of your runs")
        return 2
    runs = runs_in(arguments.outputs)
    if not runs:
        print(f"{arguments.outputs}: holds no run; a run's directory has a config.yaml")
        return 2
    rows = [row(run, arguments.outputs) for run in runs]
    print(table(["run", "status", "clean", "robust (best)", "time or progress"], rows))
    states = [row[1] for row in rows]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
