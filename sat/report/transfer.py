"""Who fools whom: images crafted on each run, counted on each run, as a matrix, of what
`evaluation=transfer` measured; what `sat-report --transfer` prints and draws."""

import csv
from collections.abc import Sequence
from pathlib import Path

from sat.errors import Refused
from sat.evaluation.heat_map import plot_heat_map
from sat.loggers.screen import table
from sat.report.runs import Measured, finished

Cells = dict[tuple[str, str], float]  # accuracy by source and target
Matrices = dict[tuple[str, str], Cells]  # by checkpoint and attack


def transfer(root: Path, folder: Path) -> str:
    """The matrices of all runs below `root` as text; each is written into `folder` as CSV and PNG.
    Raises Refused where no run was measured so."""
    if not (found := matrices(finished(root))):
        raise Refused(
            f"{root}: no run was measured under images of another; evaluate=RUN evaluation=transfer"
            " 'evaluation.source=outputs/*' does"
        )
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    for (which, attack), cells in found.items():
        sources, targets = (sorted({pair[k] for pair in cells}) for k in (0, 1))
        place, title = folder / f"{attack}-{which}", f"{attack}, {which}"
        rows = [[cells.get((source, target)) for target in targets] for source in sources]
        with open(f"{place}.csv", "w", newline="") as file:
            lines = [[name, *row] for name, row in zip(sources, rows, strict=True)]
            csv.writer(file, lineterminator="\n").writerows([["crafted on", *targets], *lines])
        numbered = {name: f"{k} {name}" for k, name in enumerate(targets, 1)}  # names are long
        names = [numbered.get(source, source) for source in sources]
        draw(rows, names, len(targets), title, Path(f"{place}.png"))
        told.append(f"{title}: accuracy in % of the network of the column on images crafted on that"
                    f" of the row\n{text(rows, names, [*numbered.values()])}\n"
                    f"written: {place}.csv, {place}.png")  # fmt: skip
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


def text(
    rows: Sequence[Sequence[float | None]], names: Sequence[str], targets: Sequence[str]
) -> str:
    """The matrix with its columns numbered; below it the targets that are no sources."""
    shown = [[name, *("" if share is None else f"{100 * share:.1f}" for share in row)]
             for name, row in zip(names, rows, strict=True)]  # fmt: skip
    head = ["crafted on", *(target.split(" ")[0] for target in targets)]
    below = [each for each in targets if each not in names]
    return "\n".join([table(head, shown), *([""] if below else []), *below])


def draw(
    rows: Sequence[Sequence[float | None]], names: Sequence[str], targets: int, title: str,
    file: Path,
) -> None:  # fmt: skip
    """The matrix as a heat map."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(2 + 0.5 * targets, 1.5 + 0.4 * len(rows)))
        axes = figure.subplots()
        plot_heat_map(axes, rows, names, [str(k + 1) for k in range(targets)])
        axes.set(ylabel="crafted on", xlabel="measured")
        axes.set_title(f"{title}: accuracy in %", fontsize=9)
        figure.savefig(file, dpi=120, bbox_inches="tight")
