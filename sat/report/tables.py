"""Rows of a table: runs that differ in the seed alone, their numbers, and what is to be noted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sat.loggers.screen import duration
from sat.report.rows import OTHERS, SECTIONS, keys_of, label_of, set_of, split
from sat.report.runs import PLACES, Measure, Measured, key_of
from sat.report.spec import Experiment
from sat.statistics import over_seeds


@dataclass(frozen=True)
class Number:
    """An accuracy, as a fraction, over seeds.

    `low` and `high` are a 95 % interval: Student's of the mean over several seeds, Wilson's over
    the test images of one. `images` counts the test images of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: Mapping[int, float]
    images: int = 0


@dataclass(frozen=True)
class Difference:
    """A row minus the reference, as a fraction, with its 95 % interval and p.

    `test` is `seeds` (paired by seed, Student's t) or `images` (one seed each: McNemar's on the
    same images). `marked` says that p stays below 0.05 after Holm's correction over the table.
    """

    mean: float
    low: float
    high: float
    p: float
    test: str
    marked: bool
    seeds: int = 1  # how many both rows have


@dataclass(frozen=True)
class Row:
    """Runs of a table that differ in the seed alone."""

    label: str  # `elu alpha=1.2`
    keys: Mapping[str, Any]  # the value of each of the experiment's `rows`
    runs: Sequence[Measured]  # in the order of their seeds
    numbers: Mapping[Measure, Number]
    differences: Mapping[Measure, Difference] = field(default_factory=dict)
    gradients: float = 0  # gradient computations of the training, per training image
    parameters: int = 0
    multiply_adds: int | None = None  # of one image's forward
    activation: str = ""  # decides the colour in figures
    steps: int = 0  # of the training attack; decide the marker
    alarms: int = 0  # runs that raised one: their numbers are in doubt

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


def rows_of(
    experiment: Experiment, runs: Sequence[Measured]
) -> tuple[list[Row], list[Measured], list[str]]:
    """The rows of one table in order, the runs in them, and what is to be said of others."""
    groups: dict[str, list[Measured]] = {}
    notes: list[str] = []
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        group = groups.setdefault(split(run, experiment.rows)[1], [])
        if same := next((other for other in group if other.seed == run.seed), None):
            notes.append(f"{run.name}: left out, the same run as {same.name}")
        else:  # entries may be taken away without a loss to other tables
            group.append(replace(run, entries=dict(run.entries)))
    alike = [run for group in groups.values() for run in group]
    notes += make_alike(alike)
    rows = [row_of(experiment, group) for group in groups.values()]
    return distinct(sorted(rows, key=lambda row: experiment.order(row.keys))), alike, notes


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
        mine = best[0].entries[measure]["settings"]
        for run in (run for kind in kinds.values() if kind is not best for run in kind):
            other = run.entries.pop(measure)["settings"]
            keys = ", ".join(sorted(k for k in {*other, *mine} if other.get(k) != mine.get(k)))
            name = "last " * (measure[0] == "last") + measure[1]
            notes.append(f"{run.name}: {name} left out, of other settings ({keys})")
    return notes


def row_of(experiment: Experiment, runs: Sequence[Measured]) -> Row:
    """Runs of one configuration, in the order of their seeds."""
    result, config = runs[0].result, runs[0].config
    keys = keys_of(config, experiment.rows)
    measures = dict.fromkeys(measure for run in runs for measure in run.entries)
    steps = steps_of(config)
    return Row(
        label=label_of(keys, experiment.spec.get("labels", {})),
        keys=keys,
        runs=runs,
        numbers={measure: number(runs, measure) for measure in measures},
        gradients=float(config["schedule"]["epochs"] * (steps + 1)),
        parameters=int(result.parameters or 0),
        multiply_adds=result.multiply_adds,
        activation=str(config["choices"].get("activation") or ""),
        steps=steps,
        alarms=sum(bool(run.result.alarms) for run in runs),
    )


def steps_of(config: Mapping[str, Any]) -> int:
    """Gradients of the training attack, an image and an epoch."""
    attack = config["attack"]
    return attack.get("steps", int(attack["_target_"].endswith(".FGSM")))


def number(runs: Sequence[Measured], measure: Measure) -> Number:
    """An accuracy over the seeds that have it."""
    entries = {run.seed: run.entries[measure] for run in runs if measure in run.entries}
    seeds = {seed: float(entry["accuracy"]) for seed, entry in entries.items()}
    entry = next(iter(entries.values()))
    found = over_seeds(list(seeds.values()))
    low, high = found["ci95"] or entry["ci95"]
    return Number(found["mean"], low, high, seeds, entry["images"])


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows of one label get what sets them apart behind it: arguments of a group among the rows,
    or other test images."""
    named = []
    for row in rows:
        mine = row.runs[0]
        twins = [other.runs[0] for other in rows if other.label == row.label and other is not row]
        extra = ""
        for section in (key for key in row.keys if key in SECTIONS and twins):
            values, others = mine.config[section], [twin.config[section] for twin in twins]
            names = [k for k in values if any(values[k] != other.get(k) for other in others)]
            extra += "".join(f" {key}={values[key]}" for key in names)
        if any(twin.images != mine.images for twin in twins):
            extra += f" test images {mine.images}"
        named.append(replace(row, label=row.label + extra))
    return named


def primary(runs: Sequence[Measured], rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The attack that judges: of those that all rows have for all their seeds, at the data set's
    own eps and norm, the strongest; and a note of what was passed over for it."""
    ranks: dict[str, tuple[int, ...]] = {}
    for run in runs:
        own = {key: run.config["dataset"].get(key) for key in ("eps", "norm")}
        for (_, attack), entry in run.entries.items():
            settings = entry["settings"]
            fits = all(v is None or settings.get(key, v) == v for key, v in own.items())
            if attack != "clean" and isinstance(settings.get("attack"), str) and fits:
                kind = RANKS.get(settings["attack"], 0)
                ranks[attack] = kind, settings.get("steps", 0), settings.get("restarts", 1)
    which = "best" if any(("best", "clean") in row.numbers for row in rows) else "last"
    missing = {attack: sum(lacking(row, (which, attack)) for row in rows) for attack in ranks}
    full = [attack for attack in ranks if not missing[attack]]
    least = [attack for attack in ranks if all((which, attack) in row.numbers for row in rows)]
    best = max(full, key=lambda attack: ranks[attack], default="")
    best = best or min(least, key=lambda attack: missing[attack], default="")
    count = sum(len(row.runs) for row in rows)
    notes = [
        f"{attack}: {count - missing[attack]} of {count} runs were measured with it, so the table"
        f" is judged by {best or 'clean accuracy'}"
        for attack in ranks
        if not best or ranks[attack] > ranks[best]
    ]
    return best, notes


RANKS = {"AutoAttack": 3, "FastAutoAttack": 2, "PGD": 1}


def lacking(row: Row, measure: Measure) -> int:
    """How many of a row's runs were not measured so."""
    return len(row.runs) - len(row.numbers[measure].seeds if measure in row.numbers else ())


def masking_checks(runs: Sequence[Measured]) -> list[str]:
    """A line for each run whose numbers its own alarms put in doubt, and for each of what `auto`
    chose that is not the same in all runs."""
    lines = []
    for run in runs:
        names = {alarm.name for alarm in run.result.alarms}
        if names:
            lines.append(f"! {run.name}: raised alarms ({', '.join(sorted(names))})")
    choices = [run.result.choices for run in runs]
    for key in ("precision", "compile"):
        found = sorted({str(each[key]) for each in choices if key in each})
        if len(found) > 1:
            lines.append(f"{key}: not the same in every run ({', '.join(found)})")
    return lines


def command(experiment: Experiment, runs: Sequence[Measured]) -> str:
    """What asks for these runs: the experiment, and all overrides that they share; nothing for runs
    without one, of which no single sweep need have made all."""
    if experiment.name == OTHERS:
        return ""
    dataset, seeds = set_of(runs[0]), sorted({run.seed for run in runs})
    words = ["python -m sat.run -m", f"experiment={experiment.name}"]
    words += [f"dataset={dataset}"] if dataset != "digits" else []
    own = {"seed", "experiment", "dataset", *experiment.rows, *experiment.swept, *PLACES}
    shared = [w for w in runs[0].result.overrides if all(w in r.result.overrides for r in runs)]
    for word in shared:
        if key_of(word) not in own and not key_of(word).startswith(("experiment/", "hydra")):
            words.append(word)
    return " ".join([*words, f"seed={','.join(map(str, seeds))}"])


def facts_of(experiment: Experiment, runs: Sequence[Measured]) -> dict[str, str]:
    """Where, with what and how long the runs of a table were made."""
    environments = [run.result.environment for run in runs]

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(each[name]) for each in environments if each.get(name)}))

    versions = [f"{name} {all_of(name)}" for name in ("python", "torch", "timm") if all_of(name)]
    seconds = sum(run.result.wall_seconds for run in runs)
    commits = sorted({str(each["commit"])[:8] for each in environments if each.get("commit")})
    counts = sorted({entry["images"] for run in runs for entry in run.entries.values()})
    facts = {
        "command": command(experiment, runs),
        "machine": all_of("device"),
        "versions": ", ".join(versions),
        "commit": ", ".join(commits),
        "training": f"{duration(seconds)} for {len(runs)} run{'s' * (len(runs) != 1)}",
        "seeds": ", ".join(str(seed) for seed in sorted({run.seed for run in runs})),
        "test images": ", ".join(f"{count:,}" for count in counts),
    }
    return {name: text for name, text in facts.items() if text}
