"""What a data set is to the rest of the program: its splits, and the facts that a model needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sat.data.batches import Batch
from sat.data.choice import stratified
from sat.data.samplers import Mixture
from sat.errors import Fault
from sat.rng import seed_of


class Split(Protocol):
    """A part of a set: training, held-out or test images."""

    labels: Tensor  # int64 [N] on the CPU; -1 where the reader cannot say before it has read

    @property
    def in_order(self) -> bool:
        """Whether its images can be read in their order alone, each once a pass."""
        ...

    @property
    def skips(self) -> bool:
        """Whether images that can't be read are left out of a training batch."""
        ...

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """A checksum of the labels and of what is in the images, see `sat.data.fingerprint`."""
        ...

    def readable(self, indices: Tensor) -> Tensor:
        """Indices of images that can be read: all of them, unless others are left out."""
        ...

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields for each batch in order x, float32 [B, C, H, W] in [0, 1], and y, int64 [B], on
        the device. `batches` may be endless: it is read a bounded number of batches ahead."""
        ...


@dataclass(frozen=True)
class Data:
    """A set made ready on one device."""

    name: str
    classes: tuple[str, ...]  # in label order
    channels: int
    image_size: int  # pixels; images are square
    mean: tuple[float, ...]  # per channel, of images in [0, 1], as is `std`
    std: tuple[float, ...]
    train: Split
    held_out: Split
    test: Split
    canonical: bool  # the first n test images are everybody's choice of n
    beside: int = 0  # further training images, by index behind the set's own, and how each batch
    mixture: Mixture | None = None  # takes of both

    @property
    def sizes(self) -> tuple[int, ...]:
        """The training images of the set, and those beside it if there are any."""
        return (len(self.train), self.beside) if self.beside else (len(self.train),)

    def test_subset(self, limit: int | None, seed: int | None = None) -> Tensor:
        """Ascending int64 indices of `limit` test images (None: all of them), less those that are
        left out because they can't be read.

        Without a seed always the same: the first ones of a canonical set, else a choice with every
        class in proportion. A seed draws others: at random from a canonical set, else stratified.
        """
        return self.test.readable(self._chosen(limit, seed))

    def _chosen(self, limit: int | None, seed: int | None) -> Tensor:
        count = len(self.test)
        if limit is None or limit >= count:
            return torch.arange(count)
        if self.canonical and seed is None:
            return torch.arange(limit)
        own = seed_of(-1 if seed is None else seed, "test subset")
        generator = torch.Generator().manual_seed(own)
        if self.canonical:
            return torch.randperm(count, generator=generator)[:limit].sort().values
        return stratified(self.test.labels, limit, generator)


class UnreadableImage(Fault):
    """An image could not be decoded; the message names it, the reason and the remedy."""
