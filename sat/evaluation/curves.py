"""Robust accuracy over eps or over steps, of outcomes: numbers, data and figures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sat.attacks import MinimalNorm
from sat.attacks.outcomes import AttackOutcomes
from sat.evaluation.measure import accuracy
from sat.loggers.pictures import plot_heat_map
from sat.rundir.checkpoint import write_whole
from sat.rundir.result import CurveResult, Point

BLUE, GREY, ORANGE = "#0072B2", "#999999", "#D55E00"  # told apart by the colour-blind
ROWS, COLUMNS = 20, 13  # classes, and points of a curve, that a heat map can show


def curve_result(
    curve: Any,
    outcomes: AttackOutcomes,
    labels: Tensor,
    classes: Sequence[str],
    settings: dict[str, Any],
) -> CurveResult:
    """A point for each value, and each class's accuracies.

    `labels` [N]; where some are unknown (-1) no class is told apart.
    """
    left = [outcomes.left_by(k) for k in range(len(outcomes.names))]
    return CurveResult(
        over=curve.over,
        points=[
            Point(eps=attack.eps, steps=attack.steps, **accuracy(flags))
            for attack, flags in zip(curve.attacks, left, strict=True)
        ],
        classes={
            name: [float(flags[labels == c].float().mean()) for flags in left]
            for c, name in enumerate(classes)
            if (labels == c).any() and labels.min() >= 0
        },
        clean=accuracy(outcomes.clean)["accuracy"],
        eps=curve.attack.eps,
        norm=curve.norm,
        images=len(labels),
        seconds=round(float(outcomes.seconds.sum()), 3),
        settings=settings,
        median=median(curve, left) if isinstance(curve, MinimalNorm) else None,
    )


def median(curve: MinimalNorm, left: Sequence[Tensor]) -> float | None:
    """The size, in 1/255, at which half of the images are wrong, to a step of the curve between
    whose ends the images are taken to be spread evenly; None where it lies beyond, and 0 where half
    are wrong when clean."""
    shares = [float(flags.double().mean()) for flags in left]
    sizes = [level.eps for level in curve.attacks]
    if shares[0] <= 0.5:
        return 0.0
    for k in range(1, len(sizes)):
        if shares[k] <= 0.5:
            part = (shares[k - 1] - 0.5) / (shares[k - 1] - shares[k])
            return sizes[k - 1] + part * (sizes[k] - sizes[k - 1])
    return None


def write(folder: Path, name: str, title: str, found: CurveResult) -> Any:
    """`<name>.csv` and `<name>.png` in the folder; returns the figure."""
    folder.mkdir(exist_ok=True)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    classes = [f"class {name}" for name in found.classes]
    rows.writerow(["eps", "steps", "accuracy", "low", "high", *classes])
    for k, point in enumerate(found.points):
        shares = [point.accuracy, *point.ci95, *(v[k] for v in found.classes.values())]
        rows.writerow([f"{point.eps:g}", point.steps, *(f"{s:.4f}" for s in shares)])
    write_whole(folder / f"{name}.csv", lambda file: file.write(text.getvalue().encode()))
    drawn = figure(title, found)
    write_whole(folder / f"{name}.png", lambda file: drawn.savefig(file, format="png", dpi=120))
    return drawn


def figure(title: str, found: CurveResult) -> Any:
    """The curve with its 95 % band beside a heat map of the classes, the hardest on top."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = hardest(found)
    with rc_context({"text.parse_math": False}):  # a class may be named with $
        drawn = Figure(figsize=(11, 4.6) if shown else (6, 4.6), layout="constrained")
        drawn.suptitle(title, fontsize=10)
        widths = (1, 1.15) if shown else (1,)
        ((curve, *classes),) = drawn.subplots(1, len(widths), width_ratios=widths, squeeze=False)
        plot_curve(curve, found)
        for ax in classes:
            plot_classes(ax, found, shown)
    return drawn


def plot_curve(ax: Any, found: CurveResult) -> None:
    over, points = found.over, found.points
    at = [getattr(point, over) for point in points]
    share = [100 * point.accuracy for point in points]
    low, high = ([100 * point.ci95[k] for point in points] for k in (0, 1))
    ax.fill_between(at, low, high, color=BLUE, alpha=0.2, linewidth=0)
    ax.plot(at, share, color=BLUE, marker="o" if len(at) <= ROWS else "", markersize=4)
    norm = {"linf": "L-inf", "l2": "L2", "l1": "L1"}[found.norm]
    if over == "eps":
        how = f"PGD-{points[0].steps}, worst case up to here"
        if found.settings.get("attack") == "MinimalNorm":
            far = "beyond" if found.median is None else f"{found.median:.3g}"
            how = f"by the smallest perturbation found: median {far}"
        ax.set_xlabel(f"eps ({norm}, in 1/255), {how}")
        ax.axvline(found.eps, color=ORANGE, linestyle="--", linewidth=1)
        ax.text(found.eps, 1, f" eps = {found.eps:g}", color=ORANGE, va="top", fontsize=9,
                transform=ax.get_xaxis_transform())  # fmt: skip
    else:
        ax.set_xscale("log")
        ax.set_xticks(at, [str(value) for value in at])
        ax.minorticks_off()
        ax.set_xlabel(f"steps of PGD (eps {found.eps:g}/255, {norm}), worst case up to here")
        clean = 100 * found.clean
        ax.axhline(clean, color=GREY, linestyle="--", linewidth=1)
        ax.text(at[-1], clean, f"clean {clean:.1f} % ", color="#666666", ha="right", va="bottom",
                fontsize=9)  # fmt: skip
    ax.set_ylabel(f"accuracy in % of {found.images:,} test images (band: 95 %)")
    ax.set_ylim(0, min(105, max(5, 1.2 * max(*high, 100 * found.clean))))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def plot_classes(ax: Any, found: CurveResult, shown: Sequence[str]) -> None:
    over = found.over
    step = -(-len(found.points) // COLUMNS)
    columns = [f"{getattr(point, over):g}" for point in found.points[::step]]
    grid = [found.classes[name][::step] for name in shown]
    plot_heat_map(ax, grid, [name[:18] for name in shown], columns)
    ax.set_xlabel("eps, in 1/255" if over == "eps" else "steps")
    left_out = len(found.classes) - len(shown)
    which = f", {len(shown)} hardest classes" if left_out else ", each class, the hardest on top"
    ax.set_title(f"accuracy in %{which}", fontsize=9)


def hardest(found: CurveResult) -> list[str]:
    """Names of the classes with the lowest accuracies, summed over the curve, at most ROWS."""
    classes = found.classes
    return sorted(classes, key=lambda name: sum(classes[name]))[:ROWS]
