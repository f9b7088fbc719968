"""Finished runs, of a folder of run directories or of one file of kept ones: what was measured in
each, or why nothing was. Needs no torch, which takes two seconds to import."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sat.config import key_of
from sat.errors import Refused, first_line
from sat.identity import NEUTRAL, SECTIONS, digest
from sat.report.spec import FILES
from sat.rundir import untrusted
from sat.rundir.checkpoint import write_whole
from sat.rundir.files import read_text
from sat.rundir.lock import one_at_a_time
from sat.rundir.reading import experiments_of, metrics, runs_in, status
from sat.rundir.result import CHECKPOINTS, AttackResult, RunResult

Measure = tuple[str, str]  # the checkpoint, and `clean` or an attack's name: ("best", "pgd20")
CONFIG = {  # see `misfit`
    **{f"{name}?": dict for name in SECTIONS},
    "choices": dict,
    "seed": int,
    "dataset": dict.fromkeys(("name?", "root?", "path?"), str | None),
    "attack": {"_target_": str, "steps?": int, "replays?": int},
    "model": {"name?": str | None},
    "schedule": {"epochs": float | int},
    "record": dict,
}
PLACES = ("record.root", "dataset.root", "dataset.path")  # overrides that name folders
VALIDATION = ("step", "epoch", "images", "val/clean", "val/robust")  # what is read of one
LEFT_BEHIND = ("host", "command", "environment", "masking_checks", "curves")  # by kept runs


@dataclass(frozen=True)
class Measured:
    """A finished run."""

    name: str
    experiments: Sequence[str]
    config: Mapping[str, Any]
    result: RunResult
    entries: Mapping[Measure, AttackResult]  # their settings are all that must be equal for a mean
    decided: Mapping[str, Any]  # what decided the weights but the seed, by difference, dotted keys
    validations: Sequence[dict[str, Any]] = ()  # held-out accuracies by epoch
    fault: str | None = None  # what is wrong with the file that tells them

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def is_checked(self, attack: str) -> bool:
        """Whether its accuracy was checked for masked gradients, or was to be: of a kept run its
        config alone tells."""
        found = any(attack in part.masking_checks for part in self.result.measured.values())
        return found or self.config.get("evaluation", {}).get("masking_checks") != 0

    def value(self, key: str) -> Any:
        """A key's value: a group's option by its name; None for a key that is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if "." not in key:
            value = self.config["choices"].get(key, NEUTRAL.get(key, value))
        simple = value is None or isinstance(value, str | int | float)
        return value if simple else json.dumps(value)


def read(place: Path) -> tuple[list[Measured], dict[str, str]]:
    """The finished runs below a folder, every file of which is read once, or in a file that `keep`
    wrote; and why what else is there is none, by its name. Raises Refused where there is nothing.
    """
    if place.is_file():
        return kept_in(place)
    found, left = list[Measured](), dict[str, str]()
    for name, path in runs_in(place).items():
        try:
            config = untrusted.read_yaml(path / "config.yaml")
            state, result = status(path)
            if state == "finished":
                found.append(measured(name, experiments_of(path), config, result, *metrics(path)))
            else:
                left[name] = ": ".join([state, *filter(None, [result.get("error")])])
        except Exception as error:  # of any kind: anybody may have written to these files
            left[name] = first_line(error).replace(f"{path}/", "")
    return found, left


def finished(place: Path) -> list[Measured]:
    return read(place)[0]


def measured(
    name: str, experiments: Sequence[str], config: dict[str, Any], result: dict[str, Any],
    rows: Sequence[dict[str, Any]], fault: str | None = None,
) -> Measured:  # fmt: skip
    """Raises ValueError where config or result are not as a run writes them."""
    if wrong := untrusted.misfit(config, CONFIG, ""):
        raise Refused(f"config.yaml is damaged: {wrong}")
    told = RunResult.from_json(result)
    entries: dict[Measure, AttackResult] = {}
    for which, part in told.measured.items():
        for attack, entry in part.accuracies.items():
            settings: Mapping[str, Any] = entry.settings or {"subset": entry.subset}
            if isinstance(entry.attacks, list):  # the worst case over several
                settings = {other: part.robust[other].settings for other in entry.attacks}
            settings = {**settings, "images": entry.images}
            entries[which, attack] = replace(entry, settings=settings)
    decided = {key: value for key, value in told.identity.items() if key != "seed"}
    if (weights := config.get("evaluate")) is not None:  # a file's: no training has a part in it
        decided = {"evaluate": weights, "hash": digest(decided)}  # of what the file holds
        experiments = [FILES]
    needed = dict.fromkeys(("epoch", "val/clean", "val/robust"), float | int)
    rows = [row for row in rows if not untrusted.misfit(row, needed, "")]
    rows = [{key: row[key] for key in VALIDATION if key in row} for row in rows]
    return Measured(name, experiments, config, told, entries, flat(decided), rows, fault)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


# one file of kept runs ----------------------------------------------------------------------------


def kept_in(file: Path) -> tuple[list[Measured], dict[str, str]]:
    """Runs of a file, a line of JSON each; and what is wrong with damaged lines, by their place."""
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: can't be read ({first_line(error)})") from None
    found, left = list[Measured](), dict[str, str]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            untrusted.check_plain(run := json.loads(line))
            names, rows = map(str, run["experiments"]), [dict(row) for row in run["validations"]]
            name, config, result = str(run["name"]), run["config"], run["result"]
            found.append(measured(name, [*names], config, result, rows))
        except Exception as error:
            left[f"{file.name}:{number}"] = first_line(error)
    return found, left


def keep(runs: Sequence[Measured], file: Path) -> None:
    """Adds finished runs to a file, one a line, in place of those of the same name: all that a
    report rests on, without what is of one machine alone (its name, its folders)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(file.parent):
        kept, damaged = kept_in(file) if file.exists() else ([], {})
        for line, reason in damaged.items():
            raise Refused(f"{file}: {line} {reason}; mend or delete the line")
        found = {run.name: run for run in [*kept, *runs]}
        lines = [json.dumps(kept_of(found[name]), separators=(",", ":")) for name in sorted(found)]
        write_whole(file, lambda into: into.write("".join(line + "\n" for line in lines).encode()))


def kept_of(run: Measured) -> dict[str, Any]:
    """The line of a run: config, result without its bulky parts, and validations."""
    config, result = deepcopy(dict(run.config)), run.result.as_json()
    config["record"]["root"] = "outputs"
    for key in ("root", "path"):
        if place := config["dataset"].get(key):
            config["dataset"][key] = Path(place).name  # it may be the set's name
    if config.get("evaluate") is not None:
        config["evaluate"] = run.result.configuration or run.name  # without the seed
    result.pop("lengths", None)  # by names of files that hold the host's
    result["overrides"] = [word for word in result["overrides"] if key_of(word) not in PLACES]
    parts = [result[which] for which in CHECKPOINTS if result.get(which)]
    entries = [each for part in parts for each in (part.get("clean"), *part["robust"].values())]
    for each in filter(None, [result["environment"], *parts, *entries]):
        for key in LEFT_BEHIND:
            each.pop(key, None)
    return {"name": run.name, "experiments": list(run.experiments), "config": config,
            "result": result, "validations": run.validations}  # fmt: skip
