"""Pictures for trackers, as tensors [C, H, W] on the CPU, in [0, 1] or uint8."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = 96  # pixels: small images are unreadable at their own size
LINE = 18  # of text
INK, ALARM = "black", "#C04000"


def sheet(views: Any) -> Tensor:
    """Clean images, adversarial ones, and the perturbation stretched to the full range, of a
    `sat.evaluation.views.Views`; above each what it is taken for, and whether it fell."""
    from PIL import Image, ImageDraw, ImageFont

    x, x_adv = views.x, views.x_adv
    delta = x_adv - x
    delta = 0.5 + 0.5 * delta / delta.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    factor = max(1, SIZE // x.shape[-1])
    side = factor * x.shape[-1]
    canvas = Image.new("RGB", (len(x) * (side + 4), LINE + 3 * (side + LINE + 4)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)

    def write(text: str, left: int, top: int, width: int, ink: str = INK) -> None:
        while font.getlength(text) > width:
            text = text[:-1]
        pen.text((left, top), text, ink, font)

    write(f"{views.attack}: {sum(views.fell)} of {len(x)} fell", 2, 2, canvas.width)
    for column, fell in enumerate(views.fell):
        truth, clean, attacked = (n[column] for n in (views.truth, views.clean, views.attacked))
        told = (
            (f"{truth}: seen" if clean == truth else f"{truth}: {clean}", clean != truth),
            (f"{attacked}: fell" if fell else attacked, fell),
            ("perturbation", False),
        )
        for row, (images, (text, bad)) in enumerate(zip((x, x_adv, delta), told, strict=True)):
            left, top = column * (side + 4) + 2, LINE + row * (side + LINE + 4)
            write(text, left, top + 2, side, ALARM if bad else INK)
            canvas.paste(Image.fromarray(enlarged(images[column], factor)), (left, top + LINE))
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)


def enlarged(image: Tensor, factor: int) -> np.ndarray:
    """An image [C, H, W] in [0, 1] as RGB [H, W, 3]; of other than three channels the first."""
    image = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    pixels = (255 * image).round().byte().permute(1, 2, 0)
    return pixels.repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy()


def pixels_of(figure: Any) -> Tensor:
    """A drawn matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pixels.permute(2, 0, 1)
