"""What `sat-report --status` prints: the runs below a folder, their state, and how far each came.
Needs no torch."""

import json
from pathlib import Path

from sat.errors import Refused
from sat.loggers.screen import duration, percent, table
from sat.report.runs import FAULTS, one_line, runs_in, status
from sat.rundir.untrusted import read_yaml


def states(root: Path) -> str:
    """The table, and how many runs are in each state."""
    if not root.is_dir():
        raise Refused(f"{root}: no such folder; name the record.root of your runs")
    if not (runs := runs_in(root)):
        raise Refused(f"{root}: holds no run; a run's directory has a config.yaml")
    rows = [line(run, root) for run in runs]
    listed = [row[1] for row in rows]
    counts = ", ".join(f"{listed.count(state)} {state}" for state in dict.fromkeys(listed))
    head = ["run", "status", "clean", "robust (best)", "time or progress"]
    return f"{table(head, rows)}\n{counts}"


def line(run: Path, root: Path) -> list[str]:
    """Name, state, clean, robust and how far it came, of one run."""
    name = str(run.relative_to(root)) if run != root else run.name
    try:
        return [name, *measured(run)]
    except FAULTS as error:
        return [name, "damaged", "-", "-", one_line(error)]


def measured(run: Path) -> list[str]:
    """Columns without the name. Raises one of FAULTS where a file is not as a run writes it."""
    state, result = status(run)
    if state == "finished":
        best = next(result[k] for k in ("best", "last") if "clean" in (result.get(k) or {}))
        attack, robust = next(iter(best["robust"].items()), ("", None))
        took = duration(result["wall_seconds"])
        if (run / "flags" / "partial").exists():
            took += ", an evaluation stopped"
        return [state, percent(best["clean"]), f"{attack} {percent(robust)}".strip(), took]
    if fault := result.get("error"):
        return [state, "-", "-", " ".join(str(fault).split())[:200]]
    return [state, *progress(run)]


def progress(run: Path) -> list[str]:
    """Held-out clean and robust accuracy, and the epoch, of the last metrics of a run."""
    rows = []
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "epoch" in row]
    except (OSError, ValueError, TypeError):
        pass  # cut off in its last line, or none yet
    if not rows:
        return ["-", "-", "no metrics yet"]
    epochs = read_yaml(run / "config.yaml")["schedule"]["epochs"]
    held_out = next((row for row in reversed(rows) if "val/robust" in row), {})
    shares = [held_out.get(f"val/{name}") for name in ("clean", "robust")]
    shown = ["-" if share is None else f"held out {share:.1%}" for share in shares]
    seconds, epoch = rows[-1].get("seconds"), rows[-1]["epoch"]
    left = f", {duration(seconds * (epochs / epoch - 1))} left" if seconds and epoch else ""
    return [*shown, f"epoch {epoch:g} of {epochs:g}{left}"]
