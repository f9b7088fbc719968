"""Operations on a batch of images, each with strengths of its own for every image.

Images are float32 [B, C, S, S] in [0, 1], strengths [B], and what comes out is in [0, 1] again.
Each is what `torchvision.transforms.v2.functional` does to one image with that strength, without a
look of the host. What is no plain arithmetic is computed in float64, since its last bit may depend
on an image's place in the batch. `equalize` and `posterize` work on the 256 levels of files.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256
GREY = 0.2989, 0.587, 0.114  # of red, green and blue
# Of ImageNet's colours: the principal components, each times its share, by row of red, green, blue.
SHARES = 0.2175, 0.0188, 0.0045
AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
COMPONENTS = [[a * share for a, share in zip(row, SHARES, strict=True)] for row in AXES]


def each(strength: Tensor) -> Tensor:
    """A strength [B] beside images [B, C, S, S]."""
    return strength[:, None, None, None]


def grey(x: Tensor) -> Tensor:
    """Brightness [B, 1, S, S]."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return GREY[0] * x[:, 0:1] + GREY[1] * x[:, 1:2] + GREY[2] * x[:, 2:3]


def blend(x: Tensor, base: Tensor | float, factor: Tensor) -> Tensor:
    """`base` at factor 0, the image at 1, beyond it above."""
    return (each(factor) * x + (1 - each(factor)) * base).clamp(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, 0.0, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Leaves images of one channel as they are."""
    return blend(x, grey(x), factor) if x.shape[1] == 3 else x


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, grey(x).mean((1, 2, 3), keepdim=True), factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Against the image blurred by a kernel of 3x3 pixels; the outermost pixels stay."""
    if x.shape[-1] < 3:
        return x
    inner, size = x[:, :, 1:-1, 1:-1], x.shape[-1] - 2
    blurred = 4 * inner
    for down in range(3):
        for right in range(3):
            blurred = blurred + x[:, :, down : down + size, right : right + size]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = blurred / 13
    return blend(x, smooth, factor)


def autocontrast(x: Tensor) -> Tensor:
    """Each channel stretched to reach from 0 to 1; one of a single value stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high == low
    scaled = (x - low) / torch.where(flat, 1.0, high - low)
    return torch.where(flat, x, scaled)


def levels(x: Tensor) -> Tensor:
    """Whole numbers from 0 to 255, int64."""
    return (x * (LEVELS - 0.001)).long()


def equalize(x: Tensor) -> Tensor:
    """Each channel with a flat histogram over 256 levels; one that is too small for it stays."""
    pixels = levels(x).flatten(2)
    counts = torch.zeros(*pixels.shape[:2], LEVELS, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    below = counts.cumsum(2)
    brightest = pixels.amax(2, keepdim=True)
    step = (pixels.shape[2] - counts.gather(2, brightest)) // (LEVELS - 1)
    table = F.pad((below + step // 2) // step.clamp(min=1), (1, -1)).clamp(max=LEVELS - 1)
    flat = table.gather(2, pixels).view(x.shape).float() / (LEVELS - 1)
    return torch.where(step[..., None] > 0, flat, x)


def posterize(x: Tensor, bits: int | Tensor) -> Tensor:
    """The highest `bits` of 8 alone; of each image its own, where they are whole numbers [B]."""
    lost = 2 ** (8 - (each(bits) if isinstance(bits, Tensor) else bits))
    return (levels(x) // lost * lost).float() / (LEVELS - 1)


def solarize(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Inverts what is as bright as the threshold, or brighter."""
    return torch.where(x >= (each(threshold) if isinstance(threshold, Tensor) else threshold),
                       1 - x, x)  # fmt: skip


def brighten_dark(x: Tensor, more: Tensor) -> Tensor:
    """Adds `more` to what is darker than the middle of 256 levels, up to white."""
    return torch.where(levels(x) < LEVELS // 2, (x + each(more)).clamp(max=1), x)


def light(x: Tensor, along: Tensor) -> Tensor:
    """Adds the principal components of ImageNet's colours, `along` [B, 3] of each (Krizhevsky et
    al. 2012). Leaves images of one channel as they are."""
    if x.shape[1] != 3:
        return x
    added = [sum(part * along[:, k] for k, part in enumerate(row)) for row in COMPONENTS]
    return (x + torch.stack(added, 1)[:, :, None, None]).clamp(0, 1)


def warp(x: Tensor, matrix: Tensor, shift: Tensor, mode: str = "nearest") -> Tensor:
    """Takes the pixel at v from matrix v + shift, the nearest there is, or black from outside;
    `mode=bicubic` between its neighbours.

    v is in pixels from the image's centre, right and down; `matrix` is [B, 2, 2], `shift` [B, 2].
    """
    size = x.shape[-1]
    place = (torch.arange(size, device=x.device) + 0.5) * (2 / size) - 1
    # no matrix product, which on a GPU may round to TF32
    along = [
        matrix[:, k, 0, None, None] * place
        + matrix[:, k, 1, None, None] * place[:, None]
        + shift[:, k, None, None] * (2 / size)
        for k in (0, 1)
    ]
    grid = torch.stack(along, 3)
    if mode == "nearest":
        return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
    between = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
    inside = (grid.abs() <= 1).all(3)[:, None]
    return between.clamp(0, 1) * inside


def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] for each image."""
    return torch.stack([a, b, c, d], 1).view(-1, 2, 2)


def rotation(degrees: Tensor) -> Tensor:
    """The matrix, as `warp` takes it, that turns each image counter-clockwise."""
    angle = degrees.double() * (math.pi / 180)
    cosine, sine = angle.cos().float(), angle.sin().float()
    return matrix(cosine, -sine, sine, cosine)


def shear(slope: Tensor, vertical: Tensor) -> Tensor:
    """The matrix that moves each line by `slope` times its place; each column where `vertical`."""
    none, one = torch.zeros_like(slope), torch.ones_like(slope)
    across = torch.where(vertical, none, slope)
    return matrix(one, across, slope - across, one)


def mirror(x: Tensor, mirrored: Tensor) -> Tensor:
    """Left and right swapped where `mirrored` [B] says so."""
    return torch.where(each(mirrored), x.flip(3), x)


def box(size: int, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Truth for the pixels [B, 1, S, S] of a rectangle in each image."""
    place = torch.arange(size, device=top.device)
    rows = (place >= top[:, None]) & (place < (top + height)[:, None])
    columns = (place >= left[:, None]) & (place < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def move(x: Tensor, down: Tensor, right: Tensor, kept: Tensor) -> Tensor:
    """The image moved by whole pixels [B], black but for the pixels `kept` [B, 1, S, S]."""
    batch, channels, size, _ = x.shape
    place = torch.arange(size, device=x.device)
    rows = (place - down[:, None]).clamp(0, size - 1)[:, None, :, None]
    columns = (place - right[:, None]).clamp(0, size - 1)[:, None, None, :]
    x = x.gather(2, rows.expand(batch, channels, size, size))
    return x.gather(3, columns.expand(batch, channels, size, size)) * kept
