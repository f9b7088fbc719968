"""Rows of tables: runs that differ in the seed alone, what tells rows apart, and their numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from sat.arguments import is_number
from sat.identity import NEUTRAL
from sat.report.runs import Measure, Measured
from sat.report.spec import Experiment
from sat.statistics import Estimate, over_seeds

# Activations as the literature writes them, in the order of rows.
NAMES = {"relu": "ReLU", "parametric_softplus": "Parametric Softplus", "softplus": "Softplus",
         "smoothrelu": "SmoothReLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "elu": "ELU",
         "silu": "SiLU", "celu": "CELU", "mish": "Mish", "leaky_relu": "LeakyReLU",
         "prelu": "PReLU", "pssilu": "PSSiLU", "squareplus": "Squareplus", "smelu": "SmeLU",
         "bent_identity": "Bent identity", "rcr_af": "RCR-AF"}  # fmt: skip
COSTS = ("parameters", "multiply_adds", "gradients")  # of a Row


@dataclass(frozen=True)
class Row:
    """Runs of a table that differ in the seed alone."""

    label: str  # `ELU alpha=1.2`
    keys: Mapping[str, Any]  # the value of each of the experiment's `rows`
    runs: Sequence[Measured]  # in the order of their seeds
    numbers: Mapping[Measure, Estimate]
    differences: Mapping[Measure, Estimate] = field(default_factory=dict)  # to the reference
    beside: str = ""  # the end of the label that tells it from rows of the same keys
    gradients: float = 0  # gradient computations of the training, per training image
    parameters: int | None = None  # None: of a network that shows none
    multiply_adds: float | None = None  # of one image's forward
    activation: str = ""  # decides the colour in figures
    steps: int = 0  # of the training attack; decide the marker
    alarms: int = 0  # runs that raised one: their numbers are in doubt


def rows_of(experiment: Experiment, runs: Sequence[Measured]) -> tuple[list[Row], list[str]]:
    """The rows of one table in order, and what is to be said of runs and numbers in none."""
    groups: dict[str, dict[int, Measured]] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        group = groups.setdefault(split(run, experiment)[1], {})
        if (same := group.setdefault(run.seed, run)) is not run:
            notes.append(f"{run.name}: left out, the same run as {same.name}")
    alike, unlike = measured_alike([run for group in groups.values() for run in group.values()])
    rest = iter(alike)
    found = {text: row_of(experiment, [*islice(rest, len(g))]) for text, g in groups.items()}
    for text in [text for text, row in found.items() if not row.numbers]:
        unlike.append(f"{found.pop(text).label}: no row, none of its runs was measured as the rest")
    rows = []
    for text, row in found.items():  # equal labels get what tells the rows apart
        mine, equal = json.loads(text), [o for o in found if found[o].label == row.label]
        keys = {k for o in map(json.loads, equal) for k in {*mine, *o} if mine.get(k) != o.get(k)}
        beside = " ".join(f"{name_of(k)}={shown_as(k, mine.get(k))}" for k in sorted(keys))
        rows.append(replace(row, label=f"{row.label} {beside}".strip(), beside=beside))
    return sorted(rows, key=lambda row: order(row.keys)), notes + unlike


def split(run: Measured, experiment: Experiment) -> tuple[str, str]:
    """What all runs of a table share, and what those of a row do, as JSON: all that decided the
    trained weights but the seed, by dotted keys. A group among the rows belongs to the row with all
    its arguments; so does a digest of the test images where rows differ in their data."""
    table: dict[str, Any] = {}
    row = {key: run.value(key) for key in experiment.rows}
    varying = experiment.varying or experiment.rows
    images = str(run.result.dataset.get("test_content") or "unknown")  # a digest
    for key, value in {**run.decided, "test images": images}.items():
        mine = any(f"{key}.".startswith(f"{part}.") for part in varying)
        data = key == "test images" and any(part.split(".")[0] == "dataset" for part in varying)
        (row if mine or data else table)[key] = value
    return json.dumps(table, sort_keys=True), json.dumps(row, sort_keys=True)


def measured_alike(runs: Sequence[Measured]) -> tuple[list[Measured], list[str]]:
    """The runs with those entries alone that were measured with the settings that most of them
    have, of as many those on more images; and a line on each other entry."""
    kept: dict[str, dict[Measure, Any]] = {run.name: {} for run in runs}
    notes = []
    for measure in dict.fromkeys(measure for run in runs for measure in run.entries):
        having = [run for run in runs if measure in run.entries]
        each = [run.entries[measure].settings or {} for run in having]
        best = max(each, key=lambda settings: (each.count(settings), settings["images"]))
        for run, other in zip(having, each, strict=True):
            if keys := sorted(k for k in {*other, *best} if other.get(k) != best.get(k)):
                name = "last " * (measure[0] == "last") + measure[1]
                notes.append(f"{run.name}: {name} left out, of other settings ({', '.join(keys)})")
            else:
                kept[run.name][measure] = run.entries[measure]
    return [replace(run, entries=kept[run.name]) for run in runs], notes


def row_of(experiment: Experiment, runs: Sequence[Measured]) -> Row:
    """Runs of one configuration, in the order of their seeds."""
    result, config = runs[0].result, runs[0].config
    keys, attack = {key: runs[0].value(key) for key in experiment.rows}, config["attack"]
    steps = attack.get("steps", int(attack["_target_"].endswith(".FGSM")))
    measures = dict.fromkeys(measure for run in runs for measure in run.entries)
    return Row(
        label=label_of(keys, experiment.labels),
        keys=keys,
        runs=runs,
        numbers={measure: number(runs, measure) for measure in measures},
        gradients=float(config["schedule"]["epochs"] * attack.get("replays", steps + 1)),
        parameters=result.parameters,
        multiply_adds=max(run.result.multiply_adds or 0 for run in runs) or None,
        activation=str(config["choices"].get("activation") or ""),
        steps=steps,
        alarms=sum(bool(run.result.alarms) for run in runs),
    )


def number(runs: Sequence[Measured], measure: Measure) -> Estimate:
    """An accuracy over the seeds that have it, one at least; of one with Wilson's interval over the
    test images."""
    entries = {run.seed: run.entries[measure] for run in runs if measure in run.entries}
    seeds = {seed: float(entry.accuracy) for seed, entry in entries.items()}
    entry = next(iter(entries.values()))
    return over_seeds(seeds, entry.images, entry.ci95)


# how rows are called ------------------------------------------------------------------------------


def order(keys: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Where a row stands: by its numbers, its activation, its words."""
    places = {text: place for place, text in enumerate(NAMES)}
    return [
        (float(value), "") if is_number(value) else (places.get(value, len(NAMES)), str(value))
        for value in keys.values()
    ]


def label_of(keys: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    """`ELU alpha=1.2`: options by their names, keys with their values, or as `labels` has them: by
    a template with {} in the value's place, or a text of its own for some values. Without absent
    ones, and without a group at the option that adds nothing, but where nothing is left."""
    parts = []
    for key, value in keys.items():
        label, shown = labels.get(key), shown_as(key, value)
        if isinstance(label, Mapping) and value in label:
            parts.append(str(label[value]))
        elif value is not None and (key not in NEUTRAL or value != NEUTRAL[key]):
            named = f"{name_of(key)}={shown}" if "." in key else shown
            parts.append(label.replace("{}", shown) if isinstance(label, str) else named)
    return " ".join(filter(None, parts)) or next((shown_as(*item) for item in keys.items()), "-")


def shown_as(key: str, value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
    return NAMES.get(shown, shown) if key == "activation" else shown


def name_of(key: str) -> str:
    """`alpha` of activation.alpha."""
    return key.rsplit(".", 1)[-1]
