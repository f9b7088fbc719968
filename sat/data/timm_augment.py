"""What timm's training script does to images, as trainings on ImageNet take it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import sat.data.operations as ops
from sat.data.augment import CutMix, MixUp
from sat.data.operations import each
from sat.data.policies import check_share, erase, sign, whole
from sat.rng import RowRng

# What its RandAugment draws from, by number: those of which a larger magnitude does more.
INCREASING = ("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize",
              "brighten_dark", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y",
              "translate_x", "translate_y")  # fmt: skip


@dataclass(frozen=True)
class TimmAugment:
    """The set's own crop and mirror, timm's RandAugment, random erasing, then mixup or cutmix:
    `--aa rand-m9-mstd0.5-inc1 --reprob 0.25 --remode pixel --mixup 0.8 --cutmix 1.0`.

    `operations` of fifteen, each drawn anew for every image and left out half of the time, of a
    strength of its own: normal around `magnitude`, of 10, with that `deviation`. Then with the
    probability `erasing` a rectangle of normal noise, cut to [0, 1]. Then `cutmix` with the
    probability `switch`, else `mixup`, by their alpha: for these timm draws once a batch. Its
    bicubic turns have other weights (of Pillow, -1; torch has -0.75).
    """

    operations: int = 2
    magnitude: float = 9.0
    deviation: float = 0.5
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.operations <= 10:
            raise ValueError(f"operations={self.operations}: write 0 to 10, one after the other")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude={self.magnitude:g}: write 0 to 10")
        if not 0 <= self.deviation <= 10:
            raise ValueError(f"deviation={self.deviation:g}: of the magnitude; write 0 to 10")
        for key in ("erasing", "switch"):
            check_share(key, getattr(self, key))
        for key, alpha, kind in (("mixup", self.mixup, MixUp), ("cutmix", self.cutmix, CutMix)):
            try:
                kind(alpha)
            except ValueError as error:
                raise ValueError(f"{key}{str(error).removeprefix('alpha')}") from None

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        own, other = x.chunk(2)
        x = torch.cat([self._alone(own, rng), self._alone(other, rng.child("partner"))])
        mixed, cut = MixUp(self.mixup)(x, y, rng), CutMix(self.cutmix)(x, y, rng)
        cuts = rng.uniform("switch") < self.switch
        return torch.where(each(cuts), cut[0], mixed[0]), torch.where(
            cuts[:, None], cut[1], mixed[1]
        )

    def _alone(self, x: Tensor, rng: RowRng) -> Tensor:
        """Images [B, C, S, S] before they are mixed."""
        for number in range(self.operations):
            chosen = whole(rng, f"operation:{number}", len(INCREASING))
            noise = self.deviation * rng.normal(f"magnitude:{number}")
            level = (self.magnitude + noise).clamp(0, 10) / 10
            changed = self.apply(x, chosen, level, sign(rng, f"sign:{number}"))
            x = torch.where(each(rng.uniform(f"applied:{number}") < 0.5), changed, x)
        if not self.erasing:
            return x
        noise = rng.normal("erased", *x.shape[1:]).clamp_(0, 1)
        return erase(x, rng, self.erasing, 1 / 3, noise)

    @staticmethod
    def apply(x: Tensor, chosen: Tensor, level: Tensor, signs: Tensor) -> Tensor:
        """Operation number `chosen` [B] of INCREASING on each image, of a strength `level` [B] in
        [0, 1], with that sign."""
        x = _warped(x, chosen, level, signs)
        factor = (1 + 0.9 * level * signs).clamp(min=0.1)
        steps = lambda most: (level * most).long()  # noqa: E731
        made = {
            "autocontrast": ops.autocontrast(x),
            "equalize": ops.equalize(x),
            "invert": 1 - x,
            "posterize": ops.posterize(x, 4 - steps(4)),
            "solarize": ops.solarize(ops.levels(x) / 255, (256 - steps(256)) / 255),
            "brighten_dark": ops.brighten_dark(x, steps(110) / 255),
            "color": ops.saturation(x, factor),
            "contrast": ops.contrast(x, factor),
            "brightness": ops.brightness(x, factor),
            "sharpness": ops.sharpness(x, factor),
        }
        for name, images in made.items():
            x = torch.where(each(chosen == INCREASING.index(name)), images, x)
        return x


def _warped(x: Tensor, chosen: Tensor, level: Tensor, signs: Tensor) -> Tensor:
    """Turned, sheared from the upper or left edge, or shifted, where that is chosen."""
    size = x.shape[-1]
    strength = lambda name, most: torch.where(  # noqa: E731
        chosen == INCREASING.index(name), most * level * signs, 0.0
    )
    along_x, along_y = strength("shear_x", 0.3), strength("shear_y", 0.3)
    moved = [strength(f"translate_{axis}", 0.45 * size) for axis in "xy"]
    shift = torch.stack([along_x, along_y], 1) * (size / 2) + torch.stack(moved, 1)
    sheared = ops.shear(along_x + along_y, chosen == INCREASING.index("shear_y"))
    is_turned = chosen == INCREASING.index("rotate")
    matrix = torch.where(is_turned[:, None, None], ops.rotation(strength("rotate", 30)), sheared)
    warped = ops.warp(x, matrix, shift, "bicubic")
    names = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    is_warped = sum(chosen == INCREASING.index(name) for name in names) > 0
    return torch.where(each(is_warped), warped, x)
