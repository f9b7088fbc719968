"""All that a folder of runs tells: one table an experiment, data set and setting, with verdicts."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat.arguments import check_unit, is_number
from sat.config import key_of
from sat.errors import Refused
from sat.identity import data_name
from sat.loggers.screen import duration
from sat.report import runs as directories
from sat.report.claims import Verdict, compared, judged, only
from sat.report.rows import Row, name_of, rows_of, shown_as, split
from sat.report.runs import Measured
from sat.report.spec import FILES, OTHERS, Experiment, load
from sat.rundir.files import read_text

RANKS = {"AutoAttack": 4, "FastAutoAttack": 3, "APGD": 2, "PGD": 1}


@dataclass(frozen=True)
class Table:
    """One experiment on one data set in one setting (network, eps, schedule, test images)."""

    experiment: Experiment
    dataset: str
    setting: str  # for people: `digits, eps 38/255, resnet10, 40 epochs`; unlike any other table's
    rows: Sequence[Row]
    attack: str  # the strongest attack that all rows were measured with: drawn, and judged by
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] | None = None  # machine, versions, time, ...
    reference: str | None = None  # the label of the row that differences are to
    number: int = 1  # of several settings of one experiment and data set

    @property
    def name(self) -> str:
        """Names files: the experiment and the data set, `activations-digits`; a further setting of
        the same two has its number behind."""
        name = re.sub(r"[^\w.+=-]+", "_", f"{self.experiment.name}-{self.dataset}")
        return name if self.number == 1 else f"{name}-{self.number}"

    @property
    def place(self) -> str:
        """The data set, with its number where the setting is a further one."""
        return self.dataset + f" ({self.number})" * (self.number > 1)


@dataclass(frozen=True)
class Report:
    """All that a folder of runs tells."""

    tables: Sequence[Table]
    notes: Sequence[str]  # what is in no table, and why: one line each
    preface: str  # Markdown, to stand before everything
    runs: Sequence[Measured]  # finished ones


def read(outputs: Path, own: Path | None = None) -> Report:
    """The report of all runs below a folder or in a file; `own` is a --config-dir of the user's,
    whose experiments are known, too. Raises Refused where there is no run; what is wrong with
    single runs and files is said in the report."""
    finished, left_out = directories.read(outputs)
    notes, tables, placed = [], list[Table](), set[str]()
    for name in sorted({name for run in finished for name in run.experiments}):
        mine = [run for run in finished if name in run.experiments]
        try:
            if experiment := load(name, own):
                also = {name, *experiment.also}
                tables += tables_of(experiment, [r for r in finished if also & {*r.experiments}])
                placed |= {run.name for run in mine}
        except Refused as error:
            notes.append(f"{error}; its {len(mine)} finished runs are in no table of it")
    left: dict[str, list[Measured]] = {}
    for run in (run for run in finished if run.name not in placed):
        left.setdefault(set_of(run), []).append(run)
    for runs in left.values():
        tables += tables_of(others(runs), runs)
    # last: networks that no run trained, and digits, a test of the program
    tables.sort(key=lambda table: (table.experiment.name == FILES, table.dataset == "digits"))
    notes += [f"{name}: {reason}" for name, reason in left_out.items()]
    place, preface = (outputs.parent if outputs.is_file() else outputs) / "preface.md", ""
    try:
        preface = read_text(place) if place.exists() else ""
    except (OSError, ValueError) as error:
        notes.append(f"preface.md: can't be read ({error})")
    return Report(tables, notes, preface, finished)


def set_of(run: Measured) -> str:
    """The data set as the run's command names it: a subset is an option of its own."""
    own = data_name(run.config["dataset"]) or run.config["choices"].get("dataset")
    return Path(str(own or run.result.dataset["name"])).name


def others(runs: Sequence[Measured]) -> Experiment:
    """Stands for the experiment of runs on one data set that have none: rows are told apart by what
    was typed and is not the same in all of them, then by the groups that are not."""
    decided = sorted({key for run in runs for key in run.decided})
    varying = [k for k in decided if len({json.dumps(run.decided.get(k)) for run in runs}) > 1]
    keys = [key_of(word) for run in runs for word in run.result.overrides]
    keys += [key.split(".")[0] for key in varying]
    values = {
        key: [run.value(key) for run in runs]
        for key in dict.fromkeys(keys)
        if any(f"{other}.".startswith(f"{key}.") for other in varying)
    }
    rows = [key for key, found in values.items() if len({*found}) > 1] or ["activation"]
    numbers = [k for k, found in values.items() if len({v for v in found if is_number(v)}) > 1]
    figures: list[dict[str, Any]] = [{"kind": "dots"}, {"kind": "scatter"}, {"kind": "epochs"}]
    figures += [{"kind": "lines", "x": k, "series": [s for s in rows if s != k]} for k in numbers]
    title = f"Runs by {', '.join(map(name_of, rows))}"
    return Experiment(OTHERS, rows, varying, title, figures=figures)


def tables_of(experiment: Experiment, runs: Sequence[Measured]) -> list[Table]:
    """A table for each data set and setting that the runs of an experiment were made in; runs of
    other experiments alone make none."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for run in runs:
        groups.setdefault((set_of(run), split(run, experiment)[0]), []).append(run)
    own = [
        (dataset, -len(mine), setting)
        for (dataset, setting), mine in groups.items()
        if not experiment.is_asked_for or any(experiment.name in run.experiments for run in mine)
    ]
    tables: list[Table] = []
    for dataset, _, setting in sorted(own):
        number = 1 + sum(table.dataset == dataset for table in tables)
        tables.append(table_of(experiment, groups[dataset, setting], setting, number))
    return tables


def table_of(experiment: Experiment, runs: Sequence[Measured], setting: str, number: int) -> Table:
    rows, notes = rows_of(experiment, runs)
    attack, weaker = judge(rows)
    notes += weaker
    reference = None
    if experiment.reference:
        try:
            row = only(rows, experiment.reference)
            rows, reference = compared(rows, row), row.label
        except Refused as error:
            notes.append(f"reference: {error}; no differences are told")
    mine = sorted((run for row in rows for run in row.runs), key=lambda run: run.name)
    if unchecked := sum(not run.is_checked(attack) for run in mine):
        notes.append(f"{attack or 'clean'}: not checked for masked gradients in {unchecked} of"
                     f" {len(mine)} runs (evaluation.masking_checks=0)")  # fmt: skip
    curves = any(figure["kind"] == "epochs" for figure in experiment.figures)
    for run in mine:
        if curves and run.fault:
            notes.append(f"{run.name}: {run.fault}")
        if names := sorted({alarm.name for alarm in run.result.alarms}):
            notes.append(f"! {run.name}: raised alarms ({', '.join(names)})")
    verdicts, facts = judged(rows, experiment.claims, attack), facts_of(mine, attack)
    return Table(experiment, set_of(runs[0]), heading(setting), rows, attack, verdicts, notes,
                 facts, reference, number)  # fmt: skip


def judge(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The attack that judges: the strongest that all rows have for most of their seeds, at the data
    set's own eps and norm; and a note of what was passed over for it."""
    runs = [run for row in rows for run in row.runs]
    found: dict[str, tuple[bool, int, tuple[int, ...]]] = {}
    measures = dict.fromkeys(measure for run in runs for measure in run.entries)
    chosen = "best" if any(which == "best" for which, _ in measures) else "last"  # a file's
    for which, attack in measures:
        measured = [run for run in runs if (which, attack) in run.entries]
        dataset = dict(measured[0].config["dataset"])
        with suppress(KeyError, ValueError):  # it may be written: 0.5/255
            dataset["eps"] = check_unit("eps", dataset["eps"], dataset.get("norm") or "linf")
        given = measured[0].entries[which, attack].settings or {}
        own = all(dataset.get(k) in (None, given.get(k, dataset.get(k))) for k in ("eps", "norm"))
        if which == chosen and own and isinstance(given.get("attack"), str):
            everywhere = all((which, attack) in row.numbers for row in rows)
            power = RANKS.get(given["attack"], 0), given.get("steps", 0), given.get("restarts", 0)
            found[attack] = everywhere, len(measured), power
    best = max((attack for attack in found if found[attack][0]), key=found.__getitem__, default="")
    notes = [
        f"{attack}: {has} of {len(runs)} runs were measured with it, so the table is judged by"
        f" {best or 'clean accuracy'}"
        for attack, (_, has, power) in found.items()
        if not best or power > found[best][2]
    ]
    return best, notes


def heading(setting: str) -> str:
    """What all runs of a table share, for people, group by group, without what is at its default:
    `attack pgd eps=38, model resnet depth=10, schedule digits epochs=40`."""
    groups: dict[str, list[str]] = {}
    for key, value in json.loads(setting).items():
        group, _, rest = key.partition(".")
        parts = groups.setdefault(group, [group])
        if rest == "_target_":
            parts.insert(1, str(value))
        elif not rest.endswith("_target_"):
            parts.append(f"{rest}={shown_as(key, value)}" if rest else str(value))
    return ", ".join(" ".join(parts) for parts in groups.values())


def facts_of(runs: Sequence[Measured], attack: str) -> dict[str, str]:
    """Where, with what and how long the runs of a table were made: `command` is what was typed for
    them; of kept runs, which don't hold it, `overrides` are those that they share."""
    told = [{**run.result.choices, **run.result.environment} for run in runs]
    typed = [run.result.overrides for run in runs] or [[]]  # no row: no run has a number
    words = [word for word in typed[0] if all(word in other for other in typed)]
    entries = [(name, entry) for run in runs for (_, name), entry in run.entries.items()]
    joined = {m for _, entry in entries if entry.norm == "union" for m in entry.attacks or ()}

    def listed(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values if value}))

    def sizes(names: Iterable[str]) -> str:
        return listed(f"{e.eps:g}/255 {e.norm}" for name, e in entries if name in names and e.eps)

    command = "; ".join(sorted({str(each.get("command") or "") for each in told} - {""}))
    versions = ("python", "torch", "timm", "precision", "compile")
    facts = {
        "command": command,
        "overrides": " ".join(words) * (not command),
        f"eps of {attack}": sizes([attack]),
        "worst_case is the union of": sizes(joined),
        "machine": listed(each.get("device") for each in told),
        **{key: listed(each.get(key) for each in told) for key in versions},
        "commit": listed(str(each.get("commit") or "")[:8] for each in told),
        "training": f"{duration(sum(run.result.wall_seconds for run in runs))} for {len(runs)} run"
                    + "s" * (len(runs) != 1),
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
        "training images": listed(f"{run.result.dataset.get('train') or 0:,}" for run in runs),
        "test images": listed(f"{entry.images:,}" for _, entry in entries),
    }  # fmt: skip
    return {name: text for name, text in facts.items() if text}
