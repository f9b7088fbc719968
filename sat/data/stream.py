"""Large sets stream from files: worker processes decode, crop and mirror; the device divides."""

import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from textwrap import shorten
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sat.data.batches import Batch
from sat.data.choice import check_choice
from sat.data.extra import Extended, Stored, mixed
from sat.data.extra import read as read_extra
from sat.data.fingerprint import of
from sat.data.images import NUMBERS, PaddedCrop, ResizedCrop
from sat.data.sets import Data, UnreadableImage
from sat.errors import SIGNALS, Fault
from sat.launch import local_size
from sat.rng import RowRng

Transform = ResizedCrop | PaddedCrop
TRIED = 256  # images at a time, to see whether they can be read


class Source(Protocol):
    """Images by number, as a worker process reads them; picklable."""

    sequential: bool  # the number is a place in an endless sequence, cheap to read in order alone

    def open(self, number: int) -> tuple[Image.Image, int]:
        """The image, not yet decoded where that can wait, and its label."""
        ...

    def describe(self, number: int) -> str:
        """The file's name, for messages."""
        ...

    def digest(self) -> str:
        """What tells these images from others, see `sat.data.fingerprint`."""
        ...


class Part(NamedTuple):
    """What one worker reads at a time: a share of one batch. No tensors: a queue's thread would
    move those into shared memory while this process looks into them."""

    numbers: np.ndarray  # int64, for `Source.open`
    rows: np.ndarray  # int64, their rows in the batch
    key: int | None  # as in `Batch`, as is `crops`
    last: bool  # of its batch
    crops: bool = True


class PartRead(NamedTuple):
    x: Tensor  # uint8 [n, S, S, 3]
    y: Tensor  # int64 [n]
    unreadable: list[str]  # a file and its fault each
    last: bool


class _Reader(Dataset):
    """Reads parts; what it returns depends on the part alone, not on the worker."""

    def __init__(self, source: Source, transform: Transform):
        self.source, self.transform = source, transform

    def __getitem__(self, part: Part) -> PartRead:
        size, count = self.transform.size, len(part.rows)
        x: np.ndarray = np.zeros((count, size, size, 3), np.uint8)
        y: list[int] = []
        unreadable: list[str] = []
        numbers: list[list[float] | None] = [None] * count
        if part.key is not None and part.crops:
            rng = RowRng(part.key, torch.from_numpy(part.rows))
            numbers = rng.uniform("augment", NUMBERS).tolist()
        for number, drawn in zip(part.numbers.tolist(), numbers, strict=True):
            try:
                image, label = self.source.open(number)
                with image:
                    x[len(y)] = np.asarray(self.transform(image, drawn))
            except Exception as fault:  # a decoder raises whatever its parser stumbles upon
                reason = shorten(f"{type(fault).__name__}: {fault}", 200)
                unreadable.append(f"{self.source.describe(number)}: {reason}")
                if part.key is not None:
                    continue
                label = -1  # its pixels are still black
            y.append(label)
        labels = torch.tensor(y, dtype=torch.int64)
        return PartRead(torch.from_numpy(x[: len(y)]), labels, unreadable, part.last)


def _follow_the_main_process(_worker: int) -> None:
    """^C and `timeout` signal the whole group; when a worker stops is the main process's affair.
    What has come before the worker was out of the group was held back (see `_held_back`)."""
    os.setpgrp()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the loader ends one that hangs
    sys.excepthook = _end_unless_cut_off
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end))  # noqa: B010, it is private


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait meanwhile, those to a process that begins here too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_unless_cut_off(kind: type[BaseException], fault: BaseException, trace) -> None:
    """A main process that stops may hang up on a thread that was handing it an image."""
    if not issubclass(kind, ConnectionError | EOFError):
        _end()


def _end(*fault: object) -> None:
    """Ends a worker that can't hand over an image: the main process would wait for it for ever, and
    a thread of multiprocessing's would try again for ever, with a traceback each time."""
    os._exit(1)


def _open_files_for(workers: int) -> None:
    """Lets this process have as many open files as it and its workers pass to each other. Raises
    Fault where it may not."""
    needed = 64 + 16 * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not workers or soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise Fault(
            f"dataset.workers={workers}: may need {needed} open files, and this process may have"
            f" {hard}; allow it more (ulimit -n {needed}), or write dataset.workers=0"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@dataclass(frozen=True)
class Reading:
    """How a set's splits are read."""

    transform: Transform
    device: torch.device
    workers: int
    skip_unreadable: bool


class StreamSplit:
    """A split that is read as it is needed.

    An image that cannot be decoded raises `UnreadableImage`. With `skip_unreadable` it is named
    once in the log, and left out of a training batch; in an evaluation batch, where rows must stay
    in place, it is a black image of the label -1, which is never counted as right.
    """

    def __init__(self, source: Source, chosen: Tensor, labels: Tensor, reading: Reading):
        """`chosen` are the numbers of this split's images in `source`, with their `labels`."""
        self.labels = labels
        self._source, self._chosen, self._reading = source, chosen, reading
        self._named: set[str] = set()
        self._is_readable = torch.zeros(len(labels), dtype=torch.int8)  # 1; -1: no; 0: not known

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_order(self) -> bool:
        """Whether images can be read in their order alone."""
        return self._source.sequential

    @property
    def skips(self) -> bool:
        """Whether images that can't be read are left out."""
        return self._reading.skip_unreadable

    @property
    def workers(self) -> int:
        """Processes that read."""
        return self._reading.workers

    def digest(self) -> str:
        """A checksum of what the source tells of its images, of which are chosen, and of labels."""
        return of(self._source.digest(), self._chosen, self.labels)

    def readable(self, indices: Tensor) -> Tensor:
        """Indices of images that can be read, where others are left out; each is tried once."""
        if not self.skips:
            return indices
        unknown = indices[self._is_readable[indices] == 0]
        batches = [Batch(part, None) for part in unknown.split(TRIED)] if len(unknown) else []
        for batch, (_, y) in zip(batches, self.stream(batches), strict=True):
            self._is_readable[batch.indices] = torch.where(y.cpu() < 0, -1, 1).to(torch.int8)
        found = indices[self._is_readable[indices] > 0]
        if len(indices) and not len(found):
            raise UnreadableImage(f"none of {len(indices)} images can be read; see the log")
        return found

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        device, xs, ys = self._reading.device, [], []
        for read in self._read(batches):
            self._report(read.unreadable)
            xs.append(read.x.to(device, non_blocking=True))
            ys.append(read.y.to(device, non_blocking=True))
            if not read.last:
                continue
            x, y = torch.cat(xs).permute(0, 3, 1, 2), torch.cat(ys)
            if not len(y):
                raise UnreadableImage("no image of a whole batch can be read; see the log")
            xs, ys = [], []
            yield x.to(torch.float32, memory_format=torch.contiguous_format).div_(255), y

    def _parts(self, batches: Iterable[Batch]) -> Iterator[Part]:
        """Each batch in as many parts as there are workers, so that all work on the next one."""
        for batch in batches:
            numbers = self._chosen[batch.indices]
            if self._source.sequential and batch.key is not None:
                numbers = batch.start + batch.rows  # the reader shuffles
            count = max(1, min(self._reading.workers, len(numbers)))
            shares = zip(numbers.tensor_split(count), batch.rows.tensor_split(count), strict=True)
            for i, (own, rows) in enumerate(shares, 1):
                yield Part(own.numpy(), rows.numpy(), batch.key, i == count, batch.crops)

    def _read(self, batches: Iterable[Batch]) -> Iterator[PartRead]:
        """The parts, in order, at most two batches ahead."""
        workers = self._reading.workers
        loader = DataLoader(
            _Reader(self._source, self._reading.transform),
            batch_size=None,  # a part is one item: what a worker reads is never collated
            sampler=self._parts(batches),
            num_workers=workers,
            # named, because in joblib's processes the default is a way of its own that fails here
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            worker_init_fn=_follow_the_main_process,
            pin_memory=self._reading.device.type == "cuda",
            generator=torch.Generator(),  # the loader would draw a seed from the global one
        )
        try:
            with _held_back():
                parts = iter(loader)
            if workers and threading.current_thread() is threading.main_thread():
                # torch's handler would raise wherever the main process is, in the middle of an
                # update too; the loader itself finds a dead worker within 5 s, between two batches
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            yield from parts
        except (RuntimeError, OSError, EOFError) as fault:  # it may die in the middle of a message
            told = re.search("^DataLoader worker|ancdata", str(fault))  # of a file passed on
            if not workers or isinstance(fault, RuntimeError) and not told:
                raise
            reason = str(fault).split(". ")[0] or "it hung up"
            raise Fault(
                f"a process that reads images has died ({reason}); often memory, /dev/shm or open"
                f" files (ulimit -n) are short: try fewer than dataset.workers={workers}"
            ) from None

    def _report(self, unreadable: list[str]) -> None:
        for fault in unreadable:
            if not self.skips:
                remedy = "repair it or remove it, which begins another run"
                if not self._source.sequential:
                    remedy += "; or go on without such images: dataset.skip_unreadable=true"
                raise UnreadableImage(f"unreadable image {fault}; {remedy}")
            if fault not in self._named:
                self._named.add(fault)
                logging.getLogger("sat").warning("unreadable image left out: %s", fault)


@dataclass(frozen=True)
class StreamedSet(Extended):
    """What all streamed sets share."""

    limit: int | None = None  # training images in use, the held-out ones among them
    holdout: float = 0.1  # fraction of them, or how many
    image_size: int = 224  # pixels; images are square
    # processes; None: one a core, at most 32; 0: the main process reads
    workers: int | None = field(default=None, metadata={"identity": False})
    skip_unreadable: bool = field(default=False, metadata={"identity": False})

    def __post_init__(self):
        check_choice(self.limit, self.holdout)
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size={self.image_size}: write 1 to 4096 pixels")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers}: write 0 or more, or null for one a core")

        self.check_extra()
        if self.extra is not None and self.skip_unreadable:
            raise ValueError(
                "skip_unreadable=true: with extra the places in a batch are told beforehand; repair"
                " the images, or remove them"
            )

    def transform(self) -> Transform:
        return ResizedCrop(self.image_size)

    def reading(self, device: torch.device) -> Reading:
        workers = self.workers
        if workers is None:
            has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
            cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
            workers = min(max(cores // local_size(), 1), 32)
        if self.extra is not None:
            workers = (workers + 1) // 2  # which read files, and as many those beside
        _open_files_for(workers)
        return Reading(self.transform(), device, workers, self.skip_unreadable)

    def extended(self, data: Data, reading: Reading) -> Data:
        """The set with the images beside it, if there are any."""
        if self.extra is None:
            return data
        extra = read_extra(self.extra)
        count = len(extra.images)
        beside = StreamSplit(Stored(extra), torch.arange(count), torch.zeros(count), reading)
        return mixed(data, extra, beside, self.extra_fraction, reading.device)
