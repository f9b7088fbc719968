"""What timm's readers give: by index (folders) and in sequence (webdataset shards)."""

import io
import json
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from sat.data import ImageFolder, Timm, UnreadableImage, epoch_batches, evaluation_batches
from sat.data.images import ResizedCrop
from sat.data.records import Passes
from sat.data.stream import Reading, StreamSplit

CPU = torch.device("cpu")


def picture(number):
    """Its third channel tells its number."""
    y, x = np.mgrid[:200:32j, :200:40j]
    return Image.fromarray(np.stack([x, y, np.full_like(x, number)], 2).astype(np.uint8))


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 8), ("val", 4)):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture(number).save(tmp_path / split / name / f"{number:02d}.JPEG")
    return tmp_path


def test_timm_reads_a_folder_by_index(root):
    options = {"image_size": 16, "workers": 0, "holdout": 3}
    shutil.copytree(root / "val", root / "held")
    for name in ("folder", "torch/folder"):
        data = Timm(name=name, root=str(root), **options)(CPU, 0)
        assert (data.name, data.classes) == (name, ("a", "b", "c"))
        assert (len(data.train), len(data.held_out), len(data.test)) == (21, 3, 12)
        ((x, y),) = data.test.stream(evaluation_batches(torch.arange(12), 12))
        ((same, _),) = ImageFolder(root=str(root), image_size=16, workers=0)(CPU, 0).test.stream(
            evaluation_batches(torch.arange(12), 12)
        )
        assert torch.equal(x, same) and torch.equal(y, data.test.labels)
        held = Timm(name=name, root=str(root), holdout_split="held", **options)(CPU, 0)
        assert (len(held.train), len(held.held_out)) == (24, 3)
    (root / "val" / "a" / "01.JPEG").write_bytes(b"no image")
    for name in ("folder", "torch/folder"):
        data = Timm(name=name, root=str(root), **options)(CPU, 0)
        with pytest.raises(UnreadableImage, match=f"{name} validation, image 1: "):
            list(data.test.stream(evaluation_batches(torch.arange(12), 12)))


@pytest.mark.parametrize("name", ["folder", "torch/folder"])
def test_held_out_images_are_no_others_and_of_the_same_classes(name, root):
    """With one class folder fewer all labels moved up, and `best` was chosen by wrong ones."""
    for each in "bc":
        shutil.copytree(root / "val" / each, root / "held" / each)
    for other in ("train", "val"):
        shutil.copytree(root / other, root / f"{other}2")
    options = dict(name=name, root=str(root), image_size=16, workers=0, holdout=3, test_split="val")
    with pytest.raises(ValueError, match="^holdout_split=held: its classes are not those of train"):
        Timm(holdout_split="held", **options)(CPU, 0)
    for own in ("train", "val"):  # the same name, and the same images by another
        for act in (Timm.fingerprint, lambda timm: timm(CPU, 0)):
            with pytest.raises(ValueError, match=f"^(holdout|test)_split={own}: "):
                act(Timm(holdout_split=own, **options))
        with pytest.raises(ValueError, match=f"^holdout_split={own}2: holds the images of another"):
            Timm(holdout_split=f"{own}2", **options).fingerprint()
    assert Timm(**options).fingerprint()


class Halves:
    """As torchvision's sets: one half is `train`, all other names are the other half."""

    classes = ("a", "b")

    def __init__(self, train):
        self.train, self.targets = train, [0, 1] * (8 if train else 4)


@pytest.mark.parametrize("split, half", [("training", "training"), ("held", "test")])
def test_torchvisions_sets_have_no_third_split(split, half, monkeypatch):
    halves = lambda name, root, split, **rest: Halves(split in ("train", "training"))  # noqa: E731
    monkeypatch.setattr("timm.data.create_dataset", halves)
    options = dict(name="torch/qmnist", image_size=16, workers=0, holdout=2)
    with pytest.raises(ValueError, match=f"^holdout_split={split}: timm reads {half} images"):
        Timm(holdout_split=split, **options)(CPU, 0)
    assert len(Timm(**options)(CPU, 0).held_out) == 2


def test_what_timm_cannot_read_is_refused(root, monkeypatch):
    def refused(told, **options):
        with pytest.raises(ValueError, match=told) as caught:
            Timm(**{"root": str(root)} | options)(CPU, 0)
        assert "\n" not in str(caught.value)

    refused("^name=null: ")
    refused("^root=null: ", name="folder", root=None)
    refused("^root=.*: no folder 'tset' in it", name="folder", test_split="tset")
    refused("^test_split=train: ", name="folder", test_split="train")
    refused("^name=torch/cifra: .*Unknown torchvision dataset", name="torch/cifra")
    refused("^classes=4: folder has 3", name="folder", classes=4)
    refused("^download=true: ", name="folder", download=True)
    monkeypatch.setattr("sat.data.timm_sets.find_spec", lambda name: None)
    refused("^name=wds/x: .*pip install webdataset$", name="wds/x")
    refused("^name=hfds/x: .*pip install datasets$", name="hfds/x")
    refused("^name=tfds/x: .*pip install tensorflow tensorflow-datasets$", name="tfds/x")


class Table:
    """Rows as hfds/ has them: of each image a good and a poor picture, and two kinds of label."""

    column_names = ("image", "label", "poor", "kind")

    def __getitem__(self, key):
        if isinstance(key, str):
            return [number % 2 if key == "label" else number % 3 for number in range(12)]
        return {"image": picture(key), "poor": picture(key + 100)}


class Reader:
    """What timm makes of a table; by its own keys where none are given."""

    def __init__(self, input_key, target_key):
        self.dataset = Table()
        self.image_key, self.label_key = input_key or "image", target_key or "label"

    def __getitem__(self, number):
        content = io.BytesIO()
        self.dataset[number][self.image_key].save(content, "PNG")
        content.seek(0)
        return content, self.dataset[self.label_key][number]


def test_fields_of_a_table_are_read_by_the_keys_that_are_given(monkeypatch):
    def opened(name, root, split, input_key, target_key, **options):
        return SimpleNamespace(reader=Reader(input_key, target_key))

    monkeypatch.setattr("timm.data.create_dataset", opened)
    monkeypatch.setattr("sat.data.timm_sets.find_spec", lambda name: name)

    def found(**keys):
        test = Timm(name="hfds/a/b", image_size=16, workers=0, **keys)(CPU, 0).test
        ((x, y),) = test.stream(evaluation_batches(torch.arange(12), 12))
        return (255 * x[:, 2].mean((1, 2))).round().tolist(), y.tolist()

    numbers, labels, kinds = [*range(12)], [0, 1] * 6, [0, 1, 2] * 4
    assert found() == (numbers, labels)
    assert found(input_key="poor") == ([number + 100 for number in numbers], labels)
    assert found(target_key="kind") == (numbers, kinds)
    with pytest.raises(ValueError, match="^target_key=breed: no such field"):
        found(target_key="breed")


class Count(IterableDataset):
    """Pass n gives its images in an order of its own; the label is the image's number."""

    def __init__(self, turn):
        self.order = torch.randperm(10, generator=torch.Generator().manual_seed(turn)).tolist()

    def __iter__(self):
        return ((picture(number), number) for number in self.order)


def test_a_sequence_is_read_pass_after_pass_from_any_place():
    passes, expected = (
        Passes(Count, 10, 10, "count"),
        [n for turn in range(3) for n in Count(turn).order],
    )
    for places in (range(30), [25, 26, 3, 9, 10, 12], [2, 15, 27]):
        assert [passes.open(place)[1] for place in places] == [expected[place] for place in places]
    short = Passes(Count, 12, 12, "count")
    with pytest.raises(ValueError, match="ended after 10 of 12 images"):
        short.open(11)
    with pytest.raises(ValueError, match="its label is 9, with 9 classes"):
        [Passes(Count, 10, 9, "count").open(place) for place in range(10)]


def test_a_stream_of_a_sequence_resumes_and_keeps_to_the_readers_order():
    split = StreamSplit(
        Passes(Count, 10, 10, "count"),
        torch.arange(10),
        torch.full((10,), -1),
        Reading(ResizedCrop(16), CPU, 1, False),
    )
    every = list(split.stream(epoch_batches(10, 4, 0, 0, 6)))
    expected = [n for turn in range(3) for n in Count(turn).order][:24]
    assert torch.cat([y for _, y in every]).tolist() == expected
    for (x, y), (same, z) in zip(
        every[3:], split.stream(epoch_batches(10, 4, 0, 3, 6)), strict=True
    ):
        assert torch.equal(x, same) and torch.equal(y, z)
    tested = split.stream(evaluation_batches(torch.tensor([1, 4, 5]), 2))
    assert torch.cat([y for _, y in tested]).tolist() == [Count(0).order[i] for i in (1, 4, 5)]


def test_webdataset_shards(tmp_path):
    pytest.importorskip("webdataset", reason="wds/ needs the package webdataset")
    splits = {}
    for split, count in (("train", 20), ("held", 6), ("test", 8)):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as shard:
            for number in range(count):
                pixels = io.BytesIO()
                picture(number).save(pixels, "PNG")
                for ending, content in (("png", pixels.getvalue()), ("cls", b"%d" % (number % 2))):
                    entry = tarfile.TarInfo(f"{number:03d}.{ending}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
    splits = {
        split: {
            "name": split,
            "num_samples": n,
            "filenames": [f"{split}.tar"],
            "shard_lengths": [n],
        }
        for split, n in (("train", 20), ("held", 6), ("test", 8))
    }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    options = dict(name="wds/x", root=str(tmp_path), test_split="test", classes=2, image_size=16)
    data = Timm(holdout_split="held", holdout=4, **options)(CPU, 0)
    assert (len(data.train), len(data.held_out), len(data.test)) == (20, 4, 8)
    every = list(data.train.stream(epoch_batches(20, 5, 0, 0, 12)))
    for (x, y), (same, z) in zip(
        every[6:], data.train.stream(epoch_batches(20, 5, 0, 6, 12)), strict=True
    ):
        assert torch.equal(x, same) and torch.equal(y, z)
    numbers = torch.cat([x[:, 2].mean((1, 2)) for x, _ in every]).mul(255).round().view(3, 20)
    assert (numbers.sort(1).values == torch.arange(20)).all()
    assert len({tuple(turn.tolist()) for turn in numbers}) == 3
    ((_, y),) = data.test.stream(evaluation_batches(data.test_subset(3), 8))
    assert y.tolist() == [0, 1, 0] and data.test.labels.tolist() == [-1] * 8
    for wrong in ({"limit": 5}, {"workers": 2}, {"skip_unreadable": True}, {"holdout_split": None}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}=.*read in sequence"):
            Timm(**options | {"holdout_split": "held"} | wrong)(CPU, 0)
