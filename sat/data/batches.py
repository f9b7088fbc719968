"""The order in which images are seen: a pure function of seed and step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sat.data.samplers import Epochs, Sampler
from sat.rng import RowRng, seed_of, sent

CHUNK = 2**30  # bytes of images that are attacked together


@dataclass(frozen=True)
class Batch:
    """Which images to load, and how."""

    indices: Tensor  # int64 [B], into the split
    key: int | None  # seeds the augmentation, with the row in the batch; None: no augmentation
    start: int = 0  # place of its row 0 in the endless sequence of epochs
    own: Tensor | None = None  # int64 [B], their rows in the whole batch; None: it is the whole
    crops: bool = True  # with a key: whether the set's own random crop and mirror are done

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.indices)) if self.own is None else self.own

    def draws(self, device: torch.device) -> RowRng | None:
        """What crop and mirror draw with there; None where there are none."""
        if self.key is None or not self.crops:
            return None
        return RowRng(self.key, sent(self.rows, device))

    def part(self, rows: Tensor) -> "Batch":
        """Some rows of a whole batch, with the same images and the same augmentation."""
        return replace(self, indices=self.indices[rows], own=self.rows[rows])


def epoch_batches(
    images: int | tuple[int, ...],
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    sampler: Sampler | None = None,
) -> Iterator[Batch]:
    """The batches of the steps `start` <= step < `stop` over so many images, of several sets one
    after the other, as the sampler takes them; a step depends on no other."""
    sampler, sizes = sampler or Epochs(), (images,) if isinstance(images, int) else images
    for step in range(start, stop):
        indices = sampler(seed, step, batch_size, sizes)
        yield Batch(indices, seed_of(seed, "augment", step), step * batch_size)


def evaluation_batches(indices: Tensor, batch_size: int) -> Iterator[Batch]:
    """`indices` in their order, without augmentation; the last batch may be smaller."""
    for part in indices.split(batch_size) if len(indices) else ():
        yield Batch(part, None)


def indexed(split: Any, indices: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images of a split by batches: their indices (on the CPU), x and y."""
    batches = list(evaluation_batches(indices, size))
    for batch, (x, y) in zip(batches, split.stream(batches), strict=True):
        yield batch.indices, x, y


def chunks(split: Any, indices: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches by parts of CHUNK bytes, so that an attack sees as many at once as memory allows."""
    parts, held = [], 0
    for part in indexed(split, indices, size):
        parts.append(part)
        held += part[1].numel() * part[1].element_size()
        if held >= CHUNK:
            yield tuple(map(torch.cat, zip(*parts, strict=True)))
            parts, held = [], 0
    if parts:
        yield tuple(map(torch.cat, zip(*parts, strict=True)))


def some_images(split: Any, count: int) -> tuple[Tensor, Tensor]:
    """Readable images spread over a split, the first ones of what is read in order alone; x and y,
    as `split.stream` gives them."""
    count = min(count, len(split))
    chosen = torch.arange(count)
    if not split.in_order:
        chosen = chosen * len(split) // count
    ((x, y),) = split.stream([Batch(chosen, None)])
    return x[y >= 0], y[y >= 0]
