"""Augmentations that draw one of many operations for each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

import sat.data.operations as ops
from sat.arguments import check_choices
from sat.data.operations import each
from sat.rng import RowRng


def whole(rng: RowRng, name: str, count: int) -> Tensor:
    """A whole number [B] from 0 to count - 1."""
    return (rng.uniform(name) * count).long()


def sign(rng: RowRng, name: str) -> Tensor:
    """-1 or 1 [B]."""
    return torch.where(rng.uniform(name) < 0.5, -1.0, 1.0)


# What RandAugment draws from, by number; the names are those of the paper.
POLICY = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
          "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast",
          "equalize")  # fmt: skip


@dataclass(frozen=True)
class RandAugment:
    """The set's own crop and mirror, then `operations` of fourteen, each drawn anew for every
    image, all of one strength, `magnitude` of 30 (Cubuk et al., 1909.13719).

    Strengths are those of `torchvision.transforms.v2.RandAugment`, signs are drawn.
    """

    operations: int = 2
    magnitude: int = 9

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.operations <= 10:
            raise ValueError(f"operations={self.operations}: write 1 to 10, one after the other")
        if not 0 <= self.magnitude <= 30:
            raise ValueError(f"magnitude={self.magnitude}: write 0 to 30")

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        for number in range(self.operations):
            chosen = whole(rng, f"operation:{number}", len(POLICY))
            x = self.apply(x, chosen, sign(rng, f"sign:{number}"))
        return x, y

    def apply(self, x: Tensor, chosen: Tensor, signs: Tensor) -> Tensor:
        """Operation number `chosen` [B] of POLICY on each image, its strength with that sign."""
        share = self.magnitude / 30
        is_ = lambda name: chosen == POLICY.index(name)  # noqa: E731
        x = self._warped(x, chosen, signs)
        factor = 1 + 0.9 * share * signs
        colours = {"brightness": ops.brightness, "color": ops.saturation,
                   "contrast": ops.contrast, "sharpness": ops.sharpness}  # fmt: skip
        for name, operation in colours.items():
            x = torch.where(each(is_(name)), operation(x, factor), x)
        bits = 8 - round(4 * share)
        x = torch.where(each(is_("posterize")), ops.posterize(x, bits), x)
        x = torch.where(each(is_("solarize")), ops.solarize(x, 1 - share), x)
        x = torch.where(each(is_("autocontrast")), ops.autocontrast(x), x)
        return torch.where(each(is_("equalize")), ops.equalize(x), x)

    def _warped(self, x: Tensor, chosen: Tensor, signs: Tensor) -> Tensor:
        """Sheared from the upper or left edge, shifted or rotated, where that is chosen."""
        share, size = self.magnitude / 30, x.shape[-1]
        strength = lambda name, most: torch.where(  # noqa: E731
            chosen == POLICY.index(name), signs * most, 0.0
        )
        along_x, along_y = strength("shear_x", 0.3 * share), strength("shear_y", 0.3 * share)
        pixels = int(150 / 331 * size * share)
        moved = torch.stack([strength("translate_x", pixels), strength("translate_y", pixels)], 1)
        shift = torch.stack([along_x, along_y], 1) * (size / 2) - moved
        turned = ops.rotation(strength("rotate", 30 * share))
        sheared = ops.shear(along_x + along_y, chosen == POLICY.index("shear_y"))
        is_turned = (chosen == POLICY.index("rotate"))[:, None, None]
        return ops.warp(x, torch.where(is_turned, turned, sheared), shift)


ERASING_RATIO = math.log(0.3), math.log(3.3)  # of height to width
ERASING_TRIES = 10


def erase(
    x: Tensor, rng: RowRng, probability: float, largest: float, into: Tensor | float = 0.0
) -> Tensor:
    """Puts `into`, black or other images [B, C, S, S], into a rectangle of 2 % of the area to
    `largest` of it, of a ratio from 0.3 to 3.3, with that probability (Zhong et al., 1708.04896):
    the first of ten that fits."""
    size = x.shape[-1]
    area = size**2 * (0.02 + (largest - 0.02) * rng.uniform("erasing:area", ERASING_TRIES))
    low, high = ERASING_RATIO
    ratio = low + (high - low) * rng.uniform("erasing:ratio", ERASING_TRIES).double()
    ratio = ratio.exp().float()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 2).round().long()
    fits = (sides < size).all(2)
    first = fits.long().argmax(1)[:, None, None].expand(-1, 1, 2)
    sides = sides.gather(1, first)[:, 0]
    erased = fits.any(1) & (rng.uniform("erasing") < probability)
    sides = torch.where(erased[:, None], sides, 0)
    corner = (rng.uniform("erasing:corner", 2) * (size - sides + 1)).long()
    return torch.where(ops.box(size, *corner.unbind(1), *sides.unbind(1)), into, x)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast and saturation, in any order, by factors up to so far from 1, then light
    along the principal components of ImageNet's colours, by normal noise of that deviation.

    The values are those of robustness (Engstrom et al. 2019), for ImageNet; the set's own crop and
    mirror come first.
    """

    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    lighting: float = 0.05

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key in ("brightness", "contrast", "saturation"):
            check_share(key, getattr(self, key))
        if not 0 <= self.lighting < math.inf:
            raise ValueError(f"lighting={self.lighting}: is a deviation, 0 (none) or above")

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        most = self.brightness, self.contrast, self.saturation
        ways, order = 2 * rng.uniform("factors", 3) - 1, rng.uniform("order", 3)
        x = self.apply(x, [1 + ways[:, k] * far for k, far in enumerate(most)], order)
        return ops.light(x, self.lighting * rng.normal("lighting", 3)), y

    @staticmethod
    def apply(x: Tensor, factors: Sequence[Tensor], order: Tensor) -> Tensor:
        """Each image by its factors, [B] of brightness, contrast and saturation, the one of the
        least `order` [B, 3] first."""
        place = (order[:, :, None] > order[:, None]).sum(2)
        operations = ops.brightness, ops.contrast, ops.saturation
        for turn in range(3):
            for k, operation in enumerate(operations):
                x = torch.where(each(place[:, k] == turn), operation(x, factors[k]), x)
        return x


def check_share(key: str, value: float) -> None:
    """Raises ValueError for what is no share of a whole."""
    if not 0 <= value <= 1:
        raise ValueError(f"{key}={value}: from 0 (none) to 1")


# Names of IDBH's operations with their shares, "colour" for CIFAR, "shape" for SVHN.
NAMES = ("color", "brightness", "contrast", "sharpness", "autocontrast", "equalize", "shear",
         "rotate")  # fmt: skip
COLOUR = (0.125,) * 8
SHAPE = (0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.3, 0.3)


@dataclass(frozen=True)
class IDBH:
    """Mirror, CropShift, one of eight operations, and random erasing (Li and Spratling, "Data
    augmentation alone can improve adversarial training", ICLR 2023); values as their code has them.

    `weak` erases half of the images, `strong` all, both for CIFAR-10; `svhn` cuts off less, erases
    more, and turns and shears rather than colours. The set's own crop is left out.
    """

    version: Literal["weak", "strong", "svhn"] = "weak"

    crops: ClassVar[bool] = False
    partners: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choices(self)

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        svhn = self.version == "svhn"
        x = ops.mirror(x, rng.uniform("mirror") < 0.5)
        x = crop_shift(x, rng, 9 if svhn else 11)
        x = self._one_of_eight(x, rng, SHAPE if svhn else COLOUR)
        return erase(x, rng, 0.5 if self.version == "weak" else 1.0, 0.5 if svhn else 0.33), y

    def _one_of_eight(self, x: Tensor, rng: RowRng, shares: tuple[float, ...]) -> Tensor:
        roll, strength, signs = rng.uniform("roll"), rng.uniform("strength"), sign(rng, "sign")
        chosen = torch.zeros_like(roll, dtype=torch.int64)
        for number in range(1, len(shares)):
            chosen = chosen + (roll >= sum(shares[:number]))
        return self.apply(x, chosen, strength, signs, rng.uniform("vertical") < 0.5)

    def apply(
        self, x: Tensor, chosen: Tensor, strength: Tensor, signs: Tensor, vertical: Tensor
    ) -> Tensor:
        """Operation number `chosen` [B] of NAMES on each image; `strength` [B] in [0, 1) runs from
        its weakest to its strongest form."""
        steep, turns = (0.35, 30) if self.version == "svhn" else (0.15, 10)
        is_ = lambda name: chosen == NAMES.index(name)  # noqa: E731
        slope = (signs * (0.05 + (steep - 0.05) * strength)).double().tan().float()
        turn = signs * (1 + (strength * turns).long())
        sheared = ops.shear(torch.where(is_("shear"), slope, 0.0), vertical)
        moved = torch.where(is_("rotate")[:, None, None], ops.rotation(turn), sheared)
        x = ops.warp(x, moved, moved.new_zeros(len(x), 2))
        wide, narrow = 0.1 + 1.8 * strength, 0.5 + 1.4 * strength
        for name, operation, factor in (
            ("color", ops.saturation, wide), ("brightness", ops.brightness, narrow),
            ("contrast", ops.contrast, narrow), ("sharpness", ops.sharpness, wide),
        ):  # fmt: skip
            x = torch.where(each(is_(name)), operation(x, factor), x)
        x = torch.where(each(is_("autocontrast")), ops.autocontrast(x), x)
        return torch.where(each(is_("equalize")), ops.equalize(x), x)


def crop_shift(x: Tensor, rng: RowRng, most: int) -> Tensor:
    """Cuts off 0 to most - 1 lines and columns in all, and puts what is left anywhere."""
    size = x.shape[-1]
    lost = whole(rng, "crop:lines", min(most, size))
    columns = (rng.uniform("crop:columns") * (lost + 1)).long()
    sides = torch.stack([lost - columns, columns], 1)  # cut off vertically, horizontally
    taken = (rng.uniform("crop:from", 2) * (sides + 1)).long()
    put = (rng.uniform("crop:to", 2) * (sides + 1)).long()
    kept = ops.box(size, *put.unbind(1), *(size - sides).unbind(1))
    down, right = (put - taken).unbind(1)
    return ops.move(x, down, right, kept)
