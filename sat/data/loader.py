"""Batches for a training: which images a step takes, and what becomes of them on the way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import tee

import torch
import torch.nn.functional as F
from torch import Tensor

from sat.data.augment import Augment
from sat.data.batches import Batch, epoch_batches
from sat.data.samplers import Sampler
from sat.data.sets import Data
from sat.errors import Refused
from sat.rng import RowRng, seed_of


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

    def check(self, processes: int, skips: bool) -> None:
        """Raises Refused for what this set's images can't be had for; `skips`: whether those that
        can't be read are left out."""
        if self.views > 1 and skips:
            raise Refused(
                "dataset.skip_unreadable=true: would part the views that the objective compares;"
                " repair the images, or remove them"
            )
        if self.data.train.in_order and (self.views > 1 or self.augment.partners and processes > 1):
            raise Refused(
                f"dataset.name={self.data.name}: is read in its order alone, each image once, and"
                " objective or augment ask for more; take another reader"
            )

    def stream(self, rows: Tensor, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """x [V, C, S, S] and y [V], or soft [V, K], of the steps start <= step < stop: the rows (on
        the CPU) of each batch, in each view."""
        size = self.batch_size
        rows = torch.cat([rows + view * size for view in range(self.views)])
        read = torch.cat([rows, self._missing(rows)])
        partners = (read[:, None] == self._next(rows)).long().argmax(0)
        batches, same = tee(self._batches(read, start, stop))
        for batch, (x, y) in zip(same, self.data.train.stream(batches), strict=True):
            if rows.device != x.device:
                rows, partners = rows.to(x.device), partners.to(x.device)
            if len(x) == 1 < len(read):  # which batch norm would not take
                x, y = x.repeat(2, 1, 1, 1), y.repeat(2)
            if len(x) < len(read):  # what can't be read is left out, of one process and one view
                own = rows[: len(x)]
                yield self._augmented(batch, x, y, own, torch.arange(len(x)).roll(-1))
            else:
                yield self._augmented(batch, x, y, rows, partners)

    def _augmented(
        self, batch: Batch, x: Tensor, y: Tensor, rows: Tensor, partners: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images as the augmentation makes them, of these rows, with partners at these places."""
        assert batch.key is not None
        if self.augment.partners:
            if y.ndim == 1:
                y = F.one_hot(y, len(self.data.classes)).float()
            x, y = (torch.cat([of[: len(rows)], of[partners]]) for of in (x, y))
        return self.augment(x, y, RowRng(seed_of(batch.key, "augment"), rows))

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
