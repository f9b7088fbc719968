"""A user's own arrays: an .npz file, or what is handed over in Python, `sat.train(data=...)`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sat.data.fingerprint import of, remembered
from sat.data.images import to_rgb
from sat.data.memory import Arrays, MemorySet
from sat.data.npz_file import check_images, opened, read_array
from sat.errors import first_line

KEYS = ("x_train", "y_train", "x_test", "y_test")
WHOLE = 1e-3  # how near a float comes to a whole number of 1/255


@dataclass(frozen=True)
class Npz(MemorySet):
    """x_train, y_train, x_test and y_test of the file `path`.

    Images are uint8 [N, S, S] (grey) or [N, S, S, 3] (RGB), labels integers 0 to K - 1. Anything
    else is a `ValueError` that says what to save instead. Pickled objects are never loaded.
    """

    path: str | None = field(default=None, metadata={"identity": False})
    # shown in the run's name; None: the file's without its ending
    name: str | None = field(default=None, metadata={"identity": False})
    holdout: float = 0.1
    flip: bool = False

    canonical = False  # arrays are often saved sorted by class
    held: ClassVar[Mapping[str, NDArray] | None] = None

    def holding(self, data: Any) -> "Npz":
        """This set with images that lie in no file: see `arrays_of`."""
        own = replace(self)
        vars(own)["held"] = arrays_of(data)
        return own

    def fingerprint(self) -> str:
        """A checksum of the arrays, however they are packed."""
        if self.held is not None:
            return of(*self.load()[:4])
        return remembered(self.path or "", lambda: of(*self.load()[:4]))

    def load(self) -> Arrays:
        if self.path is None and self.held is None:
            raise ValueError("path=null: name the file with " + ", ".join(KEYS))
        place = "data" if self.held is not None else f"path={self.path}"
        try:
            arrays = self.held or _read(Path(str(self.path)))
            _check(arrays)
        except ValueError as fault:
            raise ValueError(f"{place}: {fault}") from None
        x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
        classes = tuple(str(label) for label in range(int(y_train.max()) + 1))
        labels = [torch.from_numpy(y.astype(np.int64)) for y in (y_train, y_test)]
        name = self.name or Path(self.path or "data").stem
        return Arrays(_images(x_train), labels[0], _images(x_test), labels[1], classes, name)


def _images(x: NDArray) -> Tensor:
    pixels = torch.from_numpy(x if x.ndim == 4 else x[..., None])
    return pixels.permute(0, 3, 1, 2).contiguous()


def _read(path: Path) -> Mapping[str, NDArray]:
    with opened(path, KEYS) as file:
        return {key: read_array(file, key) for key in KEYS}


def _check(arrays: Mapping[str, NDArray]) -> None:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        check_images(f"x_{part}", x)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError(f"y_{part} is {y.dtype} {list(y.shape)}; save integers, one an image")
        if len(x) != len(y):
            raise ValueError(f"{len(x)} images in x_{part} but {len(y)} labels in y_{part}")
    trained, tested = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if trained != tested:
        raise ValueError(f"images of {list(trained)} in x_train but of {list(tested)} in x_test")
    labels, classes = arrays["y_train"], np.unique(arrays["y_train"])
    if len(classes) == 1:
        raise ValueError(f"y_train holds one class only ({classes[0]}); two are needed")
    if classes[0] != 0 or classes[-1] != len(classes) - 1:
        shown = f"{len(classes)} different labels from {labels.min()} to {labels.max()}"
        raise ValueError(f"y_train holds {shown}; number the classes 0 to {len(classes) - 1}")
    if unknown := sorted({*arrays["y_test"].tolist()} - {*classes.tolist()}):
        raise ValueError(f"label {unknown[0]} in y_test is not one of y_train's")


# arrays of Python -------------------------------------------------------------------------------


def arrays_of(data: Any) -> dict[str, NDArray]:
    """The four arrays of a set as `sat.data.Npz` takes them: images uint8 [N, S, S] (grey) or
    [N, S, S, 3] (RGB), and labels.

    `data` is a mapping of KEYS, those four in this order, or a pair of Datasets, for training and
    test, of (image, label). Images are arrays, tensors or PIL images, uint8, or floats that are
    whole multiples of 1/255, grey or RGB, with the channels first or last.

    Raises ValueError, in one line, for anything else.
    """
    if isinstance(data, Mapping):
        if {*data} != {*KEYS}:
            raise ValueError(f"data: has {', '.join(map(str, data))}; give {', '.join(KEYS)}")
        parts = [data[key] for key in KEYS]
    elif isinstance(data, tuple | list) and len(data) == 4:
        parts = [*data]
    elif isinstance(data, tuple | list) and len(data) == 2:
        parts = [part for dataset in data for part in _read_dataset(dataset)]
    else:
        raise ValueError(
            f"data: {type(data).__name__}; give ({', '.join(KEYS)}), or a pair of Datasets, for"
            " training and test"
        )
    named = {key: _array(key, part) for key, part in zip(KEYS, parts, strict=True)}
    return {key: _pixels(key, x) if key[0] == "x" else x for key, x in named.items()}


def _array(key: str, part: Any) -> NDArray:
    try:
        return np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"data: {key} is no array ({first_line(error)})") from None


def _read_dataset(dataset: Iterable[Any]) -> tuple[NDArray, NDArray]:
    """The images and labels of a Dataset, in its order."""
    try:
        pairs = [dataset[i] for i in range(len(dataset))]  # type: ignore[index, arg-type]
        images = np.stack([np.asarray(_plain(image)) for image, _ in pairs])
        return images, np.asarray([int(label) for _, label in pairs])
    except Exception as error:  # of any kind: the code is the user's
        raise ValueError(
            f"data: {type(dataset).__name__} gives no images of one size, each with a label"
            f" ({first_line(error)})"
        ) from None


def _plain(image: Any) -> Any:
    """An image of Pillow as grey or RGB: of a palette the array would hold indices."""
    odd = isinstance(image, Image.Image) and image.mode not in ("L", "RGB")
    return to_rgb(image) if odd else image


def _pixels(key: str, x: NDArray) -> NDArray:
    """Images as uint8, the channels last, grey ones without."""
    if x.dtype.kind == "f":
        pixels = x * 255.0
        whole = pixels.round()
        if not (np.abs(pixels - whole) <= WHOLE).all() or whole.min() < 0 or whole.max() > 255:
            raise ValueError(
                f"data: {key} holds floats that are no multiples of 1/255 in [0, 1]; give uint8:"
                " (x * 255).round().astype('uint8')"
            )
        x = whole.astype(np.uint8)
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x)
