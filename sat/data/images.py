"""Images, from an opened file to the square of pixels that the model sees."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

TRIES = 10
NUMBERS = 4 * TRIES + 1  # uniform numbers in [0, 1) that the augmentation of one image may use
AREA = 0.08, 1.0  # of the image
RATIO = 3 / 4, 4 / 3  # width to height


# Pillow reads others as well, and has PostScript drawn by another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")


def opened(source: str | Path | BinaryIO) -> Image.Image:
    """An image, not yet decoded. Raises for another format, and for more pixels than Pillow takes
    for an image (89 million): a file of a few kB may hold billions."""
    with warnings.catch_warnings():
        # of damage beside the pixels (EXIF), where nothing is read
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel: 16 bits of grey are scaled, which Pillow would cut off at 255.

    Raises ValueError for one of whole or broken numbers of 32 bits, whose range nobody knows. What
    is transparent becomes what lies below it; EXIF's orientation is left alone, as it is by
    torchvision and in the published numbers of ImageNet.
    """
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        levels = np.asarray(image).astype(np.uint32)
        # of more than 255 levels: PPM says how many, PNG has 16 bits
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"holds numbers of 32 bits (mode {image.mode}); save it with 8 a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow asks for in a warning; the same colours
    return image.convert("RGB")


@dataclass(frozen=True)
class ResizedCrop:
    """Training: a random window resized to `size` pixels, mirrored half of the time (Szegedy et
    al., 2015; torchvision's RandomResizedCrop). Evaluation: the shorter side to size / 0.875, then
    the centre, equal to torchvision's Resize and CenterCrop. Both bilinear with antialiasing.
    """

    size: int

    def __call__(self, image: Image.Image, numbers: Sequence[float] | None) -> Image.Image:
        """`image` opened, not yet decoded; `numbers` NUMBERS draws, or None for evaluation."""
        if numbers is None:
            return self._centre(to_rgb(image))
        whole = image.size
        left, top, width, height = random_window(image.width, image.height, numbers)
        # a JPEG is decoded at 1/2, 1/4 or 1/8 where the window keeps `size` pixels: up to 3 times
        # as fast
        image.draft("RGB", [math.ceil(side * self.size / min(width, height)) for side in whole])
        x, y = (now / before for now, before in zip(image.size, whole, strict=True))
        box = left * x, top * y, (left + width) * x, (top + height) * y
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
        image = to_rgb(image)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return _mirrored(image, numbers[-1])

    def _centre(self, image: Image.Image) -> Image.Image:
        image = _less_thin(image)
        shorter, short = min(image.size), int(self.size / 0.875)
        scaled = [short if side == shorter else int(short * side / shorter) for side in image.size]
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (round((side - self.size) / 2) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


def _less_thin(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than eight times as long as wide, since enlarging all of
    it could take any memory."""
    most = 8 * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = (max(0, (side - most) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def random_window(width: int, height: int, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the first of TRIES windows that fits, else of the centre."""
    ratios = [math.log(bound) for bound in RATIO]
    for first in range(0, 4 * TRIES, 4):
        area, ratio, left, top = numbers[first : first + 4]
        area = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        ratio = math.exp(ratios[0] + ratio * (ratios[1] - ratios[0]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(left * (width - w + 1)), int(top * (height - h + 1)), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


@dataclass(frozen=True)
class PaddedCrop:
    """Training: `pad` black pixels on each side, a random window of `size` pixels, mirrored half of
    the time. Evaluation: the image as it is. Images of another size are resized first.
    """

    size: int
    pad: int

    def __call__(self, image: Image.Image, numbers: Sequence[float] | None) -> Image.Image:
        """`image` opened, not yet decoded; `numbers` NUMBERS draws, or None for evaluation."""
        image = to_rgb(image)
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if numbers is None:
            return image
        left, top = (int(number * (2 * self.pad + 1)) - self.pad for number in numbers[:2])
        image = image.crop((left, top, left + self.size, top + self.size))
        return _mirrored(image, numbers[-1])


def _mirrored(image: Image.Image, number: float) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number < 0.5 else image
