"""Arrays in .npz files that anybody may have written; pickled objects are never loaded."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray


@contextmanager
def opened(path: Path, keys: Sequence[str]) -> Iterator[np.lib.npyio.NpzFile]:
    """An .npz file that holds these arrays; ValueError for another."""
    if not path.is_file():
        raise ValueError("no such file")
    with path.open("rb") as content:
        try:
            file = np.load(content, allow_pickle=False)
        except Exception:  # whatever the format that it is not makes of it
            raise ValueError("not an .npz file; write one with numpy.savez") from None
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(f"a single array; write {', '.join(keys)} with numpy.savez")
        if missing := [key for key in keys if key not in file]:
            held = ", ".join(file) or "nothing"
            raise ValueError(f"{', '.join(missing)} missing; the file holds {held}")
        yield file


def read_array(file: np.lib.npyio.NpzFile, key: str) -> NDArray:
    try:
        if not isinstance(found := file[key], np.ndarray):  # other bytes
            raise ValueError("is no array")
        return found
    except Exception as fault:  # zip, zlib and numpy each have their own
        reason = shorten(str(fault), 200)
        raise ValueError(
            f"{key} cannot be read ({reason}); save plain arrays, no objects"
        ) from None


def mapped(path: Path, key: str) -> NDArray | None:
    """An array of an .npz file as it lies on the disk; None where it is compressed."""
    with zipfile.ZipFile(path) as whole, path.open("rb") as file:
        member = whole.getinfo(f"{key}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(member.header_offset + 26)  # a local header of 30 bytes, two lengths at its end
        name, more = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(name + more, 1)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        reader = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)
        shape, fortran, dtype = reader[version[0] - 1](file)
        if fortran or dtype.hasobject or not np.prod(shape):
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape)


def check_images(key: str, x: NDArray) -> None:
    """Raises ValueError, which says what to save instead, for what are no square images."""
    if x.dtype != np.uint8:
        raise ValueError(f"{key} is {x.dtype}; save pixels as uint8, 0 to 255")
    if x.ndim not in (3, 4) or not len(x):
        raise ValueError(f"{key} has shape {list(x.shape)}; save [N, S, S] or [N, S, S, 3]")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        raise ValueError(f"{key} has its channels first; save {key}.transpose(0, 2, 3, 1)")
    if x.shape[1] != x.shape[2] or not x.shape[1]:
        raise ValueError(f"{key} has images of {x.shape[1]}x{x.shape[2]}; make them square")
    if x.ndim == 4 and x.shape[3] not in (1, 3):
        raise ValueError(f"{key} has {x.shape[3]} channels; save 1 (grey) or 3 (RGB), last")
