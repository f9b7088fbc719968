"""Sets that timm has opened, as sources of images for a stream."""

import hashlib
import io
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from sat.data.fingerprint import READ, of
from sat.data.images import opened


class Records:
    """A set that is read by index."""

    sequential = False

    def __init__(self, dataset: Dataset, name: str):
        """`ValueError` where the labels are not known without decoding every image."""
        self.dataset, self._name = dataset, name
        self.labels = _labels(dataset, name)

    def open(self, number: int) -> tuple[Image.Image, int]:
        label = int(self.labels[number])
        reader = getattr(self.dataset, "reader", None)
        if reader is None:  # torchvision's own decode by themselves
            return self.dataset[number][0], label
        # timm's dataset would put the next image in the place of one that it cannot decode
        with reader[number][0] as file:
            return opened(io.BytesIO(file.read())), label

    def digest(self) -> str:
        """A checksum of all labels, and of the content of 1,000 images at most."""
        step = max(1, -(-len(self.labels) // READ))
        return of(self.labels, *(self._content(k) for k in range(0, len(self.labels), step)))

    def _content(self, number: int) -> str:
        """A checksum of the file where there is one, else of the pixels; of a fault its kind."""
        try:
            reader = getattr(self.dataset, "reader", None)
            if reader is not None:
                with reader[number][0] as file:
                    return hashlib.sha256(file.read()).hexdigest()
            return hashlib.sha256(self.dataset[number][0].tobytes()).hexdigest()
        except Exception as fault:  # who reads it for a batch will tell
            return type(fault).__name__

    def describe(self, number: int) -> str:
        return f"{self._name}, image {number}"


class Passes:
    """A set that is read from its beginning, pass after pass.

    Number n is the image at place n % length of pass n // length. Reading on is cheap; any other
    place costs a pass up to it, as when a run resumes.
    """

    sequential = True

    def __init__(
        self, begin: Callable[[int], IterableDataset], length: int, classes: int, name: str
    ):
        """`begin(n)` makes the reader of pass n, in an order that n alone decides."""
        self._begin, self._length, self._classes, self._name = begin, length, classes, name
        self._pass, self._at = -1, 0
        self._images: Iterator = iter(())

    def open(self, number: int) -> tuple[Image.Image, int]:
        turn, place = divmod(number, self._length)
        if turn != self._pass or place < self._at:
            self._pass, self._at = turn, 0
            self._images = iter(self._begin(turn))
        for image, label in self._images:
            self._at += 1
            if self._at > place:
                if not 0 <= label < self._classes:
                    raise ValueError(f"its label is {label}, with {self._classes} classes")
                return image, int(label)
        self._pass = -1
        raise ValueError(f"the reader ended after {self._at} of {self._length} images")

    def digest(self) -> str:
        """A checksum of name and length: the images can't be read but in order."""
        return of(self._name, self._length)

    def describe(self, number: int) -> str:
        return f"{self._name}, image {number % self._length}"


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Names in label order; empty where the reader knows none."""
    reader = getattr(dataset, "reader", dataset)
    for attribute in ("class_to_idx", "class_name_to_idx"):  # folders and tables; tar files
        if indices := getattr(reader, attribute, None):
            return tuple(map(str, sorted(indices, key=indices.get)))
    return tuple(map(str, getattr(dataset, "classes", ())))


def _table_labels(reader) -> list:
    columns = reader.dataset.column_names
    # timm makes a column of the image's name where there is none, and leaves it empty
    if reader.dataset[0][reader.image_key] is None:
        raise ValueError(f"input_key={reader.image_key}: no images there; of {', '.join(columns)}")
    if reader.label_key not in columns:
        raise ValueError(f"target_key={reader.label_key}: no such field; of {', '.join(columns)}")
    return list(reader.dataset[reader.label_key])


def _labels(dataset: Dataset, name: str) -> Tensor:
    reader = getattr(dataset, "reader", dataset)
    if hasattr(reader, "targets"):  # torchvision, tar files
        found = reader.targets
    elif hasattr(reader, "samples"):  # folders
        found = [label for _, label in reader.samples]
    elif hasattr(reader, "label_key"):  # hfds/
        found = _table_labels(reader)
    else:
        raise ValueError(f"name={name}: its labels are not known before every image is read")
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"name={name}: its labels are not numbers") from None
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels) or labels.min() < 0:
        raise ValueError(f"name={name}: its labels are not one class, 0 or more, for each image")
    return labels.long()
