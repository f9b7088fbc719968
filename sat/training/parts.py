"""The accumulation parts of a batch, and this process's share of each."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sat.distributed import World
from sat.rng import RowRng, StepKey
from sat.training.schedule import Schedule


class Parts:
    """How the images of an update, with `views` of each, are split: into `count` parts, each of
    which all processes share."""

    def __init__(
        self, schedule: Schedule, choices: dict[str, Any], views: int, world: World,
        device: torch.device,
    ):  # fmt: skip
        self._batch, self._views, self._world = schedule.batch_size, views, world
        self._device, self._choices, self._asked = device, choices, schedule.parts
        self.rows = self._shares()

    @property
    def count(self) -> int:
        """What is chosen, as a checkpoint keeps it."""
        return int(self._choices.get("accumulate", self._asked))

    def split(self, count: int) -> None:
        """Splits into so many from here on."""
        self._choices["accumulate"] = count
        self.rows = self._shares()

    def _shares(self) -> list[Tensor]:
        return [rows.to(self._device) for rows in self._world.rows(self._batch, self.count)]

    @property
    def images(self) -> int:
        """How many an update of all processes takes, in all views."""
        return self._views * self._batch

    def of(self, x: Tensor, y: Tensor, key: StepKey) -> Iterator[tuple[Tensor, Tensor, RowRng]]:
        """Images, labels and random numbers of each part of this process's share of a batch; of
        several views each part has all of its images, first views first."""
        rows, done = self.rows, 0
        x, y = (t.unflatten(0, (self._views, len(t) // self._views)) for t in (x, y))
        if x.shape[1] != sum(map(len, rows)):  # some could not be read
            count = max(1, min(len(rows), x.shape[1] // 2))  # batch norm takes no part of one image
            rows = torch.cat(rows)[: x.shape[1]].tensor_split(count)
        for part in rows:
            if len(part):
                own = slice(done, done := done + len(part))
                of_views = torch.cat([part + view * self._batch for view in range(self._views)])
                yield x[:, own].flatten(0, 1), y[:, own].flatten(0, 1), RowRng(key, of_views)
