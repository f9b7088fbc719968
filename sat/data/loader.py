"""Batches for a training: which images a step takes, and what becomes of them on the way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import tee
from typing import NamedTuple

import torch
from torch import Tensor

from sat.acceleration.graph import Graph
from sat.data.augment import Augment, Standard, Unchanged
from sat.data.batches import Batch, epoch_batches
from sat.data.memory import MemorySplit
from sat.data.samplers import Sampler
from sat.data.sets import Data
from sat.errors import Refused
from sat.rng import Key, RowRng, sent


class Places(NamedTuple):
    """Where the images of a process lie, the same in every batch."""

    rows: Tensor  # their rows in the whole batch
    read: Tensor  # these and those of partners that are no rows of this process
    partners: Tensor  # of each of `rows`, its place in `read`

    def to(self, device: torch.device) -> "Places":
        """Copies on the device of those that aren't there yet."""
        return self if self.rows.device == device else Places(*(sent(of, device) for of in self))


@dataclass(frozen=True)
class Loader:
    """The batches of a run, augmented; a step depends on no other.

    With `views` of each image a batch is [views * B], the first views of all images first; each is
    an augmentation of its own.
    """

    data: Data
    augment: Augment
    sampler: Sampler
    batch_size: int
    seed: int
    views: int = 1

    def check(self, processes: int) -> None:
        """Raises Refused for what this set's images can't be had for, with so many processes."""
        if self.data.train.skips and processes > 1:
            raise Refused(
                "dataset.skip_unreadable=true: is for one process; repair the images, or remove"
                " them"
            )
        if self.data.train.skips and self.views > 1:
            raise Refused(
                "dataset.skip_unreadable=true: would part the views that the objective compares;"
                " repair the images, or remove them"
            )
        if self.data.train.in_order and (self.views > 1 or self.augment.partners and processes > 1):
            raise Refused(
                f"dataset.name={self.data.name}: is read in its order alone, each image once, and"
                " objective or augment ask for more; take another reader"
            )

    def stream(
        self, rows: Tensor, start: int, stop: int, graph: Graph | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x [V, C, S, S] and y [V], or soft [V, K], of the steps start <= step < stop: the rows (on
        the CPU) of each batch, in each view.

        What is done on the device goes through `graph`, of this stream alone; then a batch may be
        overwritten by the next one.
        """
        size = self.batch_size
        rows = torch.cat([rows + view * size for view in range(self.views)])
        read = torch.cat([rows, self._missing(rows)])
        places = Places(rows, read, (read[:, None] == self._next(rows)).long().argmax(0))
        if self._is_ready_made:
            graph = None
        batches, same = tee(self._batches(read, start, stop))
        for batch, given in zip(same, self._given(batches), strict=True):
            places = places.to(given[0].device)
            assert batch.key is not None
            if graph is None:
                yield self._made(batch.key, places, *given)
            else:
                graph.key.set(batch.key)
                yield graph(partial(self._made, graph.key, places), *given)

    def _given(self, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, ...]]:
        """What each batch is made of, on the device: the indices of images that lie there, or x and
        y as they were read."""
        train = self.data.train
        if not isinstance(train, MemorySplit):
            yield from train.stream(batches)
            return
        for batch in batches:
            yield (sent(batch.indices, train.device),)

    @property
    def _is_ready_made(self) -> bool:
        """Whether batches are read as they are to be, with nothing left to do on the device."""
        plain = type(self.augment) in (Standard, Unchanged)
        return plain and not isinstance(self.data.train, MemorySplit)

    def _made(self, key: Key, places: Places, *given: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of what was given; the host is asked nothing."""
        rows, read, partners = places
        if isinstance(self.data.train, MemorySplit):
            (chosen,) = given
            x, y = self.data.train.cut(chosen, RowRng(key, read) if self.augment.crops else None)
        else:
            x, y = given
        if len(x) == 1 < len(read):  # which batch norm would not take
            x, y = x.repeat(2, 1, 1, 1), y.repeat(2)
        if len(x) < len(read):  # what can't be read is left out, of one process and one view
            rows, partners = rows[: len(x)], torch.arange(len(x), device=x.device).roll(-1)
        if self.augment.partners:
            if y.ndim == 1:
                y = (y[:, None] == torch.arange(len(self.data.classes), device=y.device)).float()
            x, y = (torch.cat([of[: len(rows)], of[partners]]) for of in (x, y))
        return self.augment(x, y, RowRng(key, rows).child("augment"))

    def _batches(self, read: Tensor, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the rows `read`, of which those of further views come after all of the first
        one's."""
        size, crops = self.batch_size, self.augment.crops
        for batch in epoch_batches(self.data.sizes, size, self.seed, start, stop, self.sampler):
            yield replace(batch, indices=batch.indices[read % size], own=read, crops=crops)

    def _next(self, rows: Tensor) -> Tensor:
        """The row after each, in the same view; after the last comes the first."""
        size = self.batch_size
        return rows - rows % size + (rows % size + 1) % size

    def _missing(self, rows: Tensor) -> Tensor:
        """Rows of partners that are no rows of this process."""
        if not self.augment.partners:
            return rows[:0]
        others = self._next(rows)
        return others[~torch.isin(others, rows)]
