"""Augmentation of training images, on the device and image by image.

An option of `conf/augment` is a class like these. It is called with a batch of this process's own
rows and random numbers that depend on a row alone, so that it comes out the same however a batch is
split into processes and accumulation parts. It asks nothing of the host.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sat.data.operations import box, each
from sat.rng import RowRng


class Augment(Protocol):
    """Images x, float32 [B, C, S, S] in [0, 1], and labels y to the same of as many.

    `crops`: whether the data set's own random crop and mirror come first. `partners`: whether
    images are mixed; then x [2B] and y, soft [2B, K], hold behind the images their partners, each
    the next one of the whole batch, wherever that lies, and x [B] and y [B, K] come out.
    """

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = False

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Standard:
    """The data set's own random crop and mirror, and nothing more."""

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = False

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        return x, y


@dataclass(frozen=True)
class Unchanged(Standard):
    """Training images as those of the test are, neither cut at random nor mirrored."""

    crops: ClassVar[bool] = False


@dataclass(frozen=True)
class Cutout(Standard):
    """Blackens a square of `size` pixels that lies whole in the image (DeVries and Taylor,
    1708.04552; with 14 pixels in Rice et al. 2020)."""

    size: int = 14

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: write the side of the square in pixels, 1 or more")

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        side = min(self.size, x.shape[-1])
        corner = (rng.uniform("cutout", 2) * (x.shape[-1] - side + 1)).long()
        sides = torch.full_like(corner[:, 0], side)
        return x.masked_fill(box(x.shape[-1], corner[:, 0], corner[:, 1], sides, sides), 0), y


@dataclass(frozen=True)
class MixUp:
    """lambda x + (1 - lambda) x' and as much of both labels, with lambda from Beta(alpha, alpha)
    for each image (Zhang et al., 1710.09412; alpha 1.4 in Rice et al. 2020)."""

    alpha: float = 1.4

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        own = symmetric_beta(rng, self.alpha)
        (x, other), (y, label) = x.chunk(2), y.chunk(2)
        return _mixed(x, other, each(own)), _mixed(y, label, own[:, None])


@dataclass(frozen=True)
class CutMix:
    """A rectangle of another image in the place of one's own, and as much of its label (Yun et al.,
    1905.04899; against robust overfitting, with averaged weights, Rebuffi et al. 2021).

    Its area is 1 - lambda of the image, with lambda from Beta(alpha, alpha), its centre anywhere;
    what lies outside of the image is lost, and the labels follow what is left.
    """

    alpha: float = 1.0

    crops: ClassVar[bool] = True
    partners: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, x: Tensor, y: Tensor, rng: RowRng) -> tuple[Tensor, Tensor]:
        size = x.shape[-1]
        half = ((1 - symmetric_beta(rng, self.alpha)).sqrt() * (size / 2)).long()[:, None]
        centre = (rng.uniform("centre", 2) * size).long()
        first, end = (centre - half).clamp(min=0), (centre + half).clamp(max=size)
        sides = end - first
        (x, other), (y, label) = x.chunk(2), y.chunk(2)
        x = torch.where(box(size, *first.unbind(1), *sides.unbind(1)), other, x)
        return x, _mixed(y, label, 1 - sides.prod(1, keepdim=True) / size**2)


def _mixed(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return share * own + (1 - share) * other


def _check_alpha(alpha: float) -> None:
    if not 0.01 <= alpha <= 100:
        raise ValueError(f"alpha={alpha:g}: of Beta(alpha, alpha); write 0.01 to 100, such as 1")


TRIES = 8  # of which all fail once in 10^10 images


def symmetric_beta(rng: RowRng, alpha: float) -> Tensor:
    """One number [B] in [0, 1] from Beta(alpha, alpha) a row: X / (X + Y) of two gammas."""
    x, y = (_log_gamma_draw(rng, f"beta:{name}", alpha) for name in "xy")
    return torch.sigmoid(x - y).float()


def _log_gamma_draw(rng: RowRng, name: str, alpha: float) -> Tensor:
    """The logarithm [B] of a draw from Gamma(alpha), as that of Gamma(alpha + 1) U^(1 / alpha).

    Marsaglia and Tsang, "A simple method for generating gamma variables" (2000), with all tries at
    once, of which the first that is accepted counts. In float64, since the last bit of a logarithm
    depends on a row's place in the batch.
    """
    d = alpha + 1 - 1 / 3
    radius, angle, u = (1 - rng.uniform(name, 3, TRIES).double()).unbind(1)
    z = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
    v = (1 + z / (9 * d) ** 0.5) ** 3
    log_v = v.clamp(min=1e-30).log()
    accepted = (v > 0) & (u.log() < z.square() / 2 + d - d * v + d * log_v)
    first = accepted.long().argmax(1, keepdim=True)
    power = 1 - rng.uniform(f"{name}:power").double()
    return log_v.gather(1, first)[:, 0] + power.log() / alpha
