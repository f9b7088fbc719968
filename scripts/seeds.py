"""Configurations over seeds: what `report.py` prints of a folder of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sat.console import table
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
    entries: dict[Column, dict[str, Any]]


def read_run(run: Path, name: str, result: dict[str, Any]) -> Measured:
    """Raises Refused, LookupError or TypeError where config or result are not as written."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    seedless = {**config, "seed": 0}
    entries, images = {}, result["dataset"].get("test_content")

    def entry_of(entry: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        return _entry(entry, {**settings, "test_content": images})

    for which in ("best", "last"):
        part = result.get(which) or {}
        if "clean" in part and ("", "clean") not in entries:
            entries["", "clean"] = entry_of(part["clean"], {"subset": part["clean"]["subset"]})
        robust = part.get("robust", {})
        for attack, entry in robust.items():
            if (settings := entry.get("settings")) is None:  # the worst case over several
                settings = {name: robust[name]["settings"] for name in entry["attacks"]}
            entries[which, attack] = entry_of(entry, settings)
    if config.get("evaluate") is not None:  # weights of a file: no seed has a part in it
        configuration = run.name
    elif (configuration := result.get("configuration")) is None:  # of an earlier version
        title = readable(seedless, config["choices"]).removesuffix("-s0")
        configuration = f"{title}-{identity(seedless)}"
    return Measured(name, configuration, config["seed"], entries)


def _entry(entry: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("accuracy", "ci95", "images")}
    return {**kept, "settings": {**settings, "images": entry["images"]}}


def over_seeds_table(runs: Sequence[Measured]) -> str:
    """One row a configuration, or several where its runs were not measured alike."""
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
    """Runs of one configuration that were measured alike, and what is to be said of the others."""
    rows: dict[str, list[list[Measured]]] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.configuration, run.seed, run.name)):
        own = rows.setdefault(run.configuration, [])
        if twin := next((o for row in own for o in row if o.seed == run.seed), None):
            notes.append(f"{run.name}: left out, the same run as {twin.name}")
            continue
        clashes = [_clash(row, run) for row in own]
        if (row := next((r for r, c in zip(own, clashes, strict=True) if not c), None)) is None:
            own.append(row := [])
        row.append(run)
        if clashes and all(clashes):
            notes.append(f"{run.name}: in another row, as {clashes[0]}")
    return [row for own in rows.values() for row in own], notes


def _clash(row: Sequence[Measured], run: Measured) -> str:
    """The first column that the run was measured in otherwise than the row; empty without one."""
    for other in row:
        for column in (column for column in other.entries if column in run.entries):
            if keys := _differing(*(r.entries[column]["settings"] for r in (other, run))):
                return f"{_label(column)} was measured with other settings ({', '.join(keys)})"
    return ""


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
