"""Batches as a run gets them: cut from a set in memory, or read by processes beside the step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sat.bench.case import Case
from sat.bench.costs import is_there
from sat.bench.stopwatch import Timed
from sat.data.batches import epoch_batches
from sat.data.folders import FolderSet
from sat.data.memory import MemorySet, MemorySplit
from sat.data.stream import StreamSplit

IMAGES = 2048  # of the set in memory that batches are cut from; their number moves no time
AHEAD = 3  # batches that may be ready before the clock starts: two, and the one in hand


def training_images(case: Case) -> MemorySplit | StreamSplit:
    """The files of a set that is read while it trains, where they are there; else random pixels in
    memory, cropped and mirrored as the data set says."""
    dataset: Any = case.spec.dataset
    if not isinstance(dataset, MemorySet) and (
        not isinstance(dataset, FolderSet) or is_there(dataset)
    ):
        return dataset(case.device, case.spec.seed).train
    count = max(IMAGES, case.batch)
    pixels = torch.randint(256, (count, *case.sizes.shape), dtype=torch.uint8)
    labels, crop = torch.arange(count) % case.sizes.classes, getattr(dataset, "crop", 0)
    crop = crop if isinstance(crop, int) else 0
    return MemorySplit(pixels.to(case.device), labels, crop, getattr(dataset, "flip", False))


def fed(
    case: Case, images: MemorySplit | StreamSplit,
    update: Callable[[Tensor, Tensor], object] = lambda x, y: None,
) -> Timed:  # fmt: skip
    """A step on the next batch, which is read meanwhile where processes read; timed when what was
    ready at first is used up, or the readers are ahead for good."""
    held: list[Any] = []  # iterators over batches

    def step() -> None:
        update(*next(held[-1]))

    @contextmanager
    def reader() -> Iterator[None]:
        stream: Any = images.stream(epoch_batches(len(images), case.batch, 0, 0, 2**40))
        held.append(stream)
        try:
            for _ in range(AHEAD):
                next(stream)
            for _ in range(2):
                step()
            yield
        finally:
            held.remove(stream)
            stream.close()  # its processes would be at work beside the next call

    return Timed(step, (reader,))
