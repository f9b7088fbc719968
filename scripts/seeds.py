"""Configurations over seeds: runs that may be averaged, and a table of them."""

import json
from collections.abc import Sequence
from typing import Any

from runs import Measure, Measured

from sat.loggers.screen import percent
from sat.statistics import over_seeds

LEGEND = """\
Of the checkpoint `best`, but for `last`. ±: 95 % interval of the mean over seeds, Student's t,
on the same test images. * one seed: Wilson's interval over its images, which tells nothing of
other seeds."""


def averages(runs: Sequence[Measured]) -> tuple[list[str], list[list[str]], list[str]]:
    """The table's head, a row for each configuration with a cell for each measure over the seeds
    measured alike, and what is to be said of runs and columns."""
    rows, notes = grouped(runs)
    columns = list(dict.fromkeys(c for run in runs for c in run.entries if c[0] != "last"))
    last = dict.fromkeys(c for run in runs for c in run.entries if c[0] == "last")
    columns += [c for c in last if c[1] != "clean" or ("best", "clean") not in columns]
    head = ["configuration", "seeds", "images", *(label(column) for column in columns)]
    cells = [
        [row[0].configuration, str(len(row)), _images(row), *(_cell(row, c) for c in columns)]
        for row in rows
    ]
    return head, cells, notes + _unlike([run for row in rows for run in row])


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
        notes += join(rows.setdefault((run.configuration, images), []), run)
    for row in rows.values():
        notes += make_alike(row)
    return list(rows.values()), notes


def join(row: list[Measured], run: Measured) -> list[str]:
    """Adds a run to those of a row, but for one of the same seed: a line says so."""
    if twin := next((other for other in row if other.seed == run.seed), None):
        return [f"{run.name}: left out, the same run as {twin.name}"]
    row.append(run)
    return []


def make_alike(runs: Sequence[Measured]) -> list[str]:
    """Keeps of each measure what most of the runs were measured with, of as many the larger part
    of the test set; the other entries go, and a line of each says so."""
    notes = []
    for measure in dict.fromkeys(measure for run in runs for measure in run.entries):
        kinds: dict[str, list[Measured]] = {}
        for run in (run for run in runs if measure in run.entries):
            text = json.dumps(run.entries[measure]["settings"], sort_keys=True)
            kinds.setdefault(text, []).append(run)
        best = max(kinds.values(), key=lambda k: (len(k), k[0].entries[measure]["images"]))
        for run in (run for kind in kinds.values() if kind is not best for run in kind):
            other = run.entries.pop(measure)["settings"]
            keys = ", ".join(_differing(other, best[0].entries[measure]["settings"]))
            notes.append(f"{run.name}: {label(measure)} left out, of other settings ({keys})")
    return notes


def label(measure: Measure) -> str:
    """`pgd20` of the checkpoint best, `last pgd20`."""
    return f"last {measure[1]}" if measure[0] == "last" else measure[1]


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


def _images(row: Sequence[Measured]) -> str:
    """Over how many images: one number, or one for each that differs, in the columns' order."""
    counts = dict.fromkeys(e["images"] for run in row for e in run.entries.values())
    return ", ".join(f"{count:,}" for count in counts) or "-"


def _cell(row: Sequence[Measured], column: Measure) -> str:
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
