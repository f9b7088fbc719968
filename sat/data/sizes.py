"""How large a set is, without its images."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sat.data.choice import split_training
from sat.data.folders import FolderSet, ImageNet, TinyImageNet
from sat.data.memory import Digits
from sat.data.published import SVHN, Cifar10, Cifar100, FashionMNIST
from sat.errors import refusing

# Training and test images, classes, channels, pixels as stored (of folders: as they are cropped).
PUBLISHED: dict[type, tuple[int, int, int, int, int]] = {
    Digits: (1_438, 359, 10, 1, 8),
    Cifar10: (50_000, 10_000, 10, 3, 32),
    Cifar100: (50_000, 10_000, 100, 3, 32),
    SVHN: (73_257, 26_032, 10, 3, 32),
    FashionMNIST: (60_000, 10_000, 10, 1, 28),
    TinyImageNet: (100_000, 10_000, 200, 3, 64),
    ImageNet: (1_281_167, 50_000, 1_000, 3, 224),
}


@dataclass(frozen=True)
class Sizes:
    """How many images a set has in each part, and what they are to a network."""

    train: int
    held_out: int
    test: int
    classes: int
    channels: int
    pixels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.pixels, self.pixels


@cache
def sizes_of(dataset: Any) -> Sizes:
    """Published sets are known by heart, unless their folder is there; others are looked at, and no
    image of a folder is decoded.

    Raises Refused for a `limit` or `holdout` that the set can't give, and where a set of the user's
    own is not there; nothing is downloaded.
    """
    known = PUBLISHED.get(type(dataset))
    with refusing("dataset."):
        if known and not is_there(dataset):
            train, test, classes, channels, stored = known
            labels = torch.arange(train) % classes  # of no account but to the stratified choice
            mine, held_out = split_training(labels, dataset.limit, dataset.holdout, seed=0)
            pixels = dataset.image_size or stored
            return Sizes(len(mine), len(held_out), test, classes, channels, pixels)
        if hasattr(dataset, "download"):
            dataset = replace(dataset, download=False)
        data = dataset(torch.device("cpu"), 0)
        train, held_out, test = len(data.train), len(data.held_out), len(data.test)
        return Sizes(train, held_out, test, len(data.classes), data.channels, data.image_size)


def is_there(dataset: Any) -> bool:
    """Whether it is a set in folders, and they are here."""
    return isinstance(dataset, FolderSet) and (Path(dataset.root) / "train").is_dir()


def is_known(dataset: Any) -> bool:
    """Whether it is a published set in folders that are not here."""
    return type(dataset) in PUBLISHED and isinstance(dataset, FolderSet) and not is_there(dataset)
