"""One file with the runs of a report, a line of JSON each: small enough to be kept beside it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sat.errors import Refused
from sat.report.runs import FAULTS, PLACES, Left, Measured, key_of, measured, named, one_line
from sat.rundir.files import read_text


def read(file: Path) -> Iterator[Measured | Left]:
    """The runs of a file that `keep` wrote; a damaged line is one that is left out."""
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: can't be read ({one_line(error)})") from None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            run = json.loads(line)
            names = named(run["experiments"])
            rows = [dict(row) for row in run["validations"]]
            yield measured(str(run["name"]), names, run["config"], run["result"], kept=rows)
        except FAULTS as error:
            yield Left(f"{file.name}:{number}", (), one_line(error))


def keep(runs: Sequence[Measured], file: Path) -> None:
    """Adds finished runs to a file, one a line, in place of those of the same name: all that a
    report rests on, without what is of one machine alone (its name, its folders). Flags stay
    behind, so two networks of one seed are compared from whole runs only."""
    found = {}
    for run in [*(read(file) if file.exists() else ()), *runs]:
        if isinstance(run, Left):
            raise Refused(f"{file}: {run.name} {run.reason}; mend or delete the line")
        found[run.name] = run
    told = [json.dumps(kept_of(found[name]), separators=(",", ":")) for name in sorted(found)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in told))


def kept_of(run: Measured) -> dict[str, Any]:
    """The line of a run: config, result without its bulky parts, and validations."""
    config = {**run.config, "record": {**run.config["record"], "root": "outputs"}}
    dataset = run.config["dataset"]
    names = {key: Path(dataset[key]).name for key in ("root", "path") if dataset.get(key)}
    config["dataset"] = {**dataset, **names}  # the last part may be the set's name
    if config.get("evaluate") is not None:
        config["evaluate"] = run.name
    result = run.result.as_json()
    result.pop("lengths", None)  # by names of files that hold the host's
    words = result.get("overrides") or ()
    result["overrides"] = [word for word in words if key_of(word) not in PLACES]
    machine = ("host", "command")
    told = result["environment"].items()
    result["environment"] = {key: value for key, value in told if key not in machine}
    for part in (result.get("best") or {}, result.get("last") or {}):
        for bulky in ("masking_checks", "curves", "environment"):
            part.pop(bulky, None)
        for entry in [part.get("clean") or {}, *part.get("robust", {}).values()]:
            entry.pop("environment", None)
    keys = ("step", "epoch", "images", "val/clean", "val/robust")
    rows = [{key: row[key] for key in keys if key in row} for row in run.validations()[0]]
    return {"name": run.name, "experiments": list(run.experiments), "config": config,
            "result": result, "validations": rows}  # fmt: skip
