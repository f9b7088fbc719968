"""The small published sets that torchvision reads and downloads."""

import os
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

import torch
from torch import Tensor

from sat.data.memory import Arrays, MemorySet

# What torchvision raises where files are missing or of another sum, and of a cut IDX file.
DAMAGED = (RuntimeError, AssertionError, ValueError, LookupError)
Part = tuple[Tensor, Tensor, tuple[str, ...]]  # images uint8 [N, C, S, S], labels, class names


@dataclass(frozen=True)
class PublishedSet(MemorySet):
    """A torchvision set; `root` is laid out as torchvision lays it out."""

    root: str = field(default="data", metadata={"identity": False})
    download: bool = field(default=True, metadata={"identity": False})  # when they are not there

    name = files = ""  # the set, and what belongs into `root`

    @abstractmethod
    def read(self, root: Path, train: bool, download: bool = False) -> Part:
        """One split; one of DAMAGED where the files are missing or damaged."""

    def load(self) -> Arrays:
        root = Path(self.root)
        try:
            parts = self.read(root, train=True), self.read(root, train=False)
        except DAMAGED:
            self._fetch(root)
            parts = self.read(root, train=True), self.read(root, train=False)
        (train, train_labels, classes), (test, test_labels, _) = parts
        return Arrays(train, train_labels, test, test_labels, classes, self.name)

    def _fetch(self, root: Path) -> None:
        """Download into a folder beside, then move: nothing half-written stays or is ever read."""
        own = Path(self.files).parts
        for depth in range(1, len(own) + 1):
            above = Path(os.path.normpath(root.joinpath(*[".."] * depth)))
            if root.absolute().parts[-depth:] == own[:depth] and (above / self.files).is_dir():
                raise ValueError(f"root={root}: is the folder itself; dataset.root={above}")
        if not self.download:
            raise ValueError(
                f"root={self.root}: {self.files} is missing there or damaged; put it there, set "
                "the folder that has it, or let dataset.download=true fetch it"
            )
        beside = next(folder for folder in [root, *root.absolute().parents] if folder.is_dir())
        try:
            with TemporaryDirectory(prefix=".download-", dir=beside) as temporary:
                fresh = Path(temporary)
                self.read(fresh, train=True, download=True)
                self.read(fresh, train=False, download=True)
                for file in [path for path in fresh.rglob("*") if path.is_file()]:
                    target = root / file.relative_to(fresh)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
        except (OSError, *DAMAGED) as fault:
            reason = shorten(str(fault), 200)
            raise ValueError(
                f"root={self.root}: {self.files} is not there and the download failed ({reason}); "
                "put it there by hand, or set the folder that has it"
            ) from None


@dataclass(frozen=True)
class Cifar10(PublishedSet):
    """CIFAR-10: 50,000 and 10,000 colour images of 32x32 (Krizhevsky, 2009)."""

    name, files = "cifar10", "cifar-10-batches-py/"
    fixed = True  # torchvision checks the published checksums each time

    def read(self, root: Path, train: bool, download: bool = False) -> Part:
        from torchvision.datasets import CIFAR10

        return _cifar(CIFAR10(root, train, download=download))


@dataclass(frozen=True)
class Cifar100(PublishedSet):
    """CIFAR-100: as CIFAR-10 with 100 classes (Krizhevsky, 2009)."""

    name, files = "cifar100", "cifar-100-python/"
    fixed = True

    def read(self, root: Path, train: bool, download: bool = False) -> Part:
        from torchvision.datasets import CIFAR100

        return _cifar(CIFAR100(root, train, download=download))


def _cifar(found) -> Part:
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(found.targets), tuple(found.classes)


@dataclass(frozen=True)
class SVHN(PublishedSet):
    """Street View House Numbers: 73,257 and 26,032 digits, 32x32 (Netzer et al., 2011)."""

    flip: bool = False

    name, files = "svhn", "train_32x32.mat or test_32x32.mat"
    fixed = True

    def read(self, root: Path, train: bool, download: bool = False) -> Part:
        from torchvision.datasets import SVHN

        found = SVHN(root, "train" if train else "test", download=download)
        images = torch.from_numpy(found.data).contiguous()
        return images, torch.from_numpy(found.labels).long(), tuple(map(str, range(10)))


@dataclass(frozen=True)
class FashionMNIST(PublishedSet):
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 (Xiao et al., 2017).

    No checksum of its files is published, so it is told by its content, as a user's own set is.
    """

    crop: int = 2

    name, files = "fashion_mnist", "FashionMNIST/raw/"

    def read(self, root: Path, train: bool, download: bool = False) -> Part:
        from torchvision.datasets import FashionMNIST

        found = FashionMNIST(root, train, download=download)
        return found.data.unsqueeze(1), found.targets, tuple(found.classes)
