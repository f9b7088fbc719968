"""What a run directory tells of itself, without torch: its state, its experiments, its metrics."""

import json
import os
from pathlib import Path
from typing import Any

from sat.errors import Refused, first_line
from sat.rundir.files import read_text
from sat.rundir.lock import is_running
from sat.rundir.result import read_result


def runs_in(root: Path) -> dict[str, Path]:
    """Run directories below `root` by their names, without those set aside by record.fresh. Raises
    Refused where there is none."""
    if not root.is_dir():
        raise Refused(f"{root}: no such folder; name the record.root of your runs")
    found = []
    for folder, folders, files in os.walk(root):  # passes over what goes meanwhile
        folders[:] = [name for name in folders if name != ".replaced"]
        found += [Path(folder)] if "config.yaml" in files else []
    if not found:
        raise Refused(f"{root}: holds no run; a run's directory has a config.yaml")
    return {root.name if path == root else str(path.relative_to(root)): path
            for path in sorted(found)}  # fmt: skip


def status(run: Path) -> tuple[str, dict[str, Any]]:
    """finished, running, stopped, failed or damaged; and the result as far as there is one."""
    try:
        result = read_result(run) or {}
    except ValueError as error:
        return "damaged", {"error": str(error)}
    if is_running(run):
        return "running", result
    try:
        last = read_text(run / "log.txt").splitlines()[-1]
    except (OSError, IndexError, UnicodeDecodeError):
        last = ""
    _, fault, reason = last.partition(" ERROR ")
    if fault and not result:
        return "failed", {"error": f"{reason} (resumable)"}
    return result.get("status", "stopped"), result


def experiments_of(path: Path) -> list[str]:
    """The experiments under which a run was asked for."""
    try:
        return sorted({*read_text(path / "experiments.txt").split()})
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise Refused(f"experiments.txt is damaged ({error.reason})") from None


def metrics(run: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of `metrics.jsonl` that are whole, and what is wrong with the file."""
    rows, fault = [], None
    try:
        lines = read_text(run / "metrics.jsonl").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], f"metrics.jsonl can't be read ({first_line(error)})"
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            fault = fault or f"metrics.jsonl is damaged in line {number} ({first_line(error)})"
    return rows, fault
