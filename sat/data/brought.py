"""Images handed over in Python, in the form of an .npz file: `sat.train(data=...)`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sat.data.images import to_rgb
from sat.errors import first_line

KEYS = ("x_train", "y_train", "x_test", "y_test")
WHOLE = 1e-3  # how near a float comes to a whole number of 1/255


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
        parts = [part for dataset in data for part in _read(dataset)]
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


def _read(dataset: Iterable[Any]) -> tuple[NDArray, NDArray]:
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
    return x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else np.ascontiguousarray(x)
