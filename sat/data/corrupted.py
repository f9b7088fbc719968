"""Published corrupted test sets: CIFAR-10-C and CIFAR-100-C as arrays, ImageNet-C as folders
(Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations")."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sat.data.folders import class_folders, sorted_files
from sat.data.images import PaddedCrop
from sat.data.memory import MemorySplit, resized
from sat.data.sets import Data, Split
from sat.data.stream import Reading, StreamSplit
from sat.errors import Refused, refusing

TYPES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)


def place_of(folder: str) -> Path:
    """The folder of a set as it is called, by its own name."""
    return Path(folder).expanduser().resolve()


def told_apart(root: Path) -> str:
    """What tells a set from another one of its name, or from itself before it was changed: a digest
    of where it is, and one of the sizes and times of its files (of folders, their times)."""
    found = [path for path in _files(root) if path.exists()]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    return "-".join(hashlib.sha256(repr(x).encode()).hexdigest()[:8] for x in (str(root), stats))


def is_set(root: Path, digest: str | None) -> bool:
    """Whether the set is the one of `told_apart`; one that has lost a type since is."""
    whole = all((root / f"{t}.npy").is_file() or (root / t).is_dir() for t in TYPES)
    now = told_apart(root)
    return digest == now if whole else str(digest).split("-")[0] == now.split("-")[0]


def _files(root: Path) -> list[Path]:
    return [root / name for t in TYPES for name in (f"{t}.npy", t)] + [root / "labels.npy"]


@dataclass(frozen=True)
class Corrupted:
    """The images of the fifteen TYPES at each of five severities, for networks of the set `data`;
    types that were published for validation are passed over.

    Arrays: `root/<type>.npy` uint8 [5 N, S, S, 3], the severities one after the other, and
    `root/labels.npy` [5 N]. Folders: `root/<type>/<severity>/<class>/`, at any depth, read as they
    are stored. At most `limit` images of each type and severity are taken: the first of arrays, of
    folders some spread over the classes. Raises Refused where something is missing, or is of
    another set.
    """

    root: Path
    data: Data
    limit: int | None = None

    def __post_init__(self) -> None:
        missing = [t for t in TYPES if not (self._array(t).is_file() or (self.root / t).is_dir())]
        if missing:
            raise Refused(
                f"evaluation.corruptions={self.root}: lacks {', '.join(missing)}; name the folder"
                " of CIFAR-10-C or CIFAR-100-C (<type>.npy and labels.npy) or of ImageNet-C"
                " (<type>/<severity>/<class>/)"
            )

    def check(self) -> None:
        """Raises Refused for what can be told of the set without reading its images."""
        one = replace(self, limit=1)
        for kind in TYPES:
            if self._array(kind).is_file():
                one.split(kind, 1, torch.device("cpu"))
                continue
            with refusing(f"evaluation.corruptions={self.root}: "):
                for severity in SEVERITIES:
                    self._check_classes(self.root / kind / str(severity))

    def _array(self, kind: str) -> Path:
        return self.root / f"{kind}.npy"

    def split(self, kind: str, severity: int, device: torch.device) -> Split:
        """The images of a type at a severity, from 1 to 5."""
        if self._array(kind).is_file():
            return self._of_array(kind, severity, device)
        with refusing(f"evaluation.corruptions={self.root}: "):
            return self._of_folder(self.root / kind / str(severity), device)

    def _of_array(self, kind: str, severity: int, device: torch.device) -> Split:
        images, labels = _read(self._array(kind)), self._labels
        each, over = divmod(len(images), len(SEVERITIES)) if images.ndim else (0, 0)
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or over
            or len(images) != len(labels)
            or not each
        ):
            raise Refused(
                f"{self._array(kind)}: holds {images.dtype} {list(images.shape)}, and labels.npy"
                f" {len(labels)} labels; uint8 images [5 N, S, S, 3] belong there, a label for each"
            )
        first = (severity - 1) * each
        rows = slice(first, first + min(each, self.limit or each))
        pixels = torch.from_numpy(np.array(images[rows])).permute(0, 3, 1, 2).contiguous()
        if pixels.shape[1] != self.data.channels:
            raise Refused(
                f"{self._array(kind)}: has {pixels.shape[1]} channels, and the network takes"
                f" {self.data.channels}"
            )
        return MemorySplit(resized(pixels, self.data.image_size).to(device), labels[rows])

    @cached_property
    def _labels(self) -> Tensor:
        labels, classes = _read(self.root / "labels.npy"), len(self.data.classes)
        if (
            labels.ndim != 1
            or labels.dtype.kind not in "iu"
            or {*np.unique(labels)} - {*range(classes)}
        ):
            raise Refused(
                f"{self.root / 'labels.npy'}: holds other labels than 0 to {classes - 1}, the"
                " classes of the data set"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def _check_classes(self, folder: Path) -> None:
        if unknown := sorted({*class_folders(folder)} - {*self.data.classes}):
            raise ValueError(f"{folder} has the class {unknown[0]!r}, which the data set has not")

    def _of_folder(self, folder: Path, device: torch.device) -> Split:
        self._check_classes(folder)
        files = sorted_files(folder, list(self.data.classes))
        count, test = len(files.labels), self.data.test
        chosen = torch.arange(0, count, max(1, -(-count // (self.limit or count))))
        workers = test.workers if isinstance(test, StreamSplit) else 0
        reading = Reading(PaddedCrop(self.data.image_size, 0), device, workers, False)
        return StreamSplit(files, chosen, files.labels[chosen], reading)


def _read(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"{path}: can't be read ({error})") from None
    if not isinstance(found, np.ndarray):
        raise Refused(f"{path}: holds no array; download it again")
    return found
