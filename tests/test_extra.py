"""Images beside a data set, mixed into each batch: their ratio, their labels, their file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import RESUMED
from test_config import spec

from sat.data import Digits, Loader, MixUp, Standard, epoch_batches
from sat.data.extra import fingerprint_of, read
from sat.data.memory import MemorySplit
from sat.data.samplers import Epochs, Mixture
from sat.training.preflight import check_sampler

CPU, COUNT = torch.device("cpu"), 90


def arrays(soft: bool = False, size: int = 8, classes: int = 10, seed: int = 0) -> dict:
    """Grey images, each of one level that tells its number, from 100 on."""
    generator = np.random.default_rng(seed)
    label = generator.integers(classes, size=COUNT)
    label[:classes] = range(classes)
    if soft:
        label = generator.dirichlet(np.ones(classes), size=COUNT).astype(np.float32)
    image = np.full((COUNT, size, size), 100, np.uint8)
    image += np.arange(COUNT, dtype=np.uint8)[:, None, None]
    return {"image": image, "label": label}


@pytest.fixture
def file(tmp_path):
    def write(save=np.savez, name="made.npz", **changed):
        save(tmp_path / name, **changed)
        return str(tmp_path / name)

    return write


def mixed(path: str, fraction: float = 0.7, size: int = 20, augment=None, **words) -> Loader:
    data = Digits(crop=0, extra=path, extra_fraction=fraction, **words)(CPU, 0)
    return Loader(data, augment or Standard(), data.mixture, size, seed=3)


def numbers(x: torch.Tensor) -> torch.Tensor:
    """Which images beside the set they are; -1 for the set's own."""
    levels = (x[:, 0] * 255).round().flatten(1).long()
    same = (levels == levels[:, :1]).all(1) & (levels[:, 0] >= 100)
    return torch.where(same, levels[:, 0] - 100, -1)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_holds_the_files_images_with_their_labels_at_the_ratio(file, save, soft):
    made = arrays(soft)
    own = mixed(file(save, **made), 0.7)
    labels = torch.from_numpy(made["label"])
    assert len(own.data.train) == 1294 and own.data.sizes == (1294, COUNT)
    seen = []
    for x, y in own.stream(torch.arange(20), 0, 30):
        which = numbers(x)
        beside = which >= 0
        assert int(beside.sum()) == 14 and y.shape == ((20, 10) if soft else (20,))
        torch.testing.assert_close(y[beside], labels[which[beside]])
        assert not soft or torch.equal(y[~beside].sum(1), torch.ones(6))
        seen.append(which[beside])
    assert torch.cat(seen).unique().numel() > 85  # with replacement, of all of them


def test_an_epoch_counts_images_of_both_and_each_of_the_sets_own_comes_in_turn(file):
    """As many images as the set has: what a file adds does not lengthen a training."""
    own = mixed(file(**arrays()), 0.5, size=100)
    steps = [own.sampler(own.seed, step, 100, own.data.sizes) for step in range(52)]
    real = torch.cat([indices[indices < 1294] for indices in steps])
    counts = real.bincount(minlength=1294)
    assert len(real) == 52 * 50 and counts.sum() == 2600 and set(counts.tolist()) == {2, 3}


def test_the_ratio_and_the_images_are_the_same_under_resume_and_in_parts(file):
    own = mixed(file(**arrays()), 0.7, augment=MixUp())
    every = list(own.stream(torch.arange(20), 0, 6))
    for (x, y), (a, b) in zip(every[4:], own.stream(torch.arange(20), 4, 6), strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)
    for rows in (torch.tensor([3, 4, 5, 19]), torch.tensor([0])):
        for (x, y), (a, b) in zip(every, own.stream(rows, 0, 6), strict=True):
            assert torch.equal(x[rows], a) and torch.equal(y[rows], b)


def test_images_beside_the_set_are_cut_and_mirrored_like_its_own(file):
    made = arrays()
    made["image"] = np.random.default_rng(1).integers(256, size=(COUNT, 8, 8), dtype=np.uint8)
    data = Digits(crop=2, flip=True, extra=file(**made))(CPU, 0)
    (batch,) = epoch_batches(data.sizes, 20, 3, 0, 1, data.mixture)
    ((x, _),) = data.train.stream([batch])
    beside = (batch.indices >= 1294).nonzero()[:, 0]
    part = replace(batch.part(beside), indices=batch.indices[beside] - 1294)
    alone = MemorySplit(torch.from_numpy(made["image"])[:, None], torch.zeros(COUNT), 2, True)
    ((expected, _),) = alone.stream([part])
    assert torch.equal(x[beside], expected)


def test_pixels_stay_in_a_file_that_is_not_compressed(file):
    made = arrays()
    there, unpacked = read(file(**made)), read(file(np.savez_compressed, "packed.npz", **made))
    assert isinstance(there.images, np.memmap) and not isinstance(unpacked.images, np.memmap)
    assert np.array_equal(there.images, unpacked.images)
    assert there.digest() == unpacked.digest()


def test_the_run_is_known_by_the_images_wherever_they_lie(file, tmp_path):
    made = arrays()
    path, other = file(**made), file(name="moved.npz", **made)
    alone, first = spec(), spec(f"dataset.extra={path}")
    assert first.hash != alone.hash and first.title.startswith("digits-made-")
    assert spec(f"dataset.extra={other}").hash == first.hash
    assert spec(f"dataset.extra={path}", "dataset.extra_fraction=0.5").hash != first.hash
    assert spec("dataset.extra_fraction=0.5").hash == alone.hash  # of nothing
    made["label"][3] = (made["label"][3] + 1) % 10
    assert spec(f"dataset.extra={file(**made)}").hash != first.hash
    changed = arrays()
    changed["image"][7, 3, 3] += 1
    assert fingerprint_of(file(name="one.npz", **changed)) != first.identity["dataset"]["extra"]
    before, now = (Digits(extra=p)(CPU, 0).train.digest() for p in (other, path))
    assert before != now  # a resume meets other images


WRONG = {
    "size": (arrays(size=9), "holds images of 9x9 pixels in 1 channels, and the set's are of 8x8"),
    "colour": ({**arrays(), "image": np.zeros((COUNT, 8, 8, 3), np.uint8)}, "in 3 channels"),
    "classes": (arrays(classes=9), "is of 9 classes, and the set of 10"),
    "soft classes": (arrays(True, classes=12), "is of 12 classes, and the set of 10"),
    "floats": ({**arrays(), "image": np.zeros((COUNT, 8, 8))}, "image is float64; save pixels as"),
    "no label": ({"image": arrays()["image"]}, "label missing; the file holds image"),
    "length": ({**arrays(), "label": np.zeros(3, int)}, "90 images but 3 labels"),
    "no shares": ({**arrays(), "label": np.ones((COUNT, 10))}, "holds rows that are no probabilit"),
    "not finite": ({**arrays(), "label": np.full((COUNT, 10), np.nan)}, "no probabilities"),
    "negative": ({**arrays(), "label": np.arange(COUNT) - 1}, "holds the label -1"),
    "words": ({**arrays(), "label": np.full(COUNT, "cat")}, "save whole numbers"),
    "scalar": ({**arrays(), "label": np.array(3)}, "save whole numbers"),
    "one": ({**arrays(), "image": np.zeros((0, 8, 8), np.uint8)}, "image has shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_another_file_is_refused_by_the_key_in_one_line(file, name):
    changed, says = WRONG[name]
    with pytest.raises(ValueError, match=r"^extra=[^\n]*made.npz: [^\n]*$") as refused:
        Digits(extra=file(**changed))(CPU, 0)
    assert says in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_what_is_no_npz_file_is_refused_too(tmp_path, content):
    path = tmp_path / "made.npz"
    with pytest.raises(ValueError, match="no such file"):
        read(str(path))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not an .npz file; write one with numpy.savez"):
        read(str(path))


def test_the_command_line_says_it_in_one_line(sat, file):
    for words, says in (
        (["dataset.extra=/nowhere.npz"], "dataset.extra=/nowhere.npz: no such file"),
        ([f"dataset.extra={file(name='other.npz', **arrays(size=9))}"], "9x9 pixels in 1 channels"),
        (["dataset.extra_fraction=1"], "dataset.extra_fraction=1.0: is a share of each batch"),
        (["dataset.extra_fraction=0"], "dataset.extra_fraction=0.0: is a share of each batch"),
        ([f"dataset.extra={file(**arrays())}", "dataset.extra_fraction=0.001"],
         "dataset.extra_fraction=0.001: of 32 images a batch is not one"),
    ):  # fmt: skip
        done = sat(*words)
        assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_sampler_of_ones_own_takes_both_sets(file):
    data = Digits(extra=file(**arrays()))(CPU, 0)
    for sampler in (Epochs(), Mixture(0.5)):
        check_sampler(Loader(data, Standard(), sampler, 20, seed=0))


def test_a_run_that_is_stopped_goes_on_as_if_never_stopped(sat, file, tmp_path, monkeypatch):
    """With generated images, soft labels and mixed ones, to the bit."""
    from sat.training import loop

    words = [f"dataset.extra={file(**arrays(soft=True))}", "augment=cutmix", "seed=5",
             "record.checkpoint_minutes=0"]  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = sat(*words, root=whole)
    assert done.code == 0, done.err
    assert "0.7 of each batch from" in done.out and "augment: cutmix alpha=1" in done.out
    real, count = loop.attempt, []

    def strike(state, x, y):
        count.append(y.shape)
        if len(count) == 4:
            raise KeyboardInterrupt
        real(state, x, y)

    monkeypatch.setattr(loop, "attempt", strike)
    assert sat(*words, root=stopped).code
    assert count[0] == (32, 10)
    monkeypatch.undo()
    again = sat(*words, root=stopped)
    assert again.code == 0 and RESUMED in again.out
    assert done.run.name == again.run.name and "digits-made-" in done.run.name
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
              for run in (done.run, again.run)]  # fmt: skip
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
