"""Tables: rows of runs that differ in the seed alone, their numbers, and what is to be noted."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sat.loggers.screen import duration
from sat.report.rows import apart, keys_of, label_of, name_of, order, shown_as, split
from sat.report.runs import Measure, Measured
from sat.report.spec import Experiment
from sat.rundir.result import AttackResult
from sat.statistics import over_seeds

LEVEL = 0.05
RANKS = {"AutoAttack": 3, "FastAutoAttack": 2, "PGD": 1}
Alike = Mapping[Measure, Mapping[str, AttackResult]]  # by the names of the runs that have it


@dataclass(frozen=True)
class Number:
    """An accuracy, as a fraction, over seeds.

    `low` and `high` are a 95 % interval within 0 and 1: Student's of the mean over several seeds,
    Wilson's over the test images of one. `images` counts the test images of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: Mapping[int, float]
    images: int = 0


@dataclass(frozen=True)
class Difference:
    """A row minus the reference, paired by seed, as a fraction: with its 95 % interval (Student's
    t), and p after Holm's correction over the differences of its measure."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def marked(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class Row:
    """Runs of a table that differ in the seed alone."""

    label: str  # `ELU alpha=1.2`
    keys: Mapping[str, Any]  # the value of each of the experiment's `rows`
    runs: Sequence[Measured]  # in the order of their seeds
    numbers: Mapping[Measure, Number]
    differences: Mapping[Measure, Difference] = field(default_factory=dict)
    gradients: float = 0  # gradient computations of the training, per training image
    parameters: int = 0
    multiply_adds: float | None = None  # of one image's forward
    activation: str = ""  # decides the colour in figures
    steps: int = 0  # of the training attack; decide the marker
    alarms: int = 0  # runs that raised one: their numbers are in doubt

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Table:
    """One experiment on one data set in one setting (network, eps, schedule, test images)."""

    experiment: Experiment
    dataset: str
    setting: str  # for people: `digits, eps 38/255, resnet10, 40 epochs`; unlike any other table's
    rows: Sequence[Row]
    attack: str  # the strongest attack that all rows were measured with: drawn, and judged by
    verdicts: Sequence[Any] = ()  # of claims
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # machine, versions, time, ...
    reference: str | None = None  # the label of the row that differences are to
    number: int = 1  # of several settings of one experiment and data set

    @property
    def name(self) -> str:
        """Names files: the experiment and the data set, `activations-digits`; a further setting of
        the same two has its number behind."""
        name = re.sub(r"[^\w.+=-]+", "_", f"{self.experiment.name}-{self.dataset}")
        return name if self.number == 1 else f"{name}-{self.number}"


def rows_of(
    experiment: Experiment, runs: Sequence[Measured]
) -> tuple[list[Row], list[Measured], Alike, list[str]]:
    """The rows of one table in order, the runs in them, what these were measured with alike, and
    what is to be said of others."""
    groups: dict[str, list[Measured]] = {}
    notes: list[str] = []
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        group = groups.setdefault(split(run, experiment)[1], [])
        if same := next((other for other in group if other.seed == run.seed), None):
            notes.append(f"{run.name}: left out, the same run as {same.name}")
        else:
            group.append(run)
    mine = [run for group in groups.values() for run in group]
    alike, unlike = measured_alike(mine)
    found = {text: row_of(experiment, group, alike) for text, group in groups.items()}
    rows = []
    for text, row in found.items():
        equal = [other for other in found if other != text and found[other].label == row.label]
        extra = (f" {name_of(k)}={shown_as(k, v)}" for k, v in apart(text, equal).items())
        rows.append(replace(row, label=row.label + "".join(extra)))
    ordered = sorted(rows, key=lambda row: order(row.keys))
    return ordered, mine, alike, notes + unlike


def measured_alike(runs: Sequence[Measured]) -> tuple[Alike, list[str]]:
    """Entries of each measure by the settings that most of the runs have, of as many those on more
    images; and a line on each other entry."""
    alike, notes = {}, []
    for measure in dict.fromkeys(measure for run in runs for measure in run.entries):
        kinds: dict[str, list[Measured]] = {}
        for run in (run for run in runs if measure in run.entries):
            text = json.dumps(run.entries[measure].settings, sort_keys=True)
            kinds.setdefault(text, []).append(run)
        best = max(kinds.values(), key=lambda k: (len(k), k[0].entries[measure].images))
        alike[measure] = {run.name: run.entries[measure] for run in best}
        mine = best[0].entries[measure].settings or {}
        for run in (run for kind in kinds.values() if kind is not best for run in kind):
            other = run.entries[measure].settings or {}
            keys = ", ".join(sorted(k for k in {*other, *mine} if other.get(k) != mine.get(k)))
            name = "last " * (measure[0] == "last") + measure[1]
            notes.append(f"{run.name}: {name} left out, of other settings ({keys})")
    return alike, notes


def row_of(experiment: Experiment, runs: Sequence[Measured], alike: Alike) -> Row:
    """Runs of one configuration, in the order of their seeds."""
    result, config = runs[0].result, runs[0].config
    keys, attack = keys_of(config, experiment.rows), config["attack"]
    steps = attack.get("steps", int(attack["_target_"].endswith(".FGSM")))
    numbers = {}
    for measure, entries in alike.items():
        if mine := {run.seed: entries[run.name] for run in runs if run.name in entries}:
            numbers[measure] = number(mine)
    return Row(
        label=label_of(keys, experiment.spec.get("labels", {})),
        keys=keys,
        runs=runs,
        numbers=numbers,
        gradients=float(config["schedule"]["epochs"] * (steps + 1)),
        parameters=int(result.parameters or 0),
        multiply_adds=max(run.result.multiply_adds or 0 for run in runs) or None,
        activation=str(config["choices"].get("activation") or ""),
        steps=steps,
        alarms=sum(bool(run.result.alarms) for run in runs),
    )


def number(entries: Mapping[int, AttackResult]) -> Number:
    """An accuracy over the seeds that have it."""
    seeds = {seed: float(entry.accuracy) for seed, entry in entries.items()}
    entry, found = next(iter(entries.values())), over_seeds(list(seeds.values()))
    mean, (low, high) = found["mean"], found["ci95"] or entry.ci95
    low, high = max(0.0, min(low, mean)), min(1.0, max(high, mean))  # Wilson's ends are rounded
    return Number(mean, low, high, seeds, entry.images)


def primary(alike: Alike, rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The attack that judges: the strongest that all rows have for most of their seeds, at the data
    set's own eps and norm; and a note of what was passed over for it."""
    runs = {run.name: run for row in rows for run in row.runs}
    found: dict[str, tuple[bool, int, tuple[int, ...]]] = {}
    for (which, attack), entries in alike.items():
        dataset = runs[next(iter(entries))].config["dataset"]
        given = next(iter(entries.values())).settings or {}
        own = all(dataset.get(k) in (None, given.get(k, dataset.get(k))) for k in ("eps", "norm"))
        if which == "best" and own and isinstance(given.get("attack"), str):
            everywhere = all((which, attack) in row.numbers for row in rows)
            strength = [given.get(key, 0) for key in ("steps", "restarts")]
            strength = (RANKS.get(given["attack"], 0), *strength)
            found[attack] = everywhere, len(entries), strength
    best = max((attack for attack in found if found[attack][0]), key=found.__getitem__, default="")
    notes = [
        f"{attack}: {has} of {len(runs)} runs were measured with it, so the table is judged by"
        f" {best or 'clean accuracy'}"
        for attack, (_, has, strength) in found.items()
        if not best or strength > found[best][2]
    ]
    return best, notes


def facts_of(runs: Sequence[Measured], attack: str) -> dict[str, str]:
    """Where, with what and how long the runs of a table were made: `command` is what was typed for
    them; of kept runs, which don't hold it, `overrides` are those that they share."""
    told = [{**run.result.choices, **run.result.environment} for run in runs]
    words = [w for w in runs[0].result.overrides if all(w in r.result.overrides for r in runs)]
    entries = [(name, entry) for run in runs for (_, name), entry in run.entries.items()]
    joined = {m for _, e in entries if e.norm == "union" for m in e.attacks or ()}

    def sizes(*names: str) -> str:
        balls = {f"{e.eps:g}/255 {e.norm}" for name, e in entries if name in names and e.eps}
        return ", ".join(sorted(balls))

    def all_of(key: str, length: int | None = None) -> str:
        return ", ".join(sorted({str(each[key])[:length] for each in told if each.get(key)}))

    command = re.sub(r"(^|, )\S*/", r"\1", all_of("command"))
    command = re.sub(r"(^|, )run\.py(?=[ ,]|$)", r"\1python -m sat.run", command)
    seconds = duration(sum(run.result.wall_seconds for run in runs))
    facts = {
        "command": command,
        "overrides": " ".join(words) * (not command),
        f"eps of {attack}": sizes(attack),
        "worst_case is the union of": sizes(*joined),
        "machine": all_of("device"),
        **{key: all_of(key) for key in ("python", "torch", "timm", "precision", "compile")},
        "commit": all_of("commit", 8),
        "training": f"{seconds} for {len(runs)} run{'s' * (len(runs) != 1)}",
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
        "training images": ", ".join({f"{r.result.dataset.get('train') or 0:,}" for r in runs}),
        "test images": ", ".join(sorted({f"{entry.images:,}" for _, entry in entries})),
    }
    return {name: text for name, text in facts.items() if text}
