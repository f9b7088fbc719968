"""Run directories as rows of a report: what was measured in each, or why nothing was.

Nothing here needs torch, which takes two seconds to import.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sat.errors import Refused
from sat.identity import SECTIONS
from sat.rundir import untrusted
from sat.rundir.record import is_running
from sat.rundir.result import RunResult, read_result

Measure = tuple[str, str]  # the checkpoint, and `clean` or an attack's name: ("best", "pgd20")
FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
FAULTS += (RecursionError, yaml.YAMLError)
CONFIG = {  # see `misfit`
    **{f"{name}?": dict for name in SECTIONS},
    "choices": dict,
    "seed": int,
    "dataset": dict.fromkeys(("name?", "root?", "path?"), str | None),
    "attack": {"_target_": str, "steps?": int},
    "model": {"name?": str | None},
    "schedule": {"epochs": float | int},
    "record": dict,
}
PLACES = ("record.root", "dataset.root", "dataset.path")  # overrides that name folders


@dataclass(frozen=True)
class Measured:
    """A finished run. `entries` has `accuracy`, `ci95`, `images` of each measure and, under
    `settings`, all that must be equal for a mean."""

    name: str
    seed: int
    images: str  # a digest of the test images
    entries: dict[Measure, dict[str, Any]]
    decided: Mapping[str, Any]  # what decided the weights but the seed, by difference, dotted keys
    config: Mapping[str, Any]
    result: RunResult
    experiments: Sequence[str]
    path: Path | None = None  # its directory; None of a kept run
    kept: Sequence[dict[str, Any]] = ()  # the validations of a kept run

    def validations(self) -> tuple[Sequence[dict[str, Any]], str | None]:
        """Held-out accuracies by epoch, and what is wrong with the file that tells them."""
        return (self.kept, None) if self.path is None else validations(self.path)


@dataclass(frozen=True)
class Left:
    """What holds no finished run, and why; `experiments` as far as it tells."""

    name: str
    experiments: Sequence[str]
    reason: str


def runs_in(root: Path) -> list[Path]:
    """Run directories below `root`, by name; those set aside by record.fresh are left out."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".replaced"]
        if "config.yaml" in files:
            found.append(Path(folder))
    return sorted(found)


def look(path: Path, root: Path) -> Measured | Left:
    """What a run directory below `root` holds; every file is read once."""
    name = " ".join(str(path.relative_to(root) if path != root else path.name).split())
    experiments: Sequence[str] = ()
    try:
        config = untrusted.read_yaml(path / "config.yaml")
        experiments = experiments_of(path, config)
        state, result = status(path)
        if state == "finished":
            return measured(name, config, result, experiments, path=path)
        reason = ": ".join([state, *filter(None, [result.get("error")])])
    except FAULTS as error:
        reason = one_line(error).replace(f"{path}/", "")
    return Left(name, experiments, reason)


def key_of(override: str) -> str:
    return str(override).split("=", 1)[0].lstrip("+~")


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


def experiments_of(path: Path, config: Mapping[str, Any]) -> list[str]:
    """The experiments under which a run was asked for."""
    try:
        names = (path / "experiments.txt").read_text().splitlines()
    except FileNotFoundError:
        names = [config["choices"].get("experiment") or ""]
    except UnicodeDecodeError:
        raise Refused("experiments.txt is damaged; write one name a line") from None
    return named(names, "experiments.txt")


def named(names: Sequence[str], where: str) -> list[str]:
    """Experiments in order; a report's folder has the name of its own, so it must be one."""
    found = sorted({name.strip() for name in names} - {""})
    for name in found:
        if not re.fullmatch(r"[\w-]+([./][\w-]+)*", name):
            raise Refused(f"{where} is damaged: {name[:40]!r} is no experiment's name")
    return found


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
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return last.split(" ERROR ", 1)[1] if " ERROR " in last else None


def measured(
    name: str,
    config: dict[str, Any],
    result: dict[str, Any],
    experiments: Sequence[str],
    **more: Any,
) -> Measured:
    """Raises ValueError where config or result are not as a run writes them."""
    if wrong := untrusted.misfit(config, CONFIG, ""):
        raise Refused(f"config.yaml is damaged: {wrong}")
    told = RunResult.from_json(result)
    entries: dict[Measure, dict[str, Any]] = {}
    for which, part in told.measured.items():
        for attack, entry in part.accuracies.items():
            settings: Mapping[str, Any] = entry.settings or {"subset": entry.subset}
            if isinstance(entry.attacks, list):  # the worst case over several
                settings = {other: part.robust[other].settings for other in entry.attacks}
            entries[which, attack] = {
                "accuracy": entry.accuracy,
                "ci95": entry.ci95,
                "images": entry.images,
                "settings": {**settings, "images": entry.images},
            }
    images = str(told.dataset.get("test_content") or "unknown")
    decided = {key: value for key, value in told.identity.items() if key != "seed"}
    if (weights := config.get("evaluate")) is not None:  # a file's: no training has a part in it
        decided = {"evaluate": {"": weights}}
    return Measured(
        name, config["seed"], images, entries, flat("", decided), config, told, experiments, **more
    )


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(f"{prefix}{key}.", value) if nested else {f"{prefix}{key}": value}
    return found


def validations(run: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of `metrics.jsonl` that a validation wrote, and what is wrong with the file."""
    rows, fault = [], None
    try:
        text = (run / "metrics.jsonl").read_text()
    except (OSError, UnicodeDecodeError) as error:
        return [], f"metrics.jsonl can't be read ({one_line(error)})"
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            if "val/clean" in row:
                wanted = [row[key] for key in ("epoch", "val/clean", "val/robust")]
                rows += [row] * all(value is not None and math.isfinite(value) for value in wanted)
        except (ValueError, TypeError, KeyError) as error:
            fault = fault or f"metrics.jsonl is damaged in line {number} ({one_line(error)})"
    return rows, fault
