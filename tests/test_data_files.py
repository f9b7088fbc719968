"""The small sets that come from files: torchvision's, made up in the published formats, and npz."""

import pickle
from hashlib import md5
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from sat.data import SVHN, Cifar10, Cifar100, FashionMNIST, ImageFolder, Npz, evaluation_batches
from sat.errors import Refused
from sat.training.preflight import check_apart

CPU = torch.device("cpu")


def whole(split):
    """All images and labels of a split, as evaluation sees them."""
    batches = list(split.stream(evaluation_batches(torch.arange(len(split)), 64)))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def write_cifar(root, monkeypatch, kind):
    """Files in the published format, their sums put where torchvision looks for them."""
    generator = np.random.default_rng(0)
    label = "labels" if kind.__name__ == "CIFAR10" else "fine_labels"
    classes, folder = (2, 5)[label == "fine_labels"], root / kind.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5((folder / name).read_bytes()).hexdigest()]

    def batch(name, count):
        data = generator.integers(256, size=(count, 3072), dtype=np.uint8)
        return write(name, {"data": data, label: [i % classes for i in range(count)]})

    names = [f"class{i}" for i in range(classes)]
    meta = write("names", {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "train_list", [batch("a", 20), batch("b", 20)])
    monkeypatch.setattr(kind, "test_list", [batch("c", 10)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": meta[0], "md5": meta[1]})
    return pickle.loads((folder / "c").read_bytes())["data"].reshape(-1, 3, 32, 32), names


@pytest.mark.parametrize(("option", "kind"), [(Cifar10, "CIFAR10"), (Cifar100, "CIFAR100")])
def test_cifar(option, kind, tmp_path, monkeypatch):
    import torchvision.datasets

    kind = getattr(torchvision.datasets, kind)
    pixels, names = write_cifar(tmp_path, monkeypatch, kind)
    data = option(root=str(tmp_path), holdout=5, download=False)(CPU, 0)
    assert data.classes == tuple(names) and data.canonical and data.channels == 3
    assert (len(data.train), len(data.held_out), data.image_size) == (35, 5, 32)
    x, y = whole(data.test)
    assert torch.equal(x, torch.from_numpy(pixels) / 255)
    assert y.tolist() == [i % len(names) for i in range(10)]


def test_svhn(tmp_path, monkeypatch):
    import scipy.io
    import torchvision.datasets

    split_list = {}
    for split, count in (("train", 40), ("test", 20)):
        pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3, count), dtype=np.uint8)
        labels = np.arange(count)[:, None] % 10 + 1  # as published, 10 stands for the digit 0
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": pixels, "y": labels.astype(np.uint8)})
        split_list[split] = ["", file.name, md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    data = SVHN(root=str(tmp_path), holdout=10)(CPU, 0)
    x, y = whole(data.test)
    assert torch.equal(x, torch.from_numpy(pixels.transpose(3, 2, 0, 1)) / 255)
    assert y.tolist() == [(i + 1) % 10 for i in range(20)] and data.classes[0] == "0"


def test_fashion_mnist(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(0).integers(256, size=(count, 28, 28), dtype=np.uint8)
        sizes = np.array([2051, count, 28, 28], ">i4").tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(sizes + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        sizes = np.array([2049, count], ">i4").tobytes()
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(sizes + labels.tobytes())
    data = FashionMNIST(root=str(tmp_path), holdout=10)(CPU, 0)
    x, y = whole(data.test)
    assert torch.equal(x[:, 0], torch.from_numpy(pixels) / 255) and data.channels == 1
    assert y.tolist() == labels.tolist() and data.classes[9] == "Ankle boot"
    for file in folder.iterdir():
        content = file.read_bytes()
        for length in (0, 2, 9, 16, len(content) - 1):
            file.write_bytes(content[:length])
            with pytest.raises(ValueError, match="^root=.*: FashionMNIST/raw/ .* or damaged; put"):
                FashionMNIST(root=str(tmp_path), download=False)(CPU, 0)
        file.write_bytes(content)


def test_missing_files_are_named_and_not_downloaded_unasked(tmp_path):
    with pytest.raises(ValueError, match=r"^root=.*: cifar-10-batches-py/ is missing there or dam"):
        Cifar10(root=str(tmp_path), download=False)(CPU, 0)
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_the_folder_itself_names_the_one_above(tmp_path):
    for kind, folder in ((Cifar10, "cifar-10-batches-py"), (FashionMNIST, "FashionMNIST/raw")):
        (tmp_path / folder).mkdir(parents=True)
        with pytest.raises(ValueError, match=f"the folder itself; dataset.root={tmp_path}$"):
            kind(root=str(tmp_path / folder), download=False)(CPU, 0)


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    def broken(url, root, **_):
        Path(root).mkdir(exist_ok=True)
        (Path(root) / "half").write_bytes(b"half")
        raise URLError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", broken)
    with pytest.raises(
        ValueError, match=r"^root=.*no route to host.*put it there by hand"
    ) as caught:
        Cifar10(root=str(tmp_path / "deep" / "data"))(CPU, 0)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_download_is_moved_into_its_folder(tmp_path, monkeypatch):
    import shutil

    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path / "server", monkeypatch, CIFAR10)

    def served(url, root, **_):
        shutil.copytree(tmp_path / "server", root, dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", served)
    data = Cifar10(root=str(tmp_path / "data"), holdout=2)(CPU, 0)
    assert len(data.test) == 10
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "server"}


def arrays(**changed):
    generator = np.random.default_rng(0)
    values = {
        "x_train": generator.integers(256, size=(20, 6, 6, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": generator.integers(256, size=(8, 6, 6, 3), dtype=np.uint8),
        "y_test": np.arange(8, dtype=np.uint8) % 4,
    } | changed
    return {key: value for key, value in values.items() if value is not None}


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz(tmp_path, channels):
    shape = (6, 6) if channels is None else (6, 6, channels)
    images = {
        f"x_{part}": np.random.default_rng(1).integers(256, size=(n, *shape), dtype=np.uint8)
        for part, n in (("train", 20), ("test", 8))
    }
    np.savez(tmp_path / "mine.npz", **arrays(**images))
    data = Npz(path=str(tmp_path / "mine.npz"), holdout=4)(CPU, 0)
    assert (data.name, data.channels, data.classes) == ("mine", channels or 1, tuple("0123"))
    x, y = whole(data.test)
    expected = torch.from_numpy(images["x_test"]).view(8, 6, 6, -1).permute(0, 3, 1, 2) / 255
    assert torch.equal(x, expected) and y.tolist() == [0, 1, 2, 3] * 2
    assert Npz(path=str(tmp_path / "mine.npz"), name="other", holdout=4)(CPU, 0).name == "other"


MALFORMED = {
    "x_test, y_test missing": arrays(x_test=None, y_test=None),
    "x_train is float32; save pixels as uint8": arrays(x_train=np.ones((20, 6, 6), np.float32)),
    "x_test is int64; save pixels as uint8": arrays(x_test=np.ones((8, 6, 6), int)),
    "x_train has images of 6x5": arrays(x_train=np.ones((20, 6, 5, 3), np.uint8)),
    "x_train has its channels first": arrays(x_train=np.ones((20, 3, 6, 6), np.uint8)),
    "x_train has shape .20, 36.": arrays(x_train=np.ones((20, 36), np.uint8)),
    "x_train has 4 channels": arrays(x_train=np.ones((20, 6, 6, 4), np.uint8)),
    "x_test has shape .0, 6, 6.": arrays(x_test=np.ones((0, 6, 6), np.uint8)),
    r"images of .6, 6, 3. in x_train but of .7, 7, 3.": arrays(x_test=np.ones((8, 7, 7, 3), "u1")),
    "20 images in x_train but 19 labels": arrays(y_train=np.arange(19) % 4),
    "y_train is float64": arrays(y_train=np.arange(20) % 4.0),
    "y_test is int64 .8, 1.": arrays(y_test=np.zeros((8, 1), int)),
    "one class only .3.": arrays(y_train=np.full(20, 3)),
    "4 different labels from 1 to 4; number the classes 0 to 3": arrays(
        y_train=1 + np.arange(20) % 4
    ),
    "2 different labels from 0 to 9": arrays(y_train=np.arange(20) % 2 * 9),
    "2 different labels from -1 to 0": arrays(y_train=np.arange(20) % 2 - 1),
    "label 4 in y_test is not": arrays(y_test=np.full(8, 4)),
    "y_train cannot be read .*no objects": arrays(y_train=np.array([{}] * 20, dtype=object)),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_npz_is_refused(fault, tmp_path):
    np.savez(tmp_path / "mine.npz", **MALFORMED[fault])
    with pytest.raises(ValueError, match=rf"^path=\S*mine.npz: .*{fault}") as caught:
        Npz(path=str(tmp_path / "mine.npz"))(CPU, 0)
    assert "\n" not in str(caught.value)


def test_what_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "cut.npz", **arrays())
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    told = {"one.npy": "single array", "text.npz": "not an .npz", "cut.npz": "not an .npz"}
    for name, fault in (told | {"none.npz": "no such file"}).items():
        with pytest.raises(ValueError, match=f"^path=.*{name}: .*{fault}"):
            Npz(path=str(tmp_path / name))(CPU, 0)
    with pytest.raises(ValueError, match="^path=null: "):
        Npz()(CPU, 0)


def test_who_trains_on_the_test_images_is_refused(tmp_path):
    """A link of one folder to the other, which serves who measures alone."""
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(Refused, match="val is the folder of train"):
        check_apart(ImageFolder(root=str(tmp_path)))
    (tmp_path / "val").unlink()
    check_apart(ImageFolder(root=str(tmp_path)))
