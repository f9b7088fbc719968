"""Sets of image files in a folder for each class."""

import logging
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sat.arguments import check_range
from sat.data.choice import split_training
from sat.data.fingerprint import of, of_files
from sat.data.images import PaddedCrop, opened
from sat.data.sets import Data
from sat.data.stream import StreamedSet, StreamSplit, Transform

log = logging.getLogger("sat")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif",
           ".tiff", ".gif")  # fmt: skip
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of RGB
PLUS_MINUS_ONE = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Files:
    """Image files below one folder, with their labels."""

    sequential = False

    def __init__(self, folder: Path, paths: list[str], labels: list[int]):
        self.folder, self.labels = folder, torch.tensor(labels)
        # one array of bytes: a list of a million strings would be copied by every worker
        self._paths = np.array([os.fsencode(path) for path in paths])

    def open(self, number: int) -> tuple[Image.Image, int]:
        path = self.describe(number)
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise OSError("is no file but a pipe or a device")
        return opened(path), int(self.labels[number])

    def digest(self) -> str:
        return of(of_files(self.folder, self._paths.tolist()), self.labels)

    def describe(self, number: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self._paths[number]))


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the sub-folders; ValueError if there are fewer than two."""
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder}; images belong in train/<class>/ and val/<class>/ of"
            " dataset.root=FOLDER"
        )
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        _refuse(error)
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise ValueError(f"{folder} holds no class folders")
    if len(names) == 1:
        raise ValueError(f"{folder} holds one class only ({names[0]}); two are needed")
    return names


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below one, and its files; links are followed, and no folder is entered twice.

    What is hidden is left out: systems and programs keep copies, thumbnails and forks there. Raises
    ValueError for a folder that can't be listed, which os.walk would take for an empty one.
    """
    entered = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        at = os.stat(place)
        if (at.st_dev, at.st_ino) in entered:
            folders.clear()
            continue
        entered.add((at.st_dev, at.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, [name for name in files if not name.startswith(".")]


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename} can't be listed ({error.strerror or error})")


def sorted_files(folder: Path, classes: list[str]) -> Files:
    """The images of `classes`, each in a folder of its name, at any depth; in sorted order."""
    paths, labels, others = [], [], Counter[str]()
    for label, name in enumerate(classes):
        found = []
        for place, files in walk(folder / name):
            below = os.path.relpath(place, folder)
            images = [file for file in files if file.lower().endswith(ENDINGS)]
            found += [os.path.join(below, file) for file in images]
            others.update(os.path.splitext(file)[1].lower() for file in {*files} - {*images})
        if not found:
            raise ValueError(f"no images in {folder / name}; endings read: {' '.join(ENDINGS)}")
        paths += sorted(found)
        labels += [label] * len(found)
    _tell_of_others(folder, others)
    return Files(folder, paths, labels)


@cache
def _said(folder: Path, told: str) -> None:
    log.warning("%s: %s are passed over; endings read: %s", folder, told, " ".join(ENDINGS))


def _tell_of_others(folder: Path, others: Counter[str]) -> None:
    """Once, of files that are not read, by their endings."""
    most = [f"{count:,} {ending or 'without one'}" for ending, count in others.most_common(5)]
    if most:
        _said(folder, f"{others.total():,} files of other endings ({', '.join(most)})")


@dataclass(frozen=True)
class FolderSet(StreamedSet, ABC):
    """`root/train/<class>/` and `root/val/<class>/` with the same classes in both."""

    root: str = field(default="data", metadata={"identity": False})

    mean, std = IMAGENET

    @abstractmethod
    def set_name(self) -> str: ...

    def check_classes(self, classes: list[str]) -> None:
        """Refuse class folders that cannot be this set's."""

    def validation_files(self, folder: Path, classes: list[str]) -> Files:
        """The test images, in class folders."""
        found = class_folders(folder)
        if different := sorted({*classes} ^ {*found}):
            has, lacks = ("train", "val") if different[0] in classes else ("val", "train")
            said = f"class {different[0]!r} is in {has} but not in {lacks}"
            if len({normalize("NFC", name) for name in different}) < len(different):
                said += (
                    ", where one is that looks alike, written with other signs (Unicode's NFC and"
                )
                said += " NFD); give both the same name"
            raise ValueError(said)
        return sorted_files(folder, classes)

    def files(self) -> tuple[list[str], Files, Files]:
        """The classes, and the images to train on and to test."""
        root, above = Path(self.root), Path(os.path.normpath(os.path.join(self.root, "..")))
        is_part = root.absolute().name in ("train", "val") and (above / "train").is_dir()
        if is_part and not (root / "train").is_dir():
            raise ValueError(f"root={root}: is the folder of one part; dataset.root={above}")
        try:
            classes = class_folders(root / "train")
            self.check_classes(classes)
            files = sorted_files(root / "train", classes)
            return classes, files, self.validation_files(root / "val", classes)
        except ValueError as fault:
            raise ValueError(f"root={self.root}: {fault}") from None

    def fingerprint(self) -> str:
        """A checksum of the names of all classes and images, and of what is read of these."""
        classes, train, test = self.files()
        digests = train.digest(), test.digest()
        if digests[0] == digests[1]:  # as who has images for an evaluation alone may link it
            log.warning("dataset.root=%s: val holds the images of train; no number tells of other"
                        " images", self.root)  # fmt: skip
        return of(*classes, *digests)

    def __call__(self, device: torch.device, seed: int) -> Data:
        classes, files, test = self.files()
        reading = self.reading(device)
        train, held_out = split_training(files.labels, self.limit, self.holdout, seed)

        def part(files: Files, chosen: Tensor) -> StreamSplit:
            return StreamSplit(files, chosen, files.labels[chosen], reading)

        data = Data(
            name=self.set_name(),
            classes=tuple(classes),
            channels=3,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            train=part(files, train),
            held_out=part(files, held_out),
            test=part(test, torch.arange(len(test.labels))),
            canonical=False,
        )
        return self.extended(data, reading)


@dataclass(frozen=True)
class ImageFolder(FolderSet):
    """Any classes. Training: random resized crop and mirror; test: `root/val`, see ResizedCrop."""

    # shown in the run's name; None: the last part of `root`
    name: str | None = field(default=None, metadata={"identity": False})

    def set_name(self) -> str:
        return self.name or Path(self.root).resolve().name


@dataclass(frozen=True)
class ImageNet(FolderSet):
    """ImageNet-1k with the paper's transforms: random resized crop (8 to 100 % of the area, ratio
    3/4 to 4/3) and mirror, no colour jitter; test: 256 pixels, centre 224; inputs in [-1, 1].
    """

    holdout: float = 0.01
    root: str = "data/imagenet"

    mean, std = PLUS_MINUS_ONE

    def set_name(self) -> str:
        return "imagenet"

    def check_classes(self, classes: list[str]) -> None:
        if len(classes) != 1000:
            raise ValueError(
                f"{len(classes)} class folders in train where ImageNet has 1000; for another set "
                "take dataset=imagefolder"
            )


@dataclass(frozen=True)
class TinyImageNet(FolderSet):
    """Tiny ImageNet: 200 classes, 64x64. Training: random crop with `crop` pixels of padding and
    mirror; test: `val` as published (`images/` and `val_annotations.txt`) or in class folders.
    """

    holdout: float = 0.01
    image_size: int = 64
    root: str = "data/tiny-imagenet-200"
    crop: int = 8

    def __post_init__(self):
        super().__post_init__()
        why = "is the padding in pixels, which leaves something of the image"
        check_range("crop", self.crop, 0, self.image_size - 1, why)

    def set_name(self) -> str:
        return "tiny_imagenet"

    def transform(self) -> Transform:
        return PaddedCrop(self.image_size, self.crop)

    def validation_files(self, folder: Path, classes: list[str]) -> Files:
        annotations = folder / "val_annotations.txt"
        if not any(folder.glob("images/*")):
            return super().validation_files(folder, classes)
        if not annotations.is_file():
            raise ValueError(f"{annotations} is missing")
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
        label_of = {name: label for label, name in enumerate(classes)}
        if not rows:
            raise ValueError(f"{annotations} is empty")
        if unknown := [row for row in rows if len(row) < 2 or row[1] not in label_of]:
            raise ValueError(f"{annotations}: {' '.join(unknown[0])!r} names no class of train")
        paths = [os.path.join("images", file) for file, _ in rows]
        return Files(folder, paths, [label_of[name] for _, name in rows])
