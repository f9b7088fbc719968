"""What became of the jobs of one sweep: a line each in a file that all of its processes share."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sat.console import table

log = logging.getLogger("sat")
FOLDER = "SAT_SWEEP_DIR"  # an environment variable, so that worker processes inherit it


def _ledger() -> Path:
    return Path(os.environ[FOLDER]) / "jobs.jsonl"


def note(job: dict[str, Any]) -> None:
    """Adds a job's line; one small write, so that lines of two processes do not mix."""
    with open(_ledger(), "a") as file:
        file.write(json.dumps(job) + "\n")


def jobs() -> list[dict[str, Any]]:
    """The jobs that were noted, in their order in the sweep; the newest line of each counts."""
    if not _ledger().exists():
        return []
    latest = {row["job"]: row for row in map(json.loads, _ledger().read_text().splitlines())}
    return [latest[number] for number in sorted(latest)]


def twin(number: int, name: str) -> int | None:
    """An earlier job of this sweep that is the same run."""
    return next((job["job"] for job in jobs() if job.get("name") == name and job["job"] != number),
                None)  # fmt: skip


def exit_code(done: Sequence[dict[str, Any]]) -> int:
    """1 if any job had a fault or did not end, else 2 if any was refused, else 0."""
    codes = {job["code"] for job in done}
    return 1 if codes - {0, 2} else max(codes, default=0)


def report() -> None:
    """The sweep's table on the screen, where there was a sweep."""
    done = jobs()
    if len(done) > 1:
        log.info("\n%s", summary(done))


def summary(done: Sequence[dict[str, Any]]) -> str:
    """A row a job, told by what it does not share with all; below, why those failed that did."""
    shared = set.intersection(*(set(job["overrides"]) for job in done))
    told = {
        job["job"]: " ".join(o for o in job["overrides"] if o not in shared) or "(as the others)"
        for job in done
    }
    first = {job.get("name"): job["job"] for job in reversed(done)}
    rows = []
    for job in done:
        numbers = [job.get("clean", "-"), job.get("robust", "-")]
        if job.get("name") and first[job["name"]] != job["job"]:
            numbers = ["the same run", f"as job {first[job['name']]}"]
        rows.append([str(job["job"]), *numbers, "  " + told[job["job"]]])
    head = ["job", "clean (best)", "robust (best)", "  of"]
    width = max(len(row[-1]) for row in [head, *rows])
    lines = [table(head[:-1] + [head[-1].ljust(width)],
                   [row[:-1] + [row[-1].ljust(width)] for row in rows])]  # fmt: skip
    lines += [
        f"! job {job['job']} ({told[job['job']]}): {job['message']}" for job in done if job["code"]
    ]
    return "\n".join(lines)
