"""All that a folder of runs tells: one table an experiment, data set and setting, with verdicts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sat.config import nearest
from sat.errors import Refused
from sat.report import kept
from sat.report.claims import Verdict, compared, judged
from sat.report.rows import OTHERS, apart, heading, others, set_of, split
from sat.report.runs import Left, Measured, look, runs_in
from sat.report.spec import Experiment, known, load
from sat.report.tables import Row, facts_of, masking_checks, primary, rows_of


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
        """Names files: the experiment and the data set, `activations-digits`; a further setting of
        the same two has its number behind."""
        name = re.sub(r"[^\w.+=-]+", "_", f"{self.experiment}-{self.dataset}")
        return name if self.number == 1 else f"{name}-{self.number}"

    @property
    def title(self) -> str:
        return str(self.spec.get("title") or self.experiment)


@dataclass(frozen=True)
class Report:
    """All that a folder of runs tells."""

    tables: Sequence[Table]
    notes: Sequence[str]  # what is in no table, and why: one line each
    preface: str  # Markdown, to stand before everything
    runs: Sequence[Measured]  # finished ones


def read(outputs: Path, experiment: str | None = None) -> Report:
    """The report of all runs below a folder or in a file, or of one experiment's alone.

    Raises Refused where there is no run, or no such experiment; what is wrong with single runs
    and files is said in the report.
    """
    found = runs_of(outputs)
    if experiment is not None:
        found = _only(experiment, found, outputs)
    measured = [run for run in found if isinstance(run, Measured)]
    trained = [run for run in measured if run.config.get("evaluate") is None]
    notes, tables, placed = [], [], set()
    for name in sorted({name for run in found for name in run.experiments}):
        if experiment not in (None, name):
            continue
        mine = [run for run in trained if name in run.experiments]
        try:
            if (spec := load(name)) is None:
                continue
            more = [run for run in trained if {*spec.also} & {*run.experiments}]
            tables += tables_of(spec, [*mine, *(run for run in more if run not in mine)])
            placed |= {run.name for run in mine}
        except Refused as error:
            notes.append(f"{error}; its {len(mine)} finished runs are in no table of it")
    left: dict[tuple[str, bool], list[Measured]] = {}
    for run in (run for run in measured if run.name not in placed):
        left.setdefault((set_of(run), run.config.get("evaluate") is None), []).append(run)
    for runs in left.values():
        tables += tables_of(others(runs), runs)
    notes += [f"{run.name}: {run.reason}" for run in found if isinstance(run, Left)]
    try:
        preface = (outputs.parent if outputs.is_file() else outputs) / "preface.md"
        text = preface.read_text() if preface.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        text, _ = "", notes.append(f"preface.md: can't be read ({error})")
    return Report(tables, notes, text, measured)


def runs_of(place: Path) -> list[Measured | Left]:
    """The runs below a folder, or in a file of kept runs. Raises Refused where there is none."""
    if not place.exists():
        raise Refused(f"{place}: no such folder; name the record.root of your runs")
    if place.is_dir():
        found = [look(path, place) for path in runs_in(place)]
    else:
        found = list(kept.read(place))
    if not found:
        raise Refused(f"{place}: holds no run; a run's directory has a config.yaml")
    return found


def _only(experiment: str, found: Sequence[Measured | Left], place: Path) -> list[Measured | Left]:
    """The runs of one experiment. Raises Refused where it is unknown, or has none."""
    if mine := [run for run in found if experiment in run.experiments]:
        return mine
    names = sorted({*known(), *(name for run in found for name in run.experiments)})
    if experiment in names:
        raise Refused(
            f"--experiment {experiment}: has no run in {place}; start it: python -m sat.run -m"
            f" experiment={experiment}"
        )
    raise Refused(f"--experiment {experiment}: no such experiment; {nearest(experiment, names)}")


def tables_of(experiment: Experiment, runs: Sequence[Measured]) -> list[Table]:
    """A table for each data set and setting that the runs of an experiment were made in."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for run in runs:
        key = set_of(run), split(run, experiment.rows)[0]
        groups.setdefault(key, []).append(run)
    groups = {  # runs of other experiments are no table of their own here
        key: mine
        for key, mine in groups.items()
        if experiment.name == OTHERS or any(experiment.name in run.experiments for run in mine)
    }

    def by_size(group: tuple[tuple[str, str], list[Measured]]) -> tuple[str, int, str]:
        (dataset, setting), mine = group
        return dataset, -len(mine), setting

    tables: list[Table] = []
    for (dataset, setting), mine in sorted(groups.items(), key=by_size):
        siblings = [other for name, other in groups if name == dataset and other != setting]
        number = 1 + sum(table.dataset == dataset for table in tables)
        differing = apart(setting, siblings)
        tables.append(replace(table_of(experiment, dataset, mine, differing), number=number))
    return tables


def table_of(
    experiment: Experiment,
    dataset: str,
    runs: Sequence[Measured],
    differing: Mapping[str, Any],
) -> Table:
    """One table; `differing` are the keys that set it apart from others of the experiment."""
    rows, alike, notes = rows_of(experiment, runs)
    attack, weaker = primary(alike, rows)
    notes += weaker
    if any(figure["kind"] == "epochs" for figure in experiment.spec.get("figures", ())):
        faults = ((run.name, run.validations()[1]) for run in alike)
        notes += [f"{name}: {fault}" for name, fault in faults if fault]
    rows, reference, missing = compared(rows, experiment.spec.get("reference"))
    verdicts = judged(rows, experiment.spec.get("claims", ()), attack)
    notes += [*masking_checks(alike), *missing]
    if "test images" in differing:
        notes.append(f"other runs of {dataset} have other test images, and a table of their own")
    return Table(
        experiment=experiment.name,
        dataset=dataset,
        setting=heading(alike, attack, experiment.rows, differing),
        spec=experiment.spec,
        rows=rows,
        attack=attack,
        verdicts=verdicts,
        notes=notes,
        facts=facts_of(experiment, alike),
        reference=reference,
    )
