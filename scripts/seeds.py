"""Configurations over seeds: what `report.py` prints of a folder of runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sat.console import table
from sat.flags import deciding
from sat.identity import identity, readable
from sat.results import percent
from sat.statistics import over_seeds

Column = tuple[str, str]  # the checkpoint and the attack; ("", "clean") of `best`
LEGEND = """\
Of the checkpoint `best`, but for `last`. ±: 95 % interval of the mean over seeds, Student's t,
on the same test images. * one seed: Wilson's interval over its images, which tells nothing of
other seeds."""


@dataclass(frozen=True)
class Measured:
    """A finished run: its configuration's name without the seed, and an entry of each column with
    `accuracy`, `ci95`, `images` and, under `settings`, all that must be equal for a mean."""

    name: str
    configuration: str
    seed: int
    images: str | None  # a digest of the test images
    entries: dict[Column, dict[str, Any]]


def read_run(run: Path, name: str, result: dict[str, Any]) -> Measured:
    """Raises Refused, LookupError or TypeError where config or result are not as written."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    seedless = {**config, "seed": 0}
    entries, images = {}, result["dataset"].get("test_content")
    for which in ("best", "last"):
        part = result.get(which) or {}
        if "clean" in part and ("", "clean") not in entries:
            entries["", "clean"] = _entry(part["clean"], {"subset": part["clean"]["subset"]})
        robust = part.get("robust", {})
        for attack, entry in robust.items():
            if (settings := entry.get("settings")) is None:  # the worst case over several
                settings = {name: robust[name]["settings"] for name in entry["attacks"]}
            entries[which, attack] = _entry(entry, settings)
    if config.get("evaluate") is not None:  # weights of a file: no seed has a part in it
        configuration = run.name
    elif (configuration := result.get("configuration")) is None:  # of an earlier version
        title = readable(seedless, config["choices"]).removesuffix("-s0")
        configuration = f"{title}-{identity(seedless)}"
    return Measured(name, configuration, config["seed"], images, entries)


def _entry(entry: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("accuracy", "ci95", "images")}
    return {**kept, "settings": {**deciding(settings), "images": entry["images"]}}


def over_seeds_table(runs: Sequence[Measured]) -> str:
    """One row a configuration, with a cell for each attack over the seeds measured alike."""
    rows, notes = grouped(runs)
    columns = list(dict.fromkeys(c for run in runs for c in run.entries if c[0] != "last"))
    columns += dict.fromkeys(c for run in runs for c in run.entries if c[0] == "last")
    head = ["configuration", "seeds", "images", *(_label(column) for column in columns)]
    cells = [
        [row[0].configuration, str(len(row)), _images(row), *(_cell(row, c) for c in columns)]
        for row in rows
    ]
    return "\n".join(
        [table(head, cells), "", *notes, *_unlike([run for row in rows for run in row]), LEGEND]
    )


def grouped(runs: Sequence[Measured]) -> tuple[list[list[Measured]], list[str]]:
    """Runs of one configuration and one test set, and what is to be said of others."""
    rows: dict[tuple[str, str | None], list[Measured]] = {}
    notes: list[str] = []
    digests: dict[str, set[str]] = {}
    for run in runs:
        digests.setdefault(run.configuration, set()).update([run.images] if run.images else [])
    for run in sorted(runs, key=lambda run: (run.configuration, run.seed, run.name)):
        known = digests[run.configuration]  # results of earlier versions have no digest
        images = next(iter(known)) if run.images is None and len(known) == 1 else run.images
        row = rows.setdefault((run.configuration, images), [])
        if twin := next((other for other in row if other.seed == run.seed), None):
            notes.append(f"{run.name}: left out, the same run as {twin.name}")
        else:
            row.append(run)
    for row in rows.values():
        notes += _make_alike(row)
    return list(rows.values()), notes


def _make_alike(row: Sequence[Measured]) -> list[str]:
    """Keeps in each column what most runs of a row were measured with, of as many the larger
    part of the test set; the other entries go, and a line of each says so."""
    notes = []
    for column in dict.fromkeys(column for run in row for column in run.entries):
        kinds: dict[str, list[Measured]] = {}
        for run in (run for run in row if column in run.entries):
            text = json.dumps(run.entries[column]["settings"], sort_keys=True)
            kinds.setdefault(text, []).append(run)
        best = max(kinds.values(), key=lambda k: (len(k), k[0].entries[column]["images"]))
        for run in (run for kind in kinds.values() if kind is not best for run in kind):
            other = run.entries.pop(column)["settings"]
            keys = ", ".join(_differing(other, best[0].entries[column]["settings"]))
            notes.append(f"{run.name}: {_label(column)} left out, of other settings ({keys})")
    return notes


def _differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*a, *b} if a.get(key) != b.get(key))


def _unlike(runs: Sequence[Measured]) -> list[str]:
    """A line for each attack whose name stands for other settings in other rows."""
    settings: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for (_, attack), entry in run.entries.items():
            settings.setdefault(attack, []).append(entry["settings"])
    lines = []
    for attack, found in settings.items():
        if keys := sorted({key for other in found for key in _differing(found[0], other)}):
            lines.append(f"{attack}: not the same in every row ({', '.join(keys)})")
    return lines


def _label(column: Column) -> str:
    return f"last {column[1]}" if column[0] == "last" else column[1]


def _images(row: Sequence[Measured]) -> str:
    """Over how many images: one number, or one for each that differs, in the columns' order."""
    counts = dict.fromkeys(e["images"] for run in row for e in run.entries.values())
    return ", ".join(f"{count:,}" for count in counts) or "-"


def _cell(row: Sequence[Measured], column: Column) -> str:
    """`78.4 ± 1.7 %`, with n where it is not that of the row; `78.3 % (73.7 % - 82.3 %) *`."""
    entries = [run.entries[column] for run in row if column in run.entries]
    if not entries:
        return "-"
    if len(entries) == 1:
        return f"{percent(entries[0])} *"
    found = over_seeds([entry["accuracy"] for entry in entries])
    half = found["ci95"][1] - found["mean"]
    some = f" (n={found['n']})" if found["n"] < len(row) else ""
    return f"{100 * found['mean']:.1f} ± {100 * half:.1f} %{some}"
