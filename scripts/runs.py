"""Run directories as they lie on disk: which there are, how far they came, what was measured.

Nothing here needs torch, which takes two seconds to import.
"""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sat.errors import Refused
from sat.identity import deciding, identity, readable, trained_by
from sat.rundir import untrusted
from sat.rundir.record import is_running
from sat.rundir.result import read_result

Measure = tuple[str, str]  # the checkpoint, and `clean` or an attack's name: ("best", "pgd20")
FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
FAULTS += (RecursionError, yaml.YAMLError)


@dataclass(frozen=True)
class Measured:
    """A finished run. `entries` has `accuracy`, `ci95`, `images` of each measure and, under
    `settings`, all that must be equal for a mean."""

    path: Path
    name: str
    configuration: str  # the name that it shares with runs which differ in the seed alone
    seed: int
    images: str | None  # a digest of the test images; None in results of earlier versions
    entries: dict[Measure, dict[str, Any]]
    config: dict[str, Any]
    result: dict[str, Any]
    experiments: Sequence[str]


@dataclass(frozen=True)
class Left:
    """A run directory that holds no finished run, and why; `experiments` as far as it tells."""

    path: Path
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
        config = read_yaml(path / "config.yaml", aliases=False)
        experiments = experiments_of(path, config)
        state, result = status(path)
        if state == "finished":
            return _measured(path, name, config, result, experiments)
        reason = ": ".join([state, *filter(None, [result.get("error")])])
    except FAULTS as error:
        reason = f"can't be read ({one_line(error)})"
    return Left(path, name, experiments, reason)


def read_yaml(path: Path, aliases: bool = True) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises Refused for another, named without its folder."""
    try:
        return untrusted.read_yaml(path, aliases)
    except Refused as error:
        text = str(error).removeprefix(f"{path}: ")
        text = re.sub(r"^can't be read \((.*)\)$", r"is damaged: \1", text)
        raise Refused(f"{path.name} {text}") from None


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


def experiments_of(path: Path, config: dict[str, Any]) -> list[str]:
    """The experiments under which a run was asked for."""
    try:
        lines = (path / "experiments.txt").read_text().splitlines()
    except FileNotFoundError:
        lines = [config["choices"].get("experiment") or ""]
    except UnicodeDecodeError:
        raise Refused("experiments.txt is damaged; write one name a line") from None
    names = {line.strip() for line in lines} - {""}
    for name in names:  # a report's folder has the name of its experiment
        if not re.fullmatch(r"[\w-]+([./][\w-]+)*", name):
            raise Refused(f"experiments.txt is damaged: {name[:40]!r} is no experiment's name")
    return sorted(names)


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


def _measured(
    path: Path, name: str, config: dict[str, Any], result: dict[str, Any], experiments: list[str]
) -> Measured:
    """Raises one of FAULTS where config or result are not as written."""
    check(config, result)
    entries: dict[Measure, dict[str, Any]] = {}
    for which in ("best", "last"):
        part = result.get(which) or {}
        if "clean" in part:
            entries[which, "clean"] = _entry(part["clean"], {"subset": part["clean"]["subset"]})
        robust = part.get("robust", {})
        for attack, entry in robust.items():
            if (settings := entry.get("settings")) is None:  # the worst case over several
                settings = {name: robust[name]["settings"] for name in entry["attacks"]}
            entries[which, attack] = _entry(entry, settings)
    if config.get("evaluate") is not None:  # weights of a file: no seed has a part in it
        configuration = path.name
    elif (configuration := result.get("configuration")) is None:  # of an earlier version
        seedless = {**config, "seed": 0}
        title = readable(seedless, config["choices"]).removesuffix("-s0")
        configuration = f"{title}-{identity(seedless)}"
    images = result["dataset"].get("test_content")
    seed = int(config["seed"])
    return Measured(path, name, configuration, seed, images, entries, config, result, experiments)


def check(config: dict[str, Any], result: dict[str, Any]) -> None:
    """Raises one of FAULTS for values that no run writes, where tables would trip over them."""
    trained_by(config)
    wanted = {
        "config.yaml": [
            (config["schedule"]["epochs"], float | int),
            (config["attack"].get("steps", 1), int),
            (config["attack"]["_target_"], str),
            (config["model"].get("name"), str | None),
            (config["choices"], dict),
            (config["seed"], int),
        ],
        "result.json": [
            (result["dataset"]["name"], str),
            (result["dataset"].get("test_content"), str | None),
            (result.get("configuration"), str | None),
            (result.get("parameters"), int | None),
            (result.get("multiply_adds"), int | float | None),
            (result.get("wall_seconds"), int | float | None),
            (result.get("environment"), dict | None),
            (result.get("alarms"), list | None),
        ],
    }
    for name, pairs in wanted.items():
        for value, kind in pairs:
            finite = not isinstance(value, int | float) or abs(value) < 1e15
            if not isinstance(value, kind) or not finite:  # nan is not below anything
                raise Refused(f"{name} is damaged: a value is {str(value)[:40]!r}")


def _entry(entry: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("accuracy", "ci95", "images")}
    if not all(0 <= value <= 1 for value in (kept["accuracy"], *kept["ci95"])):
        raise ValueError(f"an accuracy is {kept['accuracy']}, in {kept['ci95']}")
    return {**kept, "settings": {**deciding(settings), "images": entry["images"]}}


def validation(run: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of `metrics.jsonl` that a validation wrote, and what is wrong with the file."""
    rows, fault = [], None
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], f"metrics.jsonl can't be read ({one_line(error)})"
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if "val/clean" in row:
                wanted = [row[key] for key in ("epoch", "val/clean", "val/robust")]
                rows += [row] * all(value is not None and math.isfinite(value) for value in wanted)
        except (ValueError, TypeError, KeyError) as error:
            fault = fault or f"metrics.jsonl is damaged in line {number} ({one_line(error)})"
    return rows, fault
