"""Small sets live whole on the device, as uint8; each batch is cut out and augmented there."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sat.arguments import check_choices
from sat.data.batches import Batch
from sat.data.choice import Place, check_choice, split_training
from sat.data.cutter import Cutter
from sat.data.extra import Cut, Extended, mixed, read
from sat.data.fingerprint import of
from sat.data.sets import Data
from sat.rng import RowRng, sent


class MemorySplit:
    """Images on the device; a batch costs a gather and no synchronisation with the host."""

    in_order = skips = False

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        crop: int = 0,
        flip: bool = False,
        reflect: bool = False,
    ):
        """`images` uint8 [N, C, S, S] on the device that batches are made on, `labels` anywhere.

        With a batch's key each image is padded with `crop` pixels (see `Cutter`) and cut to its
        size again at random, and mirrored with probability 1/2 if `flip`.
        """
        self.labels = labels.cpu()
        self._labels = labels.to(images.device)
        self._cut = Cutter(images, crop, flip, reflect)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Checks all pixels and labels."""
        return of(self._cut.images, self.labels)

    def readable(self, indices: Tensor) -> Tensor:
        return indices

    @property
    def device(self) -> torch.device:
        return self._labels.device

    def cut(self, chosen: Tensor, rng: RowRng | None) -> tuple[Tensor, Tensor]:
        """x and y of the images `chosen` [B], on the device; cut and mirrored by these draws. The
        host is asked nothing."""
        return self._cut(chosen, rng).float().div_(255), self._labels[chosen]

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            yield self.cut(sent(batch.indices, self.device), batch.draws(self.device))


class Arrays(NamedTuple):
    """A whole set: images uint8 [N, C, S, S] and labels int64 [N], on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class MemorySet(Extended, ABC):
    """What all small sets share; a subclass says in `load` where the arrays come from."""

    limit: int | None = None  # training images in use, the held-out ones among them
    holdout: float = 0.01  # fraction of them, or how many; 0: none, and no `best`
    holdout_from: Place = "drawn"  # or the first, or the last of them
    image_size: int | None = None  # None: as stored; else resized once (bilinear, antialiased)
    crop: int = 4  # pixels of padding for the random crop
    pad: Literal["black", "reflect"] = "black"
    flip: bool = True  # random mirror images

    canonical = True  # the order of the test images is everybody's
    fixed = False  # whether the images are always the same, so that a name is enough

    def __post_init__(self):
        check_choices(self)
        check_choice(self.limit, self.holdout)
        if self.image_size is not None and not 1 <= self.image_size <= 1024:
            raise ValueError(
                f"image_size={self.image_size}: write 1 to 1024 pixels, or null for as stored"
            )
        if self.crop < 0:
            raise ValueError(f"crop={self.crop}: write the pixels of padding; 0 for no crop")
        self.check_extra()

    @abstractmethod
    def load(self) -> Arrays: ...

    def fingerprint(self) -> str | None:
        """A checksum of all pixels and labels; None of a set that is always the same."""
        return None if self.fixed else of(*self.load()[:4])

    def __call__(self, device: torch.device, seed: int) -> Data:
        arrays = self.load()
        given = self.limit, self.holdout, seed, self.holdout_from
        train, held_out = split_training(arrays.train_labels, *given)
        mean, std = _moments(arrays.train)

        def part(images: Tensor, labels: Tensor, *augmentation) -> MemorySplit:
            return MemorySplit(resized(images, self.image_size).to(device), labels, *augmentation)

        chosen = arrays.train[train], arrays.train_labels[train]
        held = arrays.train[held_out], arrays.train_labels[held_out]
        data = Data(
            name=arrays.name,
            classes=arrays.classes,
            channels=arrays.train.shape[1],
            image_size=self.image_size or arrays.train.shape[-1],
            mean=mean,
            std=std,
            train=part(*chosen, self.crop, self.flip, self.pad == "reflect"),
            held_out=part(*held),
            test=part(arrays.test, arrays.test_labels),
            canonical=self.canonical,
        )
        if self.extra is None:
            return data
        extra, edge = read(self.extra), self.pad == "reflect"
        extra.check_shape(data.channels, data.image_size)
        cut = lambda pixels: Cutter(pixels, self.crop, self.flip, edge)  # noqa: E731
        return mixed(data, extra, Cut(extra, device, cut), self.extra_fraction, device)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], to four places.

    Of all training images, so that neither `limit` nor the held-out part moves them. A constant
    channel gets the deviation 1/255, the unit of its pixels.
    """
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()  # a tenth of the time that sums over all pixels take
    pixels = counts.sum(1)
    mean = counts @ values / pixels
    squares = (counts * (values - mean[:, None]) ** 2).sum(1)
    std = (squares / (pixels - 1)).sqrt().clamp(min=1)
    mean, std = ((numbers / 255).round(decimals=4) for numbers in (mean, std))
    return tuple(mean.tolist()), tuple(std.tolist())


def resized(images: Tensor, size: int | None) -> Tensor:
    """Images uint8 [N, C, S, S] of that many pixels, None: as they are; bilinear, antialiased."""
    if size in (None, images.shape[-1]):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Digits(MemorySet):
    """scikit-learn's 1,797 handwritten digits, 8x8 and grey; they come with the package."""

    holdout: float = 0.1
    crop: int = 1
    flip: bool = False

    canonical = False
    fixed = True

    def load(self) -> Arrays:
        from sat.data.choice import stratified

        images, labels = map(torch.from_numpy, digits())
        images = images.mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        labels = labels.long()
        fixed = torch.Generator().manual_seed(0)
        test = torch.zeros(len(labels), dtype=torch.bool)
        test[stratified(labels, round(0.2 * len(labels)), fixed)] = True
        names = tuple(map(str, range(10)))
        return Arrays(images[~test], labels[~test], images[test], labels[test], names, "digits")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 64], 0 to 16, and labels, from scikit-learn's file: to import the package, and
    SciPy with it, takes a fifth of the time to a run's first step."""
    found = find_spec("sklearn")
    assert found and found.origin
    folder = Path(found.origin).parent / "datasets" / "data"
    try:
        table = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
    except OSError:  # a version that keeps it elsewhere
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    return table[:, :-1], table[:, -1]
