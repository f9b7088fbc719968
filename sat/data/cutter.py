"""Random crops and mirror images of small pictures, where they lie."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sat.rng import RowRng


def mirrored(images: Tensor, width: int) -> Tensor:
    """Images whose edges are mirrored, the outermost pixel once (torch has that for no uint8).
    Raises ValueError for a width that they have not."""
    last = images.shape[-1] - 1
    if width > last:
        raise ValueError(f"crop={width}: images of {last + 1} pixels mirror {last} at most")
    places = torch.arange(-width, last + 1 + width, device=images.device).abs()
    places = last - (last - places).abs()
    return images[:, :, places][:, :, :, places]


class Cutter:
    """Cuts images out of uint8 pixels [N, C, S, S], at random where that is asked for: around them
    are `crop` pixels, black or mirrored at the edge (`reflect`)."""

    def __init__(self, images: Tensor, crop: int, flip: bool, reflect: bool = False):
        if crop >= images.shape[-1]:
            raise ValueError(
                f"crop={crop}: leaves nothing of {images.shape[-1]} pixels; write fewer"
            )
        self.crop, self.flip = crop, flip
        padded = mirrored(images, crop) if reflect else F.pad(images, [crop] * 4)
        size = images.shape[-1]
        # a view [N, C, 2 crop + 1, 2 crop + 1, S, S]: the second pair says where the window begins
        self._windows = padded.unfold(2, size, 1).unfold(3, size, 1)

    @property
    def images(self) -> Tensor:
        """The images as they are stored."""
        return self._windows[:, :, self.crop, self.crop]

    def __call__(self, chosen: Tensor, rng: RowRng | None) -> Tensor:
        """Pixels uint8 [B, C, S, S] of the images `chosen` [B], cut and mirrored by these draws."""
        if rng is None:
            return self._windows[chosen, :, self.crop, self.crop]
        corner = rng.uniform("crop", 2).mul_(2 * self.crop + 1).long()
        pixels = self._windows[chosen, :, corner[:, 0], corner[:, 1]]
        if self.flip:
            mirrored = rng.uniform("flip", 1, 1, 1) < 0.5
            pixels = torch.where(mirrored, pixels.flip(3), pixels)
        return pixels
