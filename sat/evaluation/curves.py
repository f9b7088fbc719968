"""Robust accuracy over eps or over steps, of a finished measurement: data and figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sat.attacks.outcomes import AttackOutcomes
from sat.evaluation.settings import accuracy
from sat.rundir.checkpoint import write_whole

BLUE, GREY, ORANGE = "#0072B2", "#999999", "#D55E00"  # told apart by the colour-blind
ROWS = 20  # classes that a heat map can show


def entry_of(
    curve: Any,
    outcomes: AttackOutcomes,
    labels: Tensor,
    classes: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What `result.json` holds of a curve: a point for each value, and each class's accuracies.

    `labels` [N]; where some are unknown (-1) no class is told apart.
    """
    points = [
        {"eps": attack.eps, "steps": attack.steps, **accuracy(outcomes.left_by(k))}
        for k, attack in enumerate(curve.attacks)
    ]
    of_class = {
        name: [float(outcomes.left_by(k)[labels == c].float().mean()) for k in range(len(points))]
        for c, name in enumerate(classes)
        if (labels == c).any() and labels.min() >= 0
    }
    return {
        "over": curve.over,
        "points": points,
        "classes": of_class,
        "clean": accuracy(outcomes.clean)["accuracy"],
        "eps": curve.attack.eps,
        "norm": curve.attack.norm,
        "images": len(labels),
        "seconds": round(float(outcomes.seconds.sum()), 3),
        "settings": dict(settings),
    }


def write(folder: Path, name: str, title: str, entry: Mapping[str, Any]) -> Any:
    """`<name>.csv` and `<name>.png` in the folder; returns the figure."""
    folder.mkdir(exist_ok=True)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    classes = [f"class {name}" for name in entry["classes"]]
    rows.writerow(["eps", "steps", "accuracy", "low", "high", *classes])
    for k, point in enumerate(entry["points"]):
        shares = [point["accuracy"], *point["ci95"], *(v[k] for v in entry["classes"].values())]
        rows.writerow([f"{point['eps']:g}", point["steps"], *(f"{s:.4f}" for s in shares)])
    write_whole(folder / f"{name}.csv", lambda file: file.write(text.getvalue().encode()))
    drawn = figure(title, entry)
    write_whole(folder / f"{name}.png", lambda file: drawn.savefig(file, format="png", dpi=120))
    return drawn


def figure(title: str, entry: Mapping[str, Any]) -> Any:
    """The curve with its 95 % band beside a heat map of the classes, the hardest on top."""
    from matplotlib.figure import Figure

    shown = hardest(entry)
    drawn = Figure(figsize=(11, 4.6) if shown else (6, 4.6), layout="constrained")
    drawn.suptitle(title, fontsize=10)
    axes = drawn.subplots(1, 2 if shown else 1, width_ratios=(1, 1.15) if shown else None)
    plot_curve(axes[0] if shown else axes, entry)
    if shown:
        plot_classes(axes[1], entry, shown)
    return drawn


def plot_curve(ax: Any, entry: Mapping[str, Any]) -> None:
    over, points = entry["over"], entry["points"]
    at = [point[over] for point in points]
    share = [100 * point["accuracy"] for point in points]
    low, high = ([100 * point["ci95"][k] for point in points] for k in (0, 1))
    ax.fill_between(at, low, high, color=BLUE, alpha=0.2, linewidth=0)
    ax.plot(at, share, color=BLUE, marker="o", markersize=4)
    norm = {"linf": "L-inf", "l2": "L2"}[entry["norm"]]
    if over == "eps":
        ax.set_xlabel(f"eps ({norm}, in 1/255), PGD-{points[0]['steps']}, worst case up to here")
        ax.axvline(entry["eps"], color=ORANGE, linestyle="--", linewidth=1)
        ax.text(entry["eps"], 1, f" eps = {entry['eps']:g}", color=ORANGE, va="top", fontsize=9,
                transform=ax.get_xaxis_transform())  # fmt: skip
    else:
        ax.set_xscale("log")
        ax.set_xticks(at, [str(value) for value in at])
        ax.minorticks_off()
        ax.set_xlabel(f"steps of PGD (eps {entry['eps']:g}/255, {norm}), worst case up to here")
        clean = 100 * entry["clean"]
        ax.axhline(clean, color=GREY, linestyle="--", linewidth=1)
        ax.text(at[-1], clean, f"clean {clean:.1f} % ", color="#666666", ha="right", va="bottom",
                fontsize=9)  # fmt: skip
    ax.set_ylabel(f"accuracy in % of {entry['images']:,} test images (band: 95 %)")
    ax.set_ylim(0, min(105, max(5, 1.2 * max(*high, 100 * entry["clean"]))))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def plot_classes(ax: Any, entry: Mapping[str, Any], shown: Sequence[str]) -> None:
    grid = [[100 * share for share in entry["classes"][name]] for name in shown]
    image = ax.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    over = entry["over"]
    columns = [f"{point[over]:g}" for point in entry["points"]]
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(shown)), [name[:18] for name in shown])
    ax.set_xlabel("eps, in 1/255" if over == "eps" else "steps")
    left_out = len(entry["classes"]) - len(shown)
    which = f", {len(shown)} hardest classes" if left_out else ", each class, the hardest on top"
    ax.set_title(f"accuracy in %{which}", fontsize=9)
    for row, shares in enumerate(grid):
        for column, share in enumerate(shares):
            ax.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7,
                    color="black" if share > 55 else "white")  # fmt: skip
    ax.figure.colorbar(image, ax=ax, shrink=0.8)


def hardest(entry: Mapping[str, Any]) -> list[str]:
    """Names of the classes with the lowest accuracies, summed over the curve, at most ROWS."""
    classes = entry["classes"]
    return sorted(classes, key=lambda name: sum(classes[name]))[:ROWS]
