"""Inputs as other people have them: image folders, arrays and weights of our own drawing."""

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("bar", "disc", "ring")
# A run of a second on a folder of 72 + 27 images.
FOLDER = [
    "dataset=imagefolder", "dataset.image_size=16", "dataset.workers=0", "model.depth=10",
    "model.width=0.0625", "schedule.epochs=1", "schedule.batch_size=16", "schedule.precision=fp32",
    "schedule.compile=false", "attack=none", "validation.every=10", "evaluation=clean",
    "evaluation.masking_checks=0",
]  # fmt: skip
DIGITS = [
    "dataset=digits", "dataset.limit=160", "model.depth=10", "model.width=0.0625",
    "schedule.epochs=1", "schedule.precision=fp32", "schedule.compile=false", "attack=none",
    "evaluation=clean", "evaluation.limit=20", "evaluation.masking_checks=0",
]  # fmt: skip


def drawn(label: int, seed: int, size: int = 24) -> Image.Image:
    """A bright square of `label` + 1 eighths of the side on dark noise."""
    pixels = np.random.default_rng(seed).integers(0, 60, (size, size, 3), dtype=np.uint8)
    side = (label + 1) * size // 8
    pixels[4 : 4 + side, 4 : 4 + side] = (250, 120 + 40 * label, 90)
    return Image.fromarray(pixels)


def picture_folder(root: Path, picture: Callable[[int, int], Image.Image] = drawn,
                   classes: tuple[str, ...] = CLASSES, counts=(24, 9)) -> Path:  # fmt: skip
    """`root/train/<class>/000.png` and so on, and `root/val`; `picture(label, number)` draws."""
    number = 0
    for split, count in zip(("train", "val"), counts, strict=True):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                picture(label, number).save(folder / f"{i:03}.png")
    return root


def noise(label: int, number: int) -> Image.Image:
    """Of no class."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def digits_npz(path: Path, classes: int) -> Path:
    """The first 40 of each of scikit-learn's digits below `classes`, as arrays."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.concatenate([np.flatnonzero(labels == c)[:40] for c in range(classes)])
    chosen = np.random.default_rng(0).permutation(chosen)
    x, y = (images[chosen].reshape(-1, 8, 8) * 15.9).astype(np.uint8), labels[chosen]
    n = len(x) * 4 // 5
    np.savez(path, x_train=x[:n], y_train=y[:n], x_test=x[n:], y_test=y[n:])
    return path


@contextmanager
def unreadable(*folders: Path) -> Iterator[None]:
    """These can't be listed meanwhile, by root neither, who gives up that right in this thread."""
    modes = {folder: folder.stat().st_mode for folder in folders}
    for folder in folders:
        folder.chmod(0)
    try:
        if os.geteuid():
            yield
        elif sys.platform == "linux":
            with without_override():
                yield
        else:
            pytest.skip("root may read everything here")
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


@contextmanager
def without_override() -> Iterator[None]:
    """Root meets the permissions of files: CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2) are
    not in effect, in this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kept, less = ((ctypes.c_uint32 * 6)() for _ in range(2))
    if libc.capget(head, kept):
        pytest.skip("no capabilities here")
    less[:] = kept[:]
    less[0] &= ~0b110  # the effective ones
    assert libc.capset(head, less) == 0
    try:
        yield
    finally:
        assert libc.capset(head, kept) == 0


@contextmanager
def memory_limited(more: int) -> Iterator[None]:
    """This process gets at most so many bytes of address space beyond what it has."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc here")
    before = resource.getrlimit(resource.RLIMIT_AS)
    have = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
