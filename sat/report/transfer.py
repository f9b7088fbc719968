"""Who fools whom: images crafted on each run, counted on each run, as a matrix, of what
`evaluation=transfer` measured; what `sat-report --transfer` prints and draws."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sat.errors import Refused
from sat.evaluation.heat_map import plot_heat_map
from sat.loggers.screen import table
from sat.report.runs import Measured, look, runs_in

Cells = dict[tuple[str, str], float]  # accuracy by source and target
Matrices = dict[tuple[str, str], Cells]  # by checkpoint and attack


def transfer(root: Path, folder: Path) -> str:
    """The matrices of all runs below `root` as text; each is written into `folder` as CSV and PNG.
    Raises Refused where no run was measured so."""
    found = matrices(
        [run for path in runs_in(root) if isinstance(run := look(path, root), Measured)]
    )
    if not found:
        raise Refused(
            f"{root}: no run was measured under images of another; evaluate=RUN evaluation=transfer"
            " 'evaluation.source=outputs/*' does"
        )
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    for (which, attack), cells in found.items():
        sources, targets = (sorted({pair[k] for pair in cells}) for k in (0, 1))
        name = folder / f"{attack}-{which}"
        name.with_suffix(".csv").write_text(as_csv(cells, sources, targets))
        draw(cells, sources, targets, f"{attack}, {which}").savefig(
            f"{name}.png", dpi=120, bbox_inches="tight"
        )
        told.append(f"{attack}, {which}: accuracy in % of the network of the column on images"
                    f" crafted on that of the row\n{text(cells, sources, targets)}\n"
                    f"written: {name}.csv, {name}.png")  # fmt: skip
    return "\n\n".join(told)


def matrices(runs: Sequence[Measured]) -> Matrices:
    """The accuracies of all runs under the images of others."""
    found: Matrices = {}
    for run in runs:
        for (which, name), entry in run.entries.items():
            settings = entry.settings or {}
            if settings.get("attack") == "Transfer":
                cells = found.setdefault((which, name.rpartition("_")[0]), {})
                cells[str(settings["run_name"]), run.name] = float(entry.accuracy)
    return found


def text(cells: Cells, sources: Sequence[str], targets: Sequence[str]) -> str:
    """The matrix with its columns numbered, since names of runs are long."""
    rows = []
    for source in sources:
        shares = [cells.get((source, target)) for target in targets]
        number = f"{targets.index(source) + 1} " if source in targets else ""
        rows.append([number + source, *("" if s is None else f"{100 * s:.1f}" for s in shares)])
    head = ["crafted on", *(str(k + 1) for k in range(len(targets)))]
    left_over = [f"{k + 1} {name}" for k, name in enumerate(targets) if name not in sources]
    return "\n".join([table(head, rows), *left_over])


def as_csv(cells: Cells, sources: Sequence[str], targets: Sequence[str]) -> str:
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow(["crafted on", *targets])
    for source in sources:
        rows.writerow([source, *(cells.get((source, target), "") for target in targets)])
    return lines.getvalue()


def draw(cells: Cells, sources: Sequence[str], targets: Sequence[str], title: str) -> Any:
    """The matrix as a heat map."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):
        drawn = Figure(figsize=(2 + 0.5 * len(targets), 1.5 + 0.4 * len(sources)))
        ax = drawn.subplots()
        grid = [[cells.get((source, target)) for target in targets] for source in sources]
        names = [f"{targets.index(s) + 1} {s}" if s in targets else s for s in sources]
        plot_heat_map(ax, grid, names, [str(k + 1) for k in range(len(targets))])
        ax.set_ylabel("crafted on")
        ax.set_xlabel("measured")
        ax.set_title(f"{title}: accuracy in %", fontsize=9)
    return drawn
