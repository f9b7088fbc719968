"""Sets that stream from image files, by worker processes or without."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat.data import (
    ImageFolder,
    ImageNet,
    TinyImageNet,
    UnreadableImage,
    epoch_batches,
    evaluation_batches,
    some_images,
)
from sat.data.extra import mixed, read
from sat.data.folders import sorted_files
from sat.data.images import NUMBERS, PaddedCrop, ResizedCrop, random_window
from sat.data.stream import Reading, StreamSplit
from sat.errors import Fault

CPU = torch.device("cpu")


def picture(number, width=40, height=32):
    """A smooth picture, so that scaling it in different ways agrees."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([200 * x, 200 * y, np.full_like(x, number % 200)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def write_pictures(folder, count, ending="JPEG", **size):
    folder.mkdir(parents=True)
    for number in range(count):
        picture(3 * number, **size).save(folder / f"{number:02d}.{ending}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    for name in "abc":
        write_pictures(root / "train" / name, 8)
        write_pictures(root / "val" / name, 4)
    return root


@pytest.fixture
def spoilt(root, tmp_path):
    """The same with the second of class a's images cut short, in training and test."""
    for split in ("train", "val"):
        for file in (root / split).glob("*/*"):
            target = tmp_path / split / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            cut = file.parent.name == "a" and file.name == "01.JPEG"
            target.write_bytes(content[: len(content) // 2] if cut else content)
    return tmp_path


def folder(root, **options):
    return ImageFolder(root=str(root), **{"image_size": 16, "workers": 0} | options)(CPU, 0)


def test_a_folder_is_read_in_label_order(root):
    data = folder(root)
    assert (data.name, data.classes, data.channels) == ("shapes", ("a", "b", "c"), 3)
    assert (len(data.train), len(data.held_out), len(data.test)) == (21, 3, 12)
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.held_out.labels.tolist() == [0, 1, 2] and not data.canonical
    assert folder(root, name="other").name == "other"


def test_test_images_are_what_torchvision_makes_of_them(root):
    from torchvision import transforms

    data = folder(root, image_size=28)
    usual = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()]
    )
    batches = list(data.test.stream(evaluation_batches(torch.arange(12), 5)))
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    files = sorted((root / "val").glob("*/*"))
    assert torch.equal(x, torch.stack([usual(Image.open(file)) for file in files]) / 255)
    assert torch.equal(y, data.test.labels) and [len(y) for _, y in batches] == [5, 5, 2]
    assert x.dtype == torch.float32 and x.is_contiguous()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_does_not_depend_on_the_workers_nor_on_where_it_starts(root, workers):
    alone, split = folder(root).train, folder(root, workers=workers).train
    every = list(alone.stream(epoch_batches(21, 5, 3, 0, 9)))
    for (x, y), (same_x, same_y) in zip(
        every[4:], split.stream(epoch_batches(21, 5, 3, 4, 9)), strict=True
    ):
        assert torch.equal(x, same_x) and torch.equal(y, same_y)
    for batch, (_, y) in zip(epoch_batches(21, 5, 3, 0, 9), every, strict=True):
        assert torch.equal(y, alone.labels[batch.indices])
    assert len({float(x.sum()) for x, _ in every}) == 9


def test_a_stream_reads_few_batches_ahead_and_leaves_the_global_generator(root):
    taken = []

    def endless():
        for batch in epoch_batches(21, 4, 0, 0, 10**9):
            taken.append(batch)
            yield batch

    before = torch.get_rng_state()
    for workers, most in ((0, 1), (2, 4)):
        taken.clear()
        stream = folder(root, workers=workers).train.stream(endless())
        next(stream)
        assert len(taken) <= most
        stream.close()
    assert torch.equal(torch.get_rng_state(), before)
    assert not active_children()


def test_a_batch_stays_in_the_memory_of_this_process(root):
    """A tensor that is sent to a worker is moved by another thread, under the eyes of this one."""
    rows = torch.arange(4)
    batches = [batch.part(rows) for batch in epoch_batches(21, 4, 0, 0, 3)]
    list(folder(root, workers=1).train.stream(batches))
    assert not rows.is_shared() and not any(batch.indices.is_shared() for batch in batches)


# --- transforms ----------------------------------------------------------------------------------


def rng(count, seed=0):
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(seed)).tolist()


def test_random_windows_keep_the_papers_bounds():
    areas, ratios = [], []
    for numbers in rng(500):
        left, top, width, height = random_window(400, 300, numbers)
        assert 0 <= left <= 400 - width and 0 <= top <= 300 - height
        areas.append(width * height / 120_000)
        ratios.append(width / height)
    assert 0.079 < min(areas) < 0.11 and 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.77 and 1.3 < max(ratios) < 1.35


def test_a_window_that_never_fits_is_the_centre():
    assert random_window(1000, 10, [0.99] * NUMBERS) == (493, 0, 13, 10)
    assert random_window(10, 1000, [0.99] * NUMBERS) == (0, 493, 10, 13)


@pytest.mark.parametrize("size", [16, 64, 200])
def test_a_resized_crop_is_its_window_whatever_the_decoder_scales(size, tmp_path):
    big = picture(50, 333, 259)
    big.save(tmp_path / "big.jpg", quality=95)
    crop, halved = ResizedCrop(size), 0
    for numbers in rng(20):
        with Image.open(tmp_path / "big.jpg") as image:
            found = np.asarray(crop(image, numbers), np.float32)
            halved += image.size != big.size
        left, top, width, height = random_window(333, 259, numbers)
        expected = big.crop((left, top, left + width, top + height)).resize((size, size))
        if numbers[-1] < 0.5:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert np.abs(found - np.asarray(expected, np.float32)).max() < 6
    assert (halved > 0) == (size < 200)


def test_a_padded_crop_agrees_with_slicing():
    image, seen = picture(9, 12, 12), set()
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    for numbers in rng(60):
        left, top = int(numbers[0] * 5), int(numbers[1] * 5)
        expected = padded[top : top + 12, left : left + 12]
        expected = expected[:, ::-1] if numbers[-1] < 0.5 else expected
        assert np.array_equal(np.asarray(PaddedCrop(12, 2)(image, numbers)), expected)
        seen.add((left, top, numbers[-1] < 0.5))
    assert len(seen) > 25
    assert PaddedCrop(12, 2)(image, None) == image
    assert PaddedCrop(16, 2)(image, None).size == (16, 16)


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_generated_images_go_the_way_of_the_sets_own(root, tmp_path, workers):
    """Pixels of a file come out as the same image of a folder would, in that place of the batch."""
    made = np.random.default_rng(0).integers(256, size=(9, 24, 24, 3), dtype=np.uint8)
    soft = np.random.default_rng(1).dirichlet(np.ones(3), size=9).astype(np.float32)
    np.savez(tmp_path / "made.npz", image=made, label=soft)
    for number, pixels in enumerate(made):
        place = tmp_path / "copy" / "all" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    data = folder(root, extra=str(tmp_path / "made.npz"), extra_fraction=0.5, workers=workers)
    assert data.sizes == (21, 9) and len(data.train) == 21
    batches = list(epoch_batches(data.sizes, 6, 3, 0, 5, data.mixture))
    copies = sorted_files(tmp_path / "copy", ["all"])
    reading = Reading(ResizedCrop(16), CPU, 0, False)
    alone = StreamSplit(copies, torch.arange(9), torch.zeros(9), reading)
    own = folder(root).train
    for batch, (x, y) in zip(batches, data.train.stream(batches), strict=True):
        for split, first, rows in (
            (own, 0, (batch.indices < 21).nonzero()[:, 0]),
            (alone, 21, (batch.indices >= 21).nonzero()[:, 0]),
        ):
            part = batch.part(rows)
            part = replace(part, indices=part.indices - first)
            ((images, labels),) = split.stream([part])
            assert len(rows) == 3 and torch.equal(x[rows], images)
            hard = torch.nn.functional.one_hot(labels.long(), 3).float()
            wanted = torch.from_numpy(soft)[part.indices] if first else hard
            torch.testing.assert_close(y[rows], wanted)
    for rows in ([0], [1], [0, 1]):  # a process's share may hold none of one kind
        few = [batch.part(torch.tensor(rows)) for batch in batches]
        for (x, y), (a, b) in zip(data.train.stream(few), data.train.stream(batches), strict=True):
            assert torch.equal(x, a[rows]) and torch.equal(y, b[rows])
    x, y = some_images(data.train, 4)  # as they are measured
    assert len(x) == 4 and y.tolist() == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="^extra=.*: is of 3 classes, and the set of 2"):
        two = replace(folder(root), classes=("a", "b"))
        mixed(two, read(str(tmp_path / "made.npz")), alone, 0.5, CPU)
    with pytest.raises(ValueError, match="^skip_unreadable=true: with extra"):
        folder(root, extra="made.npz", skip_unreadable=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_with_its_remedy(spoilt, workers):
    data = folder(spoilt, workers=workers)
    for split in (data.train, data.test):
        with pytest.raises(
            UnreadableImage, match="a/01.JPEG: OSError: .*dataset.skip_unreadable"
        ) as e:
            list(split.stream(epoch_batches(len(split), 5, 0, 0, 5)))
        assert "\n" not in str(e.value) and isinstance(e.value, Fault)
    assert not active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_image_leaves_the_batch_and_is_named_once(spoilt, workers, caplog):
    split = folder(spoilt, workers=workers, skip_unreadable=True, holdout=3).train
    with caplog.at_level(logging.WARNING, "sat"):
        batches = list(split.stream(epoch_batches(21, 7, 0, 0, 6)))
    assert [len(x) for x, _ in batches] == [len(y) for _, y in batches]
    assert sorted(len(y) for _, y in batches) == [6, 6, 7, 7, 7, 7]  # once in each of two epochs
    assert sum("a/01.JPEG" in record.message for record in caplog.records) == 1


def test_in_evaluation_a_skipped_image_keeps_its_row(spoilt, root):
    data, sound = folder(spoilt, skip_unreadable=True), folder(root)
    ((x, y),) = data.test.stream(evaluation_batches(torch.arange(12), 12))
    ((same, _),) = sound.test.stream(evaluation_batches(torch.arange(12), 12))
    assert y.tolist() == [0, -1, 0, 0] + [1] * 4 + [2] * 4 and not x[1].any()
    kept = [0, *range(2, 12)]
    assert torch.equal(x[kept], same[kept])


def test_what_is_no_image_is_unreadable(root, monkeypatch, tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            write_pictures(tmp_path / split / name, 2)
    test = folder(tmp_path).test
    for content in (b"", b"not an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        (tmp_path / "val" / "b" / "01.JPEG").write_bytes(content)
        with pytest.raises(UnreadableImage, match="b/01.JPEG: "):
            list(test.stream(evaluation_batches(torch.arange(4), 4)))
    (tmp_path / "val" / "b" / "01.JPEG").unlink()
    with pytest.raises(UnreadableImage, match="b/01.JPEG: FileNotFoundError"):
        list(test.stream(evaluation_batches(torch.arange(4), 4)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        list(test.stream(evaluation_batches(torch.arange(2), 2)))


class Slow:
    """A source that waits long enough to be interrupted."""

    sequential = False

    def open(self, number):
        time.sleep(60)

    def describe(self, number):
        return str(number)


@pytest.mark.usefixtures("watched_workers")
def test_a_killed_worker_is_one_clear_line():
    reading = Reading(PaddedCrop(8, 0), CPU, 1, False)
    split = StreamSplit(Slow(), torch.arange(4), torch.zeros(4), reading)

    def kill():
        while not active_children():
            time.sleep(0.01)
        os.kill(active_children()[0].pid, signal.SIGKILL)

    threading.Timer(0.3, kill).start()
    with pytest.raises(
        Fault, match=r"reads images has died .*ulimit -n.*dataset.workers=1$"
    ) as caught:
        next(split.stream(evaluation_batches(torch.arange(4), 4)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_group_while_a_worker_begins_is_not_the_workers(number, root, monkeypatch):
    leave = os.setpgrp

    def struck():
        os.kill(os.getpid(), number)
        leave()

    monkeypatch.setattr("sat.data.stream.os.setpgrp", struck)  # the worker is forked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ((x, _),) = folder(root, workers=1).train.stream(epoch_batches(21, 5, 0, 0, 1))
    assert len(x) == 5 and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_an_interrupt_stops_the_workers_without_a_word_from_them(root):
    program = f"""
import signal, time, torch
from multiprocessing import active_children
from sat.data import ImageFolder, epoch_batches
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
data = ImageFolder(root={str(root)!r}, image_size=16, workers=2)(torch.device("cpu"), 0)
for x, y in data.train.stream(epoch_batches(21, 4, 0, 0, 10**9)):
    print(*[child.pid for child in active_children()], flush=True)
    time.sleep(0.05)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    here = Path(__file__).parents[1]
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=here, start_new_session=True, **pipes
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    os.killpg(run.pid, signal.SIGINT)  # what ^C does
    _, said = run.communicate(timeout=30)
    assert len(workers) == 2 and run.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1 and "worker" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def joblib_reads(root):
    data = folder(root, workers=1)
    return [x.tolist() for x, _ in data.train.stream(epoch_batches(21, 5, 0, 0, 3))]


def test_a_job_of_joblib_may_have_workers(root):
    from joblib import Parallel, delayed

    found = Parallel(n_jobs=2)(delayed(joblib_reads)(root) for _ in range(2))
    assert found == [joblib_reads(root)] * 2


# --- folders --------------------------------------------------------------------------------------


def test_folders_that_cannot_be_a_set_are_refused(root, tmp_path):
    def refused(told, option=ImageFolder):
        with pytest.raises(ValueError, match=rf"^root={tmp_path}: .*{told}") as caught:
            option(root=str(tmp_path))(CPU, 0)
        assert "\n" not in str(caught.value)

    refused(
        "no folder .*train; images belong in train/<class>/ and val/<class>/ of dataset.root=FOLDER"
    )
    with pytest.raises(ValueError, match=f"folder of one part; dataset.root={root}$"):
        ImageFolder(root=str(root / "val")).fingerprint()
    (tmp_path / "train" / ".hidden").mkdir(parents=True)
    refused("train holds no class folders")
    write_pictures(tmp_path / "train" / "a", 2)
    refused("one class only .a.; two are needed")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "notes.txt").touch()
    refused("no images in .*train/b; endings read: .jpg")
    (tmp_path / "train" / "b" / "0.png").touch()
    refused("no folder .*val")
    write_pictures(tmp_path / "val" / "a", 1)
    write_pictures(tmp_path / "val" / "c", 1)
    refused("class 'b' is in train but not in val")
    write_pictures(tmp_path / "val" / "b", 1)
    refused("class 'c' is in val but not in train")
    refused("2 class folders in train where ImageNet has 1000; .*dataset=imagefolder", ImageNet)


def test_imagenet(tmp_path):
    for split in ("train", "val"):
        for number in range(1000):
            place = tmp_path / split / f"n{number:08d}"
            place.mkdir(parents=True)
            for image in "01":
                (place / f"{image}.JPEG").touch()
    data = ImageNet(root=str(tmp_path), holdout=1000)(CPU, 0)
    assert (data.name, len(data.classes), data.image_size) == ("imagenet", 1000, 224)
    assert data.mean == data.std == (0.5,) * 3
    assert torch.equal(data.held_out.labels, torch.arange(1000))


def test_tiny_imagenet_as_published_and_sorted(tmp_path):
    for number, name in enumerate(("n1", "n2")):
        write_pictures(tmp_path / "train" / name / "images", 4, width=64, height=64)
        write_pictures(tmp_path / "val" / name, 2 + number, width=64, height=64)
    option = TinyImageNet(root=str(tmp_path), holdout=2, workers=0)
    by_folder = option(CPU, 0)
    assert by_folder.test.labels.tolist() == [0, 0, 1, 1, 1] and by_folder.image_size == 64
    ((x, _),) = by_folder.train.stream(epoch_batches(6, 6, 0, 0, 1))
    assert (x.sum(1).amin((1, 2)) == 0).any()  # some padding is in view

    (tmp_path / "val" / "images").mkdir()
    lines = []
    for file in sorted((tmp_path / "val").glob("n*/*"), reverse=True):
        name = f"val_{len(lines)}.JPEG"
        lines.append(f"{name}\t{file.parent.name}\t0\t0\t62\t62\n")
        file.rename(tmp_path / "val" / "images" / name)
    with pytest.raises(ValueError, match=r"^root=.*val_annotations.txt is missing"):
        option(CPU, 0)
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    data = option(CPU, 0)
    assert data.test.labels.tolist() == [1, 1, 1, 0, 0] and len(data.train) == 6
    ((x, y),) = data.test.stream(evaluation_batches(torch.arange(5), 5))
    ((_, same),) = data.test.stream(evaluation_batches(torch.arange(5), 5))
    assert torch.equal(y, same) and x.shape == (5, 3, 64, 64)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn3\t0\n")
    with pytest.raises(ValueError, match=r"^root=.*'val_0.JPEG n3' names no class of train"):
        option(CPU, 0)
