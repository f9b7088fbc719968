import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sat.data import (
    SVHN,
    Batch,
    Cifar10,
    Cifar100,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageNet,
    Npz,
    Timm,
    TinyImageNet,
    epoch_batches,
    evaluation_batches,
)
from sat.data.choice import split_training, stratified
from sat.data.memory import MemorySplit, digits
from sat.rng import RowRng

CPU = torch.device("cpu")
CONF = Path(__file__).parents[1] / "conf" / "dataset"
OPTIONS = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "imagefolder": ImageFolder,
    "imagenet": ImageNet,
    "npz": Npz,
    "svhn": SVHN,
    "timm": Timm,
    "tiny_imagenet": TinyImageNet,
}


def whole(split):
    """All images and labels of a split, as evaluation sees them."""
    batches = list(split.stream(evaluation_batches(torch.arange(len(split)), 64)))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


# --- options -----------------------------------------------------------------------------------


def test_a_subset_is_cifar10_with_four_of_its_keys_changed():
    changed = {"defaults", "limit", "holdout", "depth", "width"}
    assert set(yaml.safe_load((CONF / "cifar10_subset.yaml").read_text())) == changed


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_every_argument_its_default(name):
    text = (CONF / f"{name}.yaml").read_text()
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        values = OmegaConf.to_container(compose("config", [f"dataset={name}"]).dataset)
    module, _, target = values.pop("_target_").rpartition(".")
    option = getattr(importlib.import_module(module), target)
    followed = {key: values.pop(key) for key in ("eps", "norm", "depth", "width")}
    assert text.startswith("# ") and option is OPTIONS[name]
    assert set(values) == {field.name for field in dataclasses.fields(option)}
    assert option(**values) == option()
    assert followed["eps"] >= 1 and followed["depth"] in (10, 18, 50) and followed["width"] <= 1


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        (Digits, {"limit": 0}),
        (Digits, {"holdout": -0.1}),
        (Digits, {"holdout": 1.5}),
        (Digits, {"holdout": float("inf")}),
        (Digits, {"holdout": float("nan")}),
        (Digits, {"image_size": 0}),
        (Digits, {"crop": -1}),
        (ImageFolder, {"limit": -5}),
        (ImageFolder, {"holdout": -1.0}),
        (ImageFolder, {"image_size": 0}),
        (ImageFolder, {"workers": -1}),
        (TinyImageNet, {"crop": -1}),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(option, wrong):
    (key,) = wrong
    with pytest.raises(ValueError, match=rf"^{key}=.*: .+") as caught:
        option(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"limit": 19}, {"limit": 1439}, {"holdout": 9}, {"holdout": 1430}, {"holdout": 0.999}]
)
def test_a_value_that_does_not_suit_the_set_is_refused_by_its_key(wrong):
    (key,) = wrong
    with pytest.raises(ValueError, match=rf"^{key}=.*: .+"):
        Digits(**wrong)(CPU, 0)


# --- which images --------------------------------------------------------------------------------


def test_a_stratified_choice_is_exact():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    for count in range(101):
        chosen = stratified(labels, count, torch.Generator().manual_seed(1))
        share = torch.tensor([0.5, 0.3, 0.2]) * count
        assert chosen.unique().numel() == len(chosen) == count
        assert (torch.bincount(labels[chosen], minlength=3) - share).abs().max() < 1
        assert chosen.tolist() == sorted(chosen.tolist())


def test_training_and_held_out_images_are_apart_and_of_every_class():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 2)
    for limit, holdout, sizes in [
        (None, 0.1, (893, 99)),
        (None, 3, (989, 3)),
        (100, 0.5, (50, 50)),
    ]:
        train, held_out = split_training(labels, limit, holdout, seed=0)
        assert (len(train), len(held_out)) == sizes
        assert not {*train.tolist()} & {*held_out.tolist()}
        assert torch.bincount(labels[train]).min() >= 1
        assert torch.bincount(labels[held_out]).min() >= 1


def test_the_seed_moves_the_held_out_part_and_not_the_limit():
    labels = torch.arange(1000) % 10
    one, two = (split_training(labels, 200, 0.2, seed) for seed in (1, 2))
    assert not torch.equal(one[1], two[1])
    assert torch.equal(torch.cat(one).sort().values, torch.cat(two).sort().values)
    assert torch.equal(one[1], split_training(labels, 200, 0.2, 1)[1])
    assert torch.bincount(labels[one[1]]).tolist() == [4] * 10


def test_a_class_of_one_image_is_refused():
    with pytest.raises(ValueError, match="^holdout=0.1: class 1 has 1 training images"):
        split_training(torch.tensor([0] * 9 + [1]), None, 0.1, 0)


# --- order ---------------------------------------------------------------------------------------


def test_every_image_comes_once_an_epoch_in_full_batches():
    batches = list(epoch_batches(10, 4, 0, 0, 10))
    places = torch.cat([batch.indices for batch in batches]).view(4, 10)
    assert [len(batch.indices) for batch in batches] == [4] * 10
    assert (places.sort(1).values == torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in places}) == 4  # each epoch another order
    assert len({batch.key for batch in batches}) == 10
    assert [batch.start for batch in batches] == list(range(0, 40, 4))


def test_a_step_depends_on_no_other_step_and_on_the_seed():
    every = list(epoch_batches(10, 4, 0, 0, 10))
    for batch, same in zip(every[7:], epoch_batches(10, 4, 0, 7, 10), strict=True):
        assert torch.equal(batch.indices, same.indices) and batch.key == same.key
    other = next(epoch_batches(10, 4, 1, 0, 1))
    assert other.key != every[0].key and not torch.equal(other.indices, every[0].indices)


def test_the_order_does_not_depend_on_the_batch_size():
    orders = [
        torch.cat([batch.indices for batch in epoch_batches(10, size, 0, 0, 60 // size)])
        for size in (1, 4, 15, 30)
    ]
    assert all(torch.equal(order, orders[0]) for order in orders)


def test_evaluation_keeps_the_order_and_augments_nothing():
    batches = list(evaluation_batches(torch.tensor([5, 3, 9]), 2))
    assert [batch.indices.tolist() for batch in batches] == [[5, 3], [9]]
    assert [batch.key for batch in batches] == [None, None]


# --- small sets ----------------------------------------------------------------------------------


def memory_split(crop=2, flip=True, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, channels, 6, 6), dtype=torch.uint8, generator=generator)
    return images, MemorySplit(images, torch.arange(20) % 4, crop, flip)


def test_evaluation_gives_the_stored_pixels():
    images, split = memory_split()
    x, y = whole(split)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.is_contiguous()
    assert torch.equal(x, images / 255) and torch.equal(y, torch.arange(20) % 4)


@pytest.mark.parametrize(("crop", "flip"), [(0, False), (0, True), (1, False), (2, True)])
def test_augmentation_agrees_with_a_loop_over_the_images(crop, flip):
    images, split = memory_split(crop, flip)
    indices = torch.randint(20, (64,))
    ((x, y),) = split.stream([Batch(indices, key=7)])
    seen = set()
    for row, index in enumerate(indices.tolist()):
        rng = RowRng(7, torch.tensor([row]))
        top, left = (int(number * (2 * crop + 1)) for number in rng.uniform("crop", 2)[0])
        expected = F.pad(images[index], [crop] * 4)[:, top : top + 6, left : left + 6]
        mirrored = flip and bool(rng.uniform("flip") < 0.5)
        expected = expected.flip(2) if mirrored else expected
        assert torch.equal(x[row], expected / 255) and y[row] == index % 4
        seen.add((top, left, mirrored))
    assert len(seen) > (2 * crop + 1) ** 2 * (1 + flip) * 0.6


def test_augmentation_depends_on_key_and_row_alone():
    _, split = memory_split()
    ((eight, _),) = split.stream([Batch(torch.arange(8), key=7)])
    ((four, _),) = split.stream([Batch(torch.arange(4), key=7)])
    ((other, _),) = split.stream([Batch(torch.arange(8), key=8)])
    assert torch.equal(eight[:4], four) and not torch.equal(eight, other)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_digits_are_those_of_scikit_learn(elsewhere, monkeypatch, tmp_path):
    """Read from its file, or by its own function where the file lies elsewhere."""
    from sklearn.datasets import load_digits

    if elsewhere:
        package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr("sat.data.memory.find_spec", lambda name: package)
    for ours, theirs in zip(digits(), load_digits(return_X_y=True), strict=True):
        assert ours.shape == theirs.shape and (ours == theirs).all()


def test_digits_need_no_scikit_learn_in_memory():
    code = (
        "import sys, torch; from sat.data import Digits; Digits()(torch.device('cpu'), 0);"
        "print(sorted({'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_digits_have_one_test_set_and_real_pixels():
    one, two = Digits()(CPU, 1), Digits(limit=500, holdout=50)(CPU, 2)
    assert (one.name, one.channels, one.image_size, one.canonical) == ("digits", 1, 8, False)
    assert (len(one.train), len(one.held_out), len(one.test)) == (1294, 144, 359)
    assert (len(two.train), len(two.held_out), len(two.test)) == (450, 50, 359)
    (x, y), (x2, y2) = whole(one.test), whole(two.test)
    assert torch.equal(x, x2) and torch.equal(y, y2) and torch.equal(y, one.test.labels)
    assert not torch.equal(whole(one.held_out)[0], whole(Digits()(CPU, 2).held_out)[0])
    assert x.min() == 0 and x.max() == 1 and torch.bincount(y).min() >= 34
    every = torch.cat([whole(part)[0] for part in (one.train, one.held_out)])
    assert abs(every.mean() - one.mean[0]) < 1e-4 and abs(every.std() - one.std[0]) < 1e-4
    assert (one.mean, one.std) == (two.mean, two.std)


def test_small_sets_are_resized_once():
    x, _ = whole(Digits(image_size=16)(CPU, 0).test)
    small, _ = whole(Digits()(CPU, 0).test)
    assert Digits(image_size=16)(CPU, 0).image_size == 16 and x.shape[1:] == (1, 16, 16)
    expected = F.interpolate(small, (16, 16), mode="bilinear", antialias=True)
    assert (x - expected).abs().max() < 1 / 255


def test_subsets_of_the_test_set():
    data = Digits()(CPU, 0)
    assert torch.equal(data.test_subset(None), torch.arange(359))
    assert torch.equal(data.test_subset(1000), torch.arange(359))
    fixed = data.test_subset(100)
    assert torch.equal(fixed, data.test_subset(100)) and len(fixed) == 100
    assert torch.bincount(data.test.labels[fixed]).min() >= 9
    assert not torch.equal(fixed, data.test_subset(100, seed=0))
    assert not torch.equal(data.test_subset(100, seed=1), data.test_subset(100, seed=0))
    canonical = dataclasses.replace(data, canonical=True)
    assert torch.equal(canonical.test_subset(100), torch.arange(100))
    assert canonical.test_subset(100, seed=0).unique().numel() == 100
    assert not torch.equal(canonical.test_subset(100, seed=0), torch.arange(100))
