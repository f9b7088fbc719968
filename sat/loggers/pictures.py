"""Pictures for trackers, as tensors [C, H, W] on the CPU, in [0, 1] or uint8."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def rows_of(x: Tensor, x_adv: Tensor) -> Tensor:
    """Three rows of images [B, C, H, W]: clean, adversarial, and the perturbation stretched to the
    full range."""
    delta = (x_adv - x) / (x_adv - x).abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    rows = torch.stack([x, x_adv, 0.5 + 0.5 * delta]).cpu()
    factor = max(1, 96 // x.shape[-1])  # small images are unreadable at their own size
    rows = rows.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    rows = torch.nn.functional.pad(rows, (2, 2, 2, 2), value=1.0)
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)


def pixels_of(figure: Any) -> Tensor:
    """A drawn matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pixels.permute(2, 0, 1)
