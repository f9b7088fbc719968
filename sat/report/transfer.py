"""Who fools whom: images crafted on each run, counted on each run, as a matrix, of what
`evaluation=transfer` measured; what `sat-report --transfer` prints and draws."""

import csv
from collections import Counter
from pathlib import Path

from sat.errors import Refused
from sat.loggers.pictures import plot_heat_map
from sat.loggers.screen import table
from sat.report.runs import finished


def transfer(root: Path, folder: Path) -> str:
    """The matrices of all runs below `root` as text, one a checkpoint and attack; each is written
    into `folder` as CSV and PNG. Raises Refused where no run was measured so."""
    # of each attack and checkpoint: source, target, accuracy, and what else was asked for
    found: dict[str, list[tuple[str, str, float, str]]] = {}
    runs = finished(root)
    places = Counter(Path(run.name).name for run in runs)
    for run in runs:
        called = Path(run.name).name  # as a source is, wherever below the folder it lies
        called = called if places[called] == 1 else run.name
        for (which, name), entry in run.entries.items():
            settings = entry.settings or {}
            if settings.get("attack") == "Transfer":
                own = {k: v for k, v in settings.items() if k not in ("run_name", "weights")}
                cell = str(settings["run_name"]), called, float(entry.accuracy), str(own)
                found.setdefault(f"{name.rpartition('_')[0]}-{which}", []).append(cell)
    if not found:
        raise Refused(
            f"{root}: no run was measured under images of another; evaluate=RUN evaluation=transfer"
            " 'evaluation.source=outputs/*' does"
        )
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    told = []
    for title, measured in found.items():
        ((usual, count),) = Counter(own for *_, own in measured).most_common(1)
        cells = {(one, other): share for one, other, share, own in measured if own == usual}
        if count < len(measured):
            told.append(f"{title}: {len(measured) - count} left out, of other settings or images")
        sources, targets = (sorted({*side}) for side in zip(*cells, strict=True))
        # where columns are numbers, the rows say whose: also of a target that is no source
        names = [*dict.fromkeys([*targets, *sources])]
        labels = [f"{k} {name}" for k, name in enumerate(names, 1)]
        columns = [str(k) for k in range(1, len(targets) + 1)]
        rows = [[cells.get((source, target)) for target in targets] for source in names]
        with open(folder / f"{title}.csv", "w", newline="") as file:
            lines = [[name, *row] for name, row in zip(names, rows, strict=True) if name in sources]
            csv.writer(file, lineterminator="\n").writerows([["crafted on", *targets], *lines])
        with rc_context({"text.parse_math": False}):
            figure = Figure(figsize=(2 + 0.5 * len(columns), 1.5 + 0.4 * len(rows)))
            axes = figure.subplots()
            plot_heat_map(axes, rows, labels, columns)
            axes.set(ylabel="crafted on", xlabel="measured")
            axes.set_title(f"{title}: accuracy in %", fontsize=9)
            figure.savefig(folder / f"{title}.png", dpi=120, bbox_inches="tight")
        shown = [[label, *("" if x is None else f"{100 * x:.1f}" for x in row)]
                 for label, row in zip(labels, rows, strict=True)]  # fmt: skip
        told.append(f"{title}: accuracy in % of the network of the column on images crafted on that"
                    f" of the row\n{table(['crafted on', *columns], shown)}\n\n"
                    f"written: {folder / title}.csv, {folder / title}.png")  # fmt: skip
    return "\n\n".join(told)
