"""A table of accuracies as colours, with the numbers in them."""

from collections.abc import Sequence
from typing import Any


def plot_heat_map(
    ax: Any, grid: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """`grid` has shares, or None where nothing is known, a list a row; drawn in percent, with the
    names of rows and columns and a bar of the colours."""
    percent = [[float("nan") if share is None else 100 * share for share in row] for row in grid]
    image = ax.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    for y, shares in enumerate(percent):
        for x, share in enumerate(shares):
            if share == share:
                ax.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=7,
                        color="black" if share > 55 else "white")  # fmt: skip
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
