"""What a report rests on, small enough to be kept beside it: `report.py --keep`."""

import json
from pathlib import Path
from typing import Any

import yaml
from runs import FAULTS, runs_in, validation
from study import Report

from sat.errors import Refused

FILES = ("config.yaml", "result.json", "experiments.txt")
PLACES = ("record.root", "dataset.root", "dataset.path")


def keep(report: Report, root: Path, folder: Path) -> list[str]:
    """Copies of every run that the report looked at, from which the same report comes out: a few
    kB each. Of `metrics.jsonl` validations alone, and only for experiments that draw epochs. Flags
    stay behind, so differences of one seed are told from the whole runs only.

    Returns a line for each run in the folder that is none of these. Raises Refused for a folder
    among the runs, where copies would be found as runs.
    """
    if folder.resolve().is_relative_to(root.resolve()):
        raise Refused(f"--keep {folder}: lies among the runs of {root}; name a folder elsewhere")
    drawn = {
        run
        for table in report.tables
        if any(figure["kind"] == "epochs" for figure in table.spec.get("figures") or ())
        for row in table.rows
        for run in row.runs
    }
    kept = set()
    for run in report.sources:
        to = folder / (run.relative_to(root) if run != root else run.name)
        kept.add(to)
        to.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (run / name).is_file():
                (to / name).write_bytes(impersonal(name, (run / name).read_bytes()))
        if run in drawn:
            (to / "metrics.jsonl").write_text(cut(run))
    if report.preface:
        (folder / "preface.md").write_text(report.preface)
    strangers = [run for run in runs_in(folder) if run not in kept]
    return [f"{run}: is no run of this report; delete it if it is old" for run in strangers]


def impersonal(name: str, content: bytes) -> bytes:
    """A file without what is of one machine alone: where it keeps its folders, and its name."""
    try:
        if name == "config.yaml":
            config = yaml.safe_load(content)
            config["record"]["root"] = "outputs"
            for key in ("root", "path"):  # the last part may be the set's name
                if config["dataset"].get(key):
                    config["dataset"][key] = Path(config["dataset"][key]).name
            return yaml.safe_dump(config, sort_keys=False).encode()
        if name == "result.json":
            result = nameless(json.loads(content))
            result.pop("lengths", None)  # by names of files that hold the host's
            result["overrides"] = [o for o in result["overrides"] if key_of(o) not in PLACES]
            return (json.dumps(result, indent=1) + "\n").encode()
    except FAULTS:  # damaged: the report says so, from the copy as well
        pass
    return content


def nameless(value: Any) -> Any:
    """JSON in which no environment, of the training or of an evaluation, names host and command."""
    if isinstance(value, list):
        return [nameless(each) for each in value]
    if not isinstance(value, dict):
        return value
    hidden = ("host", "command") if "torch" in value else ()
    return {key: nameless(each) for key, each in value.items() if key not in hidden}


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def cut(run: Path) -> str:
    """The validations of a run's metrics, as lines of JSON."""
    wanted = ("step", "epoch", "images", "seconds", "val/clean", "val/robust")
    rows, _ = validation(run)
    return "".join(json.dumps({k: row[k] for k in wanted if k in row}) + "\n" for row in rows)
