"""Whatever `timm.data.create_dataset` reads."""

import logging
import os
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from sat.data.choice import held_out_count, split_training, stratified, take_limit
from sat.data.fingerprint import of, of_files
from sat.data.folders import ENDINGS, IMAGENET, walk
from sat.data.records import Passes, Records, class_names
from sat.data.sets import Data
from sat.data.stream import StreamedSet, StreamSplit
from sat.launch import processes
from sat.rng import seed_of

log = logging.getLogger("sat")
PACKAGES = {  # what a reader imports, and what pip calls it
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}
FOLDERS = ("torch/folder", "torch/image_folder")  # besides every name without a prefix
DOWNLOADERS = ("torch", "tfds", "hfids")  # hfds/ always downloads, the others never


@dataclass(frozen=True)
class Timm(StreamedSet):
    """`name` is what `timm.data.create_dataset` takes: hfds/user/set, torch/qmnist, folder, ...

    Images are RGB, cropped as those of an image folder. With a `holdout_split` the held-out images
    come from there: as many as `holdout` says, stratified.

    wds/, tfds/ and hfids/ are read in sequence by one process, in the order into which the reader
    shuffles them, seeded by run and pass (tfds/ may give an image twice and another not); a resumed
    run reads up to its place again. For them `holdout_split` is required and its first images are
    used, `limit` and `skip_unreadable` are refused, the splits' `labels` are all -1 (unknown before
    an image is read), and the first n test images stand for n of them. An image that wds/ cannot
    decode is left out by timm itself.
    """

    name: str | None = None
    # the folder, or where the reader keeps its files; None: as it likes
    root: str | None = field(default="data", metadata={"identity": False})
    train_split: str = "train"
    test_split: str = "validation"
    holdout_split: str | None = None  # None: taken out of the training images
    input_key: str | None = None  # the fields of image and label; None: as the reader has it
    target_key: str | None = None
    classes: int | None = None  # how many, where the reader does not know it (wds/)
    download: bool = field(default=False, metadata={"identity": False})

    def fingerprint(self) -> str | None:
        """A checksum of the labels, and of the content of 1,000 images of each split; of what is
        read in sequence that of its tar files, and None where it comes from elsewhere."""
        self._check_name()
        if isinstance(self._open(self.train_split, training=True), IterableDataset):
            if self._prefix() != "wds":
                log.info("%s: recognised by its name; a change of images goes unnoticed", self.name)
                return None
            names = sorted(path.relative_to(self.root) for path in Path(self.root).rglob("*.tar"))
            return of_files(self.root, [os.fsencode(name) for name in names])
        digests: list[str] = []
        for key, split in self._splits().items():
            digest = self._records(self._open(split), split).digest()
            if digest in digests:  # two names of one split, or a part that timm takes whole
                raise ValueError(f"{key}={split}: holds the images of another split")
            digests.append(digest)
        return of(*digests)

    def _splits(self) -> dict[str, str]:
        names = ("train_split", "test_split", "holdout_split")
        return {name: split for name in names if (split := getattr(self, name)) is not None}

    def _check_name(self) -> None:
        if self.name is None:
            raise ValueError("name=null: write a set that timm reads, say hfds/user/set or folder")
        if self.test_split in (self.train_split, self.holdout_split):
            raise ValueError(f"test_split={self.test_split}: already used before the test")
        if self.holdout_split == self.train_split:
            raise ValueError(f"holdout_split={self.holdout_split}: is trained on; null draws some")

    def __call__(self, device: torch.device, seed: int) -> Data:
        self._check_name()
        train = self._open(self.train_split, training=True)
        if isinstance(train, IterableDataset):
            return self._in_sequence(train, device, seed)
        return self._by_index(train, device, seed)

    def _by_index(self, dataset: Dataset, device: torch.device, seed: int) -> Data:
        train = held = self._records(dataset, self.train_split)
        test = self._records(self._open(self.test_split), self.test_split)
        self._check_apart("test_split", dataset, test.dataset)
        if self.holdout_split is None:
            chosen, held_chosen = split_training(train.labels, self.limit, self.holdout, seed)
        else:
            held = self._records(self._open(self.holdout_split), self.holdout_split)
            self._check_apart("holdout_split", dataset, held.dataset)
            chosen = take_limit(train.labels, self.limit)
            count = min(held_out_count(self.holdout, len(chosen)), len(held.labels))
            generator = torch.Generator().manual_seed(seed_of(seed, "held-out"))
            held_chosen = stratified(held.labels, count, generator)
        used = 1 + max(int(records.labels.max()) for records in (train, held, test))
        classes = self._classes(dataset, used)
        reading = self.reading(device)
        every = torch.arange(len(test.labels))
        parts = (train, chosen), (held, held_chosen), (test, every)
        splits = [StreamSplit(part, own, part.labels[own], reading) for part, own in parts]
        return self.extended(self._data(classes, splits, canonical=False), reading)

    def _in_sequence(self, dataset: IterableDataset, device: torch.device, seed: int) -> Data:
        self._check_sequence()
        count = held_out_count(self.holdout, len(dataset))
        lengths = (
            len(dataset),
            min(count, len(self._open(self.holdout_split))),
            len(self._open(self.test_split)),
        )
        if not all(lengths):
            raise ValueError(f"name={self.name}: a split of unknown length; write shards.tar|1000")
        classes = self._classes(dataset, 0)
        reading = replace(self.reading(device), workers=1)
        names = self.train_split, self.holdout_split, self.test_split
        splits = []
        for split, order, length in zip(names, (seed, None, None), lengths, strict=True):
            begin = partial(self._begin, split, order)
            source = Passes(begin, length, len(classes), f"{self.name} {split}")
            unknown = torch.full((length,), -1)
            splits.append(StreamSplit(source, torch.arange(length), unknown, reading))
        return self._data(classes, splits, canonical=True)

    def _data(self, classes: tuple[str, ...], splits: list[StreamSplit], canonical: bool) -> Data:
        train, held_out, test = splits
        return Data(
            name=self.name,
            classes=classes,
            channels=3,
            image_size=self.image_size,
            mean=IMAGENET[0],
            std=IMAGENET[1],
            train=train,
            held_out=held_out,
            test=test,
            canonical=canonical,
        )

    def _begin(self, split: str, seed: int | None, turn: int) -> IterableDataset:
        """The reader of pass `turn`: shuffled by `seed`, or in the order of the files."""
        if seed is None:
            return self._open(split)
        order = seed_of(seed, "order", turn)
        if worker := get_worker_info():
            # wds/ and tfds/ shuffle by this seed too, and the pass alone must decide the order
            object.__setattr__(worker, "seed", order)
        return self._open(split, training=True, seed=order)

    def _records(self, dataset: Dataset, split: str) -> Records:
        return Records(dataset, f"{self.name} {split}")

    def _prefix(self) -> str:
        return self.name.partition("/")[0].lower() if "/" in self.name else ""

    def _open(self, split: str, training: bool = False, seed: int = 0) -> Dataset:
        self._check_reader()
        from timm.data import create_dataset

        options = dict(input_key=self.input_key, target_key=self.target_key, seed=seed)
        options |= dict(is_training=training, download=self.download)
        try:
            found = create_dataset(self.name, self.root, split, **options)
        except Exception as fault:  # each reader raises its own, assertions among them
            reason = shorten(str(fault), 200) or type(fault).__name__
            raise ValueError(
                f"name={self.name}: timm cannot open split {split!r} in root={self.root}: {reason}"
            ) from None
        if self.name.lower() in FOLDERS or not self._prefix():
            if Path(getattr(found, "reader", found).root) == Path(self.root):
                raise ValueError(f"root={self.root}: no folder {split!r} in it")  # timm takes all
            self._check_folder(Path(getattr(found, "reader", found).root))
        return found

    def _check_folder(self, folder: Path) -> None:
        """timm takes hidden files for images, and passes over what it can't list."""
        for place, _ in walk(folder):
            names = [e.name for e in os.scandir(place) if e.name.startswith(".")]
            if hidden := [name for name in names if name.lower().endswith(ENDINGS)
                          or os.path.isdir(os.path.join(place, name))]:  # fmt: skip
                raise ValueError(
                    f"name={self.name}: timm would read {os.path.join(place, hidden[0])} as"
                    " images; remove what is hidden, or take dataset=imagefolder"
                )

    def _check_reader(self) -> None:
        prefix = self._prefix()
        if prefix not in ("", "torch", *PACKAGES):  # timm would read all of the root for each split
            known = ", ".join(f"{each}/" for each in ("torch", *PACKAGES))
            raise ValueError(f"name={self.name}: timm has no reader {prefix}/; choose from {known}")
        module, package = PACKAGES.get(prefix, ("timm", "timm"))
        if find_spec(module) is None:
            raise ValueError(f"name={self.name}: {prefix}/ needs a package: pip install {package}")
        if self.root is None and prefix in ("", "wds", "torch"):
            raise ValueError(f"root=null: {self.name} is read from a folder; name it")
        if self.download and prefix not in DOWNLOADERS:
            can = ", ".join(f"{prefix}/" for prefix in DOWNLOADERS)
            raise ValueError(f"download=true: {self.name} has no such choice; only {can} have")

    def _check_apart(self, key: str, train: Dataset, other: Dataset) -> None:
        """The split that `key` names is neither another one nor of other classes: torchvision's
        sets take any name but `train` for the test images."""
        told = f"{key}={getattr(self, key)}"
        if getattr(train, "train", True) is False:
            raise ValueError(f"train_split={self.train_split}: timm reads test images for it")
        if getattr(other, "train", False):
            raise ValueError(f"{told}: timm reads training images for it")
        if key == "holdout_split" and getattr(other, "train", True) is False:
            raise ValueError(f"{told}: timm reads test images for it")
        if class_names(train) != class_names(other):
            raise ValueError(f"{told}: its classes are not those of training")

    def _check_sequence(self) -> None:
        told = f"{self.name} is read in sequence"
        if processes()[1] > 1:  # timm would give each a part of its own
            raise ValueError(f"name={self.name}: is read in sequence, by one process; no torchrun")
        if self.holdout_split is None:
            raise ValueError(f"holdout_split=null: {told}: name a split for the held-out images")
        if self.limit is not None:
            raise ValueError(f"limit={self.limit}: {told}: name less in train_split instead")
        if self.workers not in (None, 1):
            raise ValueError(f"workers={self.workers}: {told} by one process; write null")
        if self.extra is not None:
            raise ValueError(f"extra={self.extra}: {told}, and nothing is mixed into it")
        if self.skip_unreadable:
            raise ValueError(f"skip_unreadable=true: {told} by timm, which knows no skipping")

    def _classes(self, dataset: Dataset, used: int) -> tuple[str, ...]:
        """Names where the reader knows them, else numbers; `used` of them occur."""
        known = class_names(dataset)
        if known and self.classes not in (None, len(known)):
            raise ValueError(f"classes={self.classes}: {self.name} has {len(known)}; write null")
        count = len(known) or self.classes or used
        if count < max(used, 2):
            told = f"{self.name} has {used}" if used else f"{self.name} does not say how many"
            raise ValueError(f"classes={self.classes or 'null'}: {told}; write 2 or more")
        return known or tuple(map(str, range(count)))
