"""Batches as a run gets them: cut from a set in memory, or read by processes beside the step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sat.bench.case import Case
from sat.bench.costs import is_there
from sat.bench.stopwatch import Timed
from sat.data.batches import epoch_batches
from sat.data.folders import FolderSet, sorted_files
from sat.data.images import PaddedCrop
from sat.data.memory import MemorySet, MemorySplit
from sat.data.stream import StreamSplit

IMAGES = 2048  # of the set in memory that batches are cut from; their number moves no time
FILES, IMAGENET = 64, (500, 375)  # of the photographs that stand in; width and height in pixels
AHEAD = 3  # batches that may be ready before the clock starts: two, and the one in hand


def training_images(case: Case, folder: Path) -> MemorySplit | StreamSplit:
    """The files of a folder where they are there, else photographs made in `folder`; of a set in
    memory random pixels, cropped and mirrored as the data set says."""
    dataset: Any = case.spec.dataset
    count = max(IMAGES, case.batch)
    if isinstance(dataset, MemorySet):
        pixels = torch.randint(256, (count, *case.sizes.shape), dtype=torch.uint8)
        labels, crop = torch.arange(count) % case.sizes.classes, getattr(dataset, "crop", 0)
        crop = crop if isinstance(crop, int) else 0
        return MemorySplit(pixels.to(case.device), labels, crop, getattr(dataset, "flip", False))
    if not isinstance(dataset, FolderSet) or is_there(dataset):
        return dataset(case.device, case.spec.seed).train
    files = sorted_files(folder, make_photographs(folder, *stored(dataset)))
    chosen = torch.arange(count) % FILES
    return StreamSplit(files, chosen, files.labels[chosen], dataset.reading(case.device))


def stored(dataset: FolderSet) -> tuple[int, int]:
    """Width and height of its files: crops are padded where they have the network's size."""
    cropped = isinstance(dataset.transform(), PaddedCrop)
    return (dataset.image_size, dataset.image_size) if cropped else IMAGENET


def make_photographs(folder: Path, width: int, height: int) -> list[str]:
    """JPEG files of two classes, which are named; smooth shapes under noise, so that they have
    ImageNet's usual size where they have its pixels: about 98 kB."""
    generator, names = np.random.default_rng(0), ["a", "b"]
    for number in range(FILES):
        coarse = Image.fromarray(generator.integers(256, size=(12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
        grain = generator.normal(0, 17, (height, width, 1))
        place = folder / names[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(place, quality=90)
    return names


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

    return Timed(step, reader)
