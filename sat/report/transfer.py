"""Who fools whom: images crafted on each run, counted on each run, as a matrix, of what
`evaluation=transfer` measured; what `sat-report --transfer` prints and draws."""

import csv
from collections.abc import Sequence
from pathlib import Path

from sat.errors import Refused
from sat.evaluation.heat_map import plot_heat_map
from sat.loggers.screen import table
from sat.report.runs import finished


def transfer(root: Path, folder: Path) -> str:
    """The matrices of all runs below `root` as text, one a checkpoint and attack; each is written
    into `folder` as CSV and PNG. Raises Refused where no run was measured so."""
    matrices: dict[str, dict[tuple[str, str], float]] = {}  # accuracy by source and target
    for run in finished(root):
        for (which, name), entry in run.entries.items():
            settings = entry.settings or {}
            if settings.get("attack") == "Transfer":
                cells = matrices.setdefault(f"{name.rpartition('_')[0]}-{which}", {})
                cells[str(settings["run_name"]), run.name] = float(entry.accuracy)
    if not matrices:
        raise Refused(
            f"{root}: no run was measured under images of another; evaluate=RUN evaluation=transfer"
            " 'evaluation.source=outputs/*' does"
        )
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    for title, cells in matrices.items():
        targets = sorted({target for _, target in cells})
        names = [*targets, *sorted({source for source, _ in cells} - {*targets})]
        rows = [[cells.get((source, target)) for target in targets] for source in names]
        with open(folder / f"{title}.csv", "w", newline="") as file:
            lines = [["crafted on", *targets]]
            lines += [[name, *row] for name, row in zip(names, rows, strict=True)]
            csv.writer(file, lineterminator="\n").writerows(lines)
        draw(rows, names, title, folder / f"{title}.png")
        shown = [[f"{k} {name}", *("" if x is None else f"{100 * x:.1f}" for x in row)]
                 for k, (name, row) in enumerate(zip(names, rows, strict=True), 1)]  # fmt: skip
        head = ["crafted on", *(str(k + 1) for k in range(len(targets)))]
        told.append(f"{title}: accuracy in % of the network of the column on images crafted on that"
                    f" of the row\n{table(head, shown)}\n\n"
                    f"written: {folder / title}.csv, {folder / title}.png")  # fmt: skip
    return "\n\n".join(told)


def draw(
    rows: Sequence[Sequence[float | None]], names: Sequence[str], title: str, file: Path
) -> None:
    """A matrix as a heat map; the columns are the first of the names, by their numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = [str(k + 1) for k in range(len(rows[0]))]
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(2 + 0.5 * len(columns), 1.5 + 0.4 * len(rows)))
        axes = figure.subplots()
        plot_heat_map(axes, rows, [f"{k} {name}" for k, name in enumerate(names, 1)], columns)
        axes.set(ylabel="crafted on", xlabel="measured")
        axes.set_title(f"{title}: accuracy in %", fontsize=9)
        figure.savefig(file, dpi=120, bbox_inches="tight")
