"""A study as its run directories tell it: one table an experiment, data set and setting."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runs import Left, Measure, Measured, look, runs_in, validation
from seeds import join, make_alike
from settings import SECTIONS, apart, keys_of, label_of, setting_of, told, unlike
from specs import Experiment, known, load

from sat.errors import Refused
from sat.identity import data_name
from sat.loggers.screen import duration
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
    runs: Sequence[Path]  # run directories, in the order of their seeds
    numbers: Mapping[Measure, Number]
    differences: Mapping[Measure, Difference] = field(default_factory=dict)
    published: Mapping[str, float] | None = None  # percent, by `clean`, `robust`
    gradients: float = 0  # gradient computations of the training, per training image
    parameters: int = 0
    multiply_adds: int | None = None  # of one image's forward
    seeds: Sequence[int] = ()  # of `runs`
    alarms: int = 0  # runs that raised one: their numbers are in doubt


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim: supports, contradicts or says nothing; and why."""

    text: str
    answer: str
    reason: str


@dataclass(frozen=True)
class Table:
    """One experiment on one data set in one setting (network, eps, schedule, test images)."""

    experiment: str
    dataset: str
    setting: str  # for people: `digits, eps 38/255, resnet10, 40 epochs`; unlike any other table's
    spec: Mapping[str, Any]  # the `report` node of the experiment's file
    rows: Sequence[Row]
    attack: str  # the strongest attack that all rows were measured with: drawn, and judged by
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # machine, versions, time, ...
    reference: str | None = None  # the label of the row that differences are to
    number: int = 1  # of several settings of one experiment and data set

    @property
    def name(self) -> str:
        """For files: the experiment and the data set, `activations-digits`; a further setting of
        the same two has its number behind."""
        name = re.sub(r"[^\w.+=-]+", "_", f"{self.experiment}-{self.dataset}")
        return name if self.number == 1 else f"{name}-{self.number}"


@dataclass(frozen=True)
class Report:
    """All that a folder of runs tells."""

    tables: Sequence[Table]
    others: Sequence[Measured]  # finished runs of no experiment that has a table
    notes: Sequence[str]  # what is in no table, and why: one line each
    preface: str  # Markdown, to stand before everything
    sources: Sequence[Path]  # the run directories that were looked at


def read(outputs: Path, experiment: str | None = None) -> Report:
    """The report of all runs below a folder, or of one experiment's alone.

    Raises Refused where there is no run, or no such experiment; what is wrong with single runs
    and files is said in the report.
    """
    found = [look(path, outputs) for path in runs_in(outputs)]
    if not found:
        raise Refused(f"{outputs}: holds no run; a run's directory has a config.yaml")
    if experiment is not None:
        found = _of(experiment, found, outputs)
    measured = [run for run in found if isinstance(run, Measured)]
    notes, tables, placed = [], [], set()
    for name in sorted({name for run in found for name in run.experiments}):
        if experiment not in (None, name):
            continue
        mine = [run for run in measured if name in run.experiments and trained(run)]
        try:
            spec = load(name)
            if spec is None:
                continue
            more = [r for r in measured if {*spec.also} & {*r.experiments} and trained(r)]
            tables += tables_of(spec, [*mine, *(r for r in more if r not in mine)])
            placed |= {run.path for run in mine}
        except Refused as error:
            notes.append(f"{error}; its {len(mine)} finished runs are in no table of it")
    others = [run for run in measured if run.path not in placed]
    notes += [f"{run.name}: {run.reason}" for run in found if isinstance(run, Left)]
    try:
        preface = (outputs / "preface.md").read_text()
    except FileNotFoundError:
        preface = ""
    except (OSError, UnicodeDecodeError) as error:
        preface, _ = "", notes.append(f"preface.md: can't be read ({error})")
    return Report(tables, others, notes, preface, [run.path for run in found])


def trained(run: Measured) -> bool:
    """Whether it is of a training; weights of a file have no setting that anyone knows."""
    return run.config.get("evaluate") is None


def _of(experiment: str, found: Sequence[Measured | Left], outputs: Path) -> list[Measured | Left]:
    """The runs of one experiment. Raises Refused where it is unknown, or has none."""
    mine = [run for run in found if experiment in run.experiments]
    if mine:
        return mine
    names = sorted({*known(), *(name for run in found for name in run.experiments)})
    if experiment in names:
        raise Refused(
            f"--experiment {experiment}: has no run in {outputs}; start it: python -m sat.run -m"
            f" experiment={experiment}"
        )
    from sat.config import nearest

    raise Refused(f"--experiment {experiment}: no such experiment; {nearest(experiment, names)}")


def tables_of(experiment: Experiment, runs: Sequence[Measured]) -> list[Table]:
    """A table for each data set and setting that the runs of an experiment were made in."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for run in with_digest(runs):
        key = set_of(run), setting_of(run, experiment.rows)
        groups.setdefault(key, []).append(run)
    groups = {  # runs of other experiments are no table of their own here
        key: mine
        for key, mine in groups.items()
        if any(experiment.name in run.experiments for run in mine)
    }
    by_size = lambda group: (group[0][0], -len(group[1]), group[0][1])  # noqa: E731
    tables: list[Table] = []
    for (dataset, setting), mine in sorted(groups.items(), key=by_size):
        siblings = [other for name, other in groups if name == dataset and other != setting]
        number = 1 + sum(table.dataset == dataset for table in tables)
        differing = apart(setting, siblings)
        table = table_of(experiment, dataset, mine)
        heading = told(mine, table.attack, experiment.rows, differing)
        notes = list(table.notes)
        if "test images" in differing:
            notes.append(
                f"other runs of {dataset} have other test images, and a table of their own"
            )
        tables.append(replace(table, setting=heading, number=number, notes=notes))
    return tables


def with_digest(runs: Sequence[Measured]) -> list[Measured]:
    """Runs whose results have no digest of the test images get that of the set of their name, if
    it has but one. Their entries may be taken away without a loss to other tables."""
    digests: dict[str, set[str]] = {}
    for run in runs:
        digests.setdefault(run.result["dataset"]["name"], set()).update(filter(None, [run.images]))
    completed = []
    for run in runs:
        images, of_name = run.images, digests[run.result["dataset"]["name"]]
        if images is None and len(of_name) == 1:
            images = next(iter(of_name))
        completed.append(replace(run, images=images, entries=dict(run.entries)))
    return completed


def table_of(experiment: Experiment, dataset: str, runs: Sequence[Measured]) -> Table:
    """One table, its heading still to be told."""
    from differences import compared, judged

    groups: dict[tuple[str, ...], list[Measured]] = {}
    notes: list[str] = []
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        identity = unlike(run, experiment.rows)
        notes += join(groups.setdefault(identity, []), run)
    alike = [run for group in groups.values() for run in group]
    notes += make_alike(alike)
    rows = [row_of(experiment, group) for group in groups.values()]
    rows = distinct(sorted(rows, key=lambda row: experiment.order(row.keys)), groups)
    attack, weaker = primary(alike, rows)
    notes += weaker
    if any(figure["kind"] == "epochs" for figure in experiment.spec.get("figures", ())):
        faults = ((run.name, validation(run.path)[1]) for run in alike)
        notes += [f"{name}: {fault}" for name, fault in faults if fault]
    rows, reference, more = compared(rows, experiment.spec.get("reference"))
    verdicts = judged(rows, experiment.spec.get("claims", ()), attack)
    notes += [*alarms_of(alike), *unlike_machines(alike)]
    facts = {"command": command(experiment, alike), **facts_of(alike)}
    return Table(experiment.name, dataset, "", experiment.spec, rows, attack, verdicts,
                 [*notes, *more], facts, reference)  # fmt: skip


def row_of(experiment: Experiment, runs: Sequence[Measured]) -> Row:
    """Runs of one configuration, in the order of their seeds."""
    keys = keys_of(runs[0].config, experiment.rows)
    measures = dict.fromkeys(measure for run in runs for measure in run.entries)
    result, config = runs[0].result, runs[0].config
    return Row(
        label=label_of(keys, experiment.spec.get("labels", {})),
        keys=keys,
        runs=[run.path for run in runs],
        numbers={measure: number(runs, measure) for measure in measures},
        published=experiment.published(keys),
        gradients=gradients(config),
        parameters=int(result.get("parameters") or 0),
        multiply_adds=result.get("multiply_adds"),
        seeds=[run.seed for run in runs],
        alarms=sum(bool(run.result.get("alarms")) for run in runs),
    )


def number(runs: Sequence[Measured], measure: Measure) -> Number:
    """An accuracy over the seeds that have it."""
    entries = {run.seed: run.entries[measure] for run in runs if measure in run.entries}
    seeds = {seed: float(entry["accuracy"]) for seed, entry in entries.items()}
    entry = next(iter(entries.values()))
    found = over_seeds(list(seeds.values()))
    low, high = found["ci95"] or entry["ci95"]
    return Number(found["mean"], low, high, seeds, entry["images"])


def gradients(config: Mapping[str, Any]) -> float:
    """Gradient computations of a training per training image: in each epoch one of each of the
    attack's steps, and one of the update."""
    attack = config["attack"]
    steps = attack.get("steps", int(attack["_target_"].endswith(".FGSM")))
    return float(config["schedule"]["epochs"] * (steps + 1))


def distinct(rows: Sequence[Row], groups: Mapping[Any, Sequence[Measured]]) -> list[Row]:
    """Rows of one label get what sets them apart behind it: arguments of a group among the rows,
    or other test images."""
    firsts = {group[0].path: group[0] for group in groups.values()}
    named = []
    for row in rows:
        mine = firsts[row.runs[0]]
        twins = [firsts[r.runs[0]] for r in rows if r.label == row.label and r is not row]
        extra = ""
        for section in (key for key in row.keys if key in SECTIONS and twins):
            values, others = mine.config[section], [twin.config[section] for twin in twins]
            names = [k for k in values if any(values[k] != other.get(k) for other in others)]
            extra += "".join(f" {key}={values[key]}" for key in names)
        if any(twin.images != mine.images for twin in twins):
            extra += f" test images {mine.images or 'unknown'}"
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
                kind = {"AutoAttack": 3, "FastAutoAttack": 2, "PGD": 1}.get(settings["attack"], 0)
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


def lacking(row: Row, measure: Measure) -> int:
    """How many of a row's runs were not measured so."""
    return len(row.runs) - len(row.numbers[measure].seeds if measure in row.numbers else ())


def alarms_of(runs: Sequence[Measured]) -> list[str]:
    """A line for each run whose numbers its own alarms put in doubt."""
    lines = []
    for run in runs:
        names = {str(a.get("name")) for a in run.result.get("alarms") or () if isinstance(a, dict)}
        if names:
            lines.append(f"! {run.name}: raised alarms ({', '.join(sorted(names))})")
    return lines


def unlike_machines(runs: Sequence[Measured]) -> list[str]:
    """A line for each of what `auto` chose that is not the same in all runs."""
    choices = [run.result.get("choices") or {} for run in runs]
    lines = []
    for key in ("precision", "compile"):
        found = sorted({str(each[key]) for each in choices if key in each})
        if len(found) > 1:
            lines.append(f"{key}: not the same in every run ({', '.join(found)})")
    return lines


def set_of(run: Measured) -> str:
    """The data set as the run's command names it: a subset is an option of its own."""
    own = data_name(run.config["dataset"])
    return str(own or run.config["choices"].get("dataset") or run.result["dataset"]["name"])


PLACES = ("record.root", "dataset.root", "dataset.path", "seed", "experiment", "dataset")


def command(experiment: Experiment, runs: Sequence[Measured]) -> str:
    """What asks for these runs: the experiment, and all overrides that they share."""
    dataset = runs[0].config["choices"].get("dataset", "digits")
    words = ["python -m sat.run -m", f"experiment={experiment.name}"]
    words += [f"dataset={dataset}"] if dataset != "digits" else []
    given = [dict.fromkeys(map(str, run.result.get("overrides") or ())) for run in runs]
    for override in given[0]:
        key = override.split("=", 1)[0].lstrip("+~")
        swept = key in PLACES or key in experiment.rows or key.startswith(("experiment/", "hydra"))
        if not swept and key not in experiment.swept and all(override in each for each in given):
            words.append(override)
    return " ".join([*words, f"seed={','.join(map(str, sorted({run.seed for run in runs})))}"])


def facts_of(runs: Sequence[Measured]) -> dict[str, str]:
    """Where, with what and how long the runs of a table were made."""
    environments = [run.result.get("environment") or {} for run in runs]

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(each[name]) for each in environments if each.get(name)}))

    versions = [f"{name} {all_of(name)}" for name in ("python", "torch", "timm") if all_of(name)]
    seconds = sum(float(run.result.get("wall_seconds") or 0) for run in runs)
    commits = sorted({str(each["commit"])[:8] for each in environments if each.get("commit")})
    counts = sorted({entry["images"] for run in runs for entry in run.entries.values()})
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    facts = {
        "machine": all_of("device"),
        "versions": ", ".join(versions),
        "commit": ", ".join(commits),
        "training": f"{duration(seconds)} for {len(runs)} runs",
        "seeds": seeds,
        "test images": ", ".join(f"{count:,}" for count in counts),
    }
    return {name: text for name, text in facts.items() if text}
