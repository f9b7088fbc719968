"""Pictures: for trackers, as tensors [C, H, W] on the CPU, in [0, 1] or uint8; and a table of
accuracies as colours. torch is imported where it is needed: no table waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIZE, LINE, FONT = 128, 26, 20  # pixels: dashboards show a sheet at about half its size
COLUMNS = 4
INK, ALARM = "black", "#C04000"


def sheet(views: Any) -> Tensor:
    """Clean images, adversarial ones, and the perturbation stretched to the full range, of a
    `sat.evaluation.views.Views`; above them the class, where the network is wrong also what it
    takes the image for, and whether it fell."""
    import torch
    from PIL import Image, ImageDraw, ImageFont

    x, x_adv = views.x, views.x_adv
    delta = x_adv - x
    delta = 0.5 + 0.5 * delta / delta.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    factor = max(1, SIZE // x.shape[-1])
    side = factor * x.shape[-1] + 4
    band = 3 * side + 2 * LINE + 8
    height = LINE + band * -(-len(x) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * side, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)

    def write(text: str, left: int, top: int, width: int, ink: str = INK) -> None:
        while font.getlength(text) > width:
            text = text[:-1]
        pen.text((left, top), text, ink, font)

    write(f"{views.attack}: {sum(views.fell)} of {len(x)} fell", 2, 0, canvas.width)
    for number, fell in enumerate(views.fell):
        left, top = number % COLUMNS * side, LINE + number // COLUMNS * band
        truth, clean, attacked = (n[number] for n in (views.truth, views.clean, views.attacked))
        wrong = "" if clean == truth else f", not {clean}"
        for images, text, bad in (
            (x, f"{truth}{wrong}", bool(wrong)),
            (x_adv, f"fell: {attacked}" if fell else attacked, fell),
            (delta, "", False),
        ):
            if text:
                write(text, left + 2, top, side - 4, ALARM if bad else INK)
                top += LINE
            canvas.paste(Image.fromarray(enlarged(images[number], factor)), (left + 2, top))
            top += side
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)


def enlarged(image: Tensor, factor: int) -> np.ndarray:
    """An image [C, H, W] in [0, 1] as RGB [H, W, 3]; of other than three channels the first."""
    image = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    pixels = (255 * image).round().byte().permute(1, 2, 0)
    return pixels.repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy()


def pixels_of(figure: Any) -> Tensor:
    """A drawn matplotlib figure."""
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pixels.permute(2, 0, 1)


def plot_heat_map(
    ax: Any, grid: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draws accuracies as colours, with the numbers in them, on the axes `ax` of matplotlib.

    `grid` has shares, or None where nothing is known, a list a row; drawn in percent, with the
    names of rows and columns and a bar of the colours.
    """
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
