"""All that a folder of runs tells: one table an experiment, data set and setting, with verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sat.config import nearest
from sat.errors import Refused
from sat.report import runs as directories
from sat.report.claims import compared, judged
from sat.report.rows import heading, others, set_of, split
from sat.report.runs import Left, Measured
from sat.report.spec import Experiment, known, load
from sat.report.tables import Table, facts_of, primary, rows_of


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
    found = directories.read(outputs)
    if experiment is not None:
        names = sorted({*known(), *(name for run in found for name in run.experiments)})
        found = [run for run in found if experiment in run.experiments]
        if experiment not in names:
            raise Refused(
                f"--experiment {experiment}: no such experiment; {nearest(experiment, names)}"
            )
        if not found:
            raise Refused(
                f"--experiment {experiment}: has no run in {outputs}; start it: python -m sat.run"
                f" -m experiment={experiment}"
            )
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
            also = {*spec.spec.get("also", ())}
            more = [run for run in trained if also & {*run.experiments} and run not in mine]
            tables += tables_of(spec, [*mine, *more])
            placed |= {run.name for run in mine}
        except Refused as error:
            notes.append(f"{error}; its {len(mine)} finished runs are in no table of it")
    left: dict[tuple[str, bool], list[Measured]] = {}
    for run in (run for run in measured if run.name not in placed):
        left.setdefault((set_of(run), run.config.get("evaluate") is None), []).append(run)
    for runs in left.values():
        tables += tables_of(others(runs), runs)
    tables.sort(key=lambda table: table.dataset == "digits")  # last: a test of the program
    notes += [f"{run.name}: {run.reason}" for run in found if isinstance(run, Left)]
    preface, text = (outputs.parent if outputs.is_file() else outputs) / "preface.md", ""
    try:
        text = preface.read_text() if preface.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"preface.md: can't be read ({error})")
    return Report(tables, notes, text, measured)


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
        mine = groups[dataset, setting]
        tables.append(table_of(experiment, mine, dataset, heading(setting), number))
    return tables


def table_of(
    experiment: Experiment, runs: Sequence[Measured], dataset: str, setting: str, number: int
) -> Table:
    rows, mine, alike, notes = rows_of(experiment, runs)
    attack, weaker = primary(alike, rows)
    rows, reference, missing = compared(rows, experiment.spec.get("reference"))
    notes += [*weaker, *missing]
    curves = any(figure["kind"] == "epochs" for figure in experiment.spec.get("figures", ()))
    for run in mine:
        if curves and (fault := run.validations()[1]):
            notes.append(f"{run.name}: {fault}")
        if names := sorted({alarm.name for alarm in run.result.alarms}):
            notes.append(f"! {run.name}: raised alarms ({', '.join(names)})")
    verdicts = judged(rows, experiment.spec.get("claims", ()), attack)
    facts = facts_of(mine, attack)
    return Table(
        experiment, dataset, setting, rows, attack, verdicts, notes, facts, reference, number
    )
