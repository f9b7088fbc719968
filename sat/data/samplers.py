"""Which images a step takes: `sampler(seed, step, batch_size, images) -> indices`.

A sampler is a pure function of seed and step, so that a resumed run goes on as if never stopped,
and any process can tell what a step takes. `images` are the sizes of the sets that are trained on,
one after the other: (50000,), or (50000, 1000000) with further ones; the indices [batch_size] count
through all of them. A new sampler is one class here and one YAML file in `conf/sampler`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sat.rng import seed_of


class Sampler(Protocol):
    def __call__(
        self, seed: int, step: int, batch_size: int, images: tuple[int, ...]
    ) -> Tensor: ...


@dataclass(frozen=True)
class Epochs:
    """The next places of an endless sequence of permutations, one an epoch.

    Every batch is full, and every image comes once in as many places as there are images.
    """

    def __call__(self, seed: int, step: int, batch_size: int, images: tuple[int, ...]) -> Tensor:
        n, first = sum(images), step * batch_size
        end = first + batch_size
        parts = [
            _order(seed, epoch, n)[max(first - epoch * n, 0) : end - epoch * n]
            for epoch in range(first // n, (end - 1) // n + 1)
        ]
        return torch.cat(parts)


@dataclass(frozen=True)
class Mixture:
    """Two sets at a ratio: floor(fraction * batch_size) images of a batch come from the second one,
    drawn with replacement; those of the first come in epochs of their own. They lie in a batch in
    any order, so that its parts and processes have their share of both."""

    fraction: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction={self.fraction}: is the second set's share, from 0 to 1")

    def __call__(self, seed: int, step: int, batch_size: int, images: tuple[int, ...]) -> Tensor:
        if len(images) != 2:
            raise ValueError(
                f"fraction={self.fraction}: a mixture takes two sets, not {len(images)}"
            )
        first, second = images
        extra = math.floor(Fraction(str(self.fraction)) * batch_size)  # 0.29 * 100 is 29
        if not extra:
            raise ValueError(f"fraction={self.fraction}: of {batch_size} images a batch is not one")
        real = Epochs()(seed, step, batch_size - extra, (first,))
        generator = torch.Generator().manual_seed(seed_of(seed, "extra", step))
        drawn = torch.randint(second, (extra,), generator=generator)
        both = torch.cat([real, first + drawn])
        return both[torch.randperm(batch_size, generator=generator)]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    return torch.randperm(n, generator=generator)
