"""The shapes that Square moves under L2: a hill beside a valley, in a square of length 1."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sat.rng import RowRng


@cache
def bump(side: int) -> Tensor:
    """A hill in the upper half, a valley in the lower [side, side], L2 norm 1."""
    top = side // 2
    shape = torch.cat([_hill(top, side), -_hill(side - top, side)])
    return shape / shape.norm()


def _hill(height: int, width: int) -> Tensor:
    """Rings of 1 / (k + 1)^2 for all k from the distance to the middle on; L2 norm 1."""
    rows, columns = torch.arange(height), torch.arange(width)
    distance = torch.maximum((rows - height // 2).abs()[:, None], (columns - width // 2).abs())
    rings = 1 / torch.arange(1, max(height, width) // 2 + 2) ** 2.0
    hill = rings.flip(0).cumsum(0).flip(0)[distance]
    return hill / hill.norm().clamp_min(1e-12)


def bumps_at(corner: Tensor, sides: Tensor, shape: torch.Size, rng: RowRng) -> Tensor:
    """For each image a bump in the square at `corner`, upright or on its side [B, 1, H, W]."""
    placed = torch.zeros(len(sides), 1, *shape[-2:], device=sides.device)
    for side in sides.unique().tolist():
        rows = (sides == side).nonzero()[:, 0]
        turned = rng[rows].uniform("turn", 1, 1) < 0.5
        shapes = torch.where(turned, bump(side).T.to(placed), bump(side).to(placed))
        steps = torch.arange(side, device=sides.device)
        down, right = corner[rows, 0, None] + steps, corner[rows, 1, None] + steps
        placed[rows[:, None, None], 0, down[:, :, None], right[:, None, :]] = shapes
    return placed


def bump_grid(shape: torch.Size, rng: RowRng) -> Tensor:
    """Five times five bumps of random signs and turns over the whole image [B, C, H, W]."""
    batch, channels, height, width = shape
    side = max(min(height, width) // 5, 1)
    tiles = (height // side, width // side)
    sign = 1 - 2 * (rng.uniform("tile sign", channels, *tiles) < 0.5).float()
    turned = rng.uniform("tile turn", 1, *tiles) < 0.5
    one = bump(side).to(sign)
    each = sign[..., None, None] * torch.where(turned[..., None, None], one.T, one)
    grid = each.transpose(3, 4).reshape(batch, channels, tiles[0] * side, tiles[1] * side)
    down, right = height - grid.shape[2], width - grid.shape[3]
    return F.pad(grid, (right // 2, right - right // 2, down // 2, down - down // 2))
