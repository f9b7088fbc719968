"""What other people's inputs found: public bug reports of other programs, tried on this one. Each
test names its kind, and asserts what must hold."""

import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import (
    DIGITS,
    FOLDER,
    digits_npz,
    drawn,
    memory_limited,
    noise,
    picture_folder,
    unreadable,
)
from messages import FINISHED
from PIL import Image
from torch import nn

from sat.activations import ReLU, SiLU
from sat.data import Batch, ImageFolder, Loader, Standard, Timm, UnreadableImage, evaluation_batches
from sat.data.images import NUMBERS, PaddedCrop, ResizedCrop, opened, to_rgb
from sat.errors import Stopped
from sat.models import ResNet
from sat.models import Timm as TimmModel
from sat.models.classifier import assemble, check_sight
from sat.models.receptive_field import seen
from sat.models.weights import load_weights
from sat.training.callbacks import Callbacks

CPU = torch.device("cpu")


def images_of(split) -> torch.Tensor:
    batches = evaluation_batches(torch.arange(len(split)), 64)
    return torch.cat([x for x, _ in split.stream(batches)])


def folder_of(root: Path, **options):
    return ImageFolder(root=str(root), **{"image_size": 16, "workers": 0} | options)(CPU, 0)


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


@pytest.fixture
def shapes(tmp_path):
    return picture_folder(tmp_path / "shapes")


def test_hydras_own_keys_move_no_result(sat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sat("-m", "hydra.job.chdir=true", "seed=0", *DIGITS, tiny=False, root=Path("outputs"))
    if done.code == 2:  # refused, before anything runs
        assert "hydra.job.chdir" in done.err and not list(tmp_path.iterdir())
    else:
        assert done.code == 0 and len(done.runs) == 1, "the results are gone"
        assert result_of(done.run)["status"] == "finished"


@pytest.mark.parametrize("kind", ["imagefolder", "npz"])
def test_other_images_under_the_same_names_are_another_run(kind, sat, tmp_path):
    """A data set's identity by names alone."""
    places = []
    for here, picture in (("A", drawn), ("B", noise)):
        (tmp_path / here).mkdir()
        images = picture_folder(tmp_path / here / "images", picture, counts=(12, 6))
        if kind == "npz":
            x, y = images_of(folder_of(images).test), folder_of(images).test.labels
            x, y = (255 * x).byte().permute(0, 2, 3, 1).numpy(), y.numpy()
            x = np.concatenate([x, x], 0) if here == "A" else np.concatenate([x, x[::-1]], 0)
            images = tmp_path / here / "images.npz"
            np.savez(images, x_train=x, y_train=[*y, *y], x_test=x, y_test=[*y, *y])
        places.append(images)
    words = FOLDER if kind == "imagefolder" else [*DIGITS, "dataset=npz", "dataset.limit=null"]
    key = "dataset.root" if kind == "imagefolder" else "dataset.path"
    first = sat(*words, f"{key}={places[0]}", tiny=False)
    assert first.code == 0, first.err
    second = sat(*words, f"{key}={places[1]}", tiny=False)
    if second.code == 2:  # refused
        return
    assert second.code == 0 and len(second.runs) == 2, second.err
    hashes = {result_of(run)["hash"] for run in second.runs}
    assert len(hashes) == 2


def test_sixteen_bits_of_grey_are_scaled_or_refused_by_name(tmp_path):
    """Conversions that lose content without an error."""

    def grey(bits: int):
        def picture(label: int, number: int) -> Image.Image:
            eight = np.asarray(drawn(label, number).convert("L"))
            return Image.fromarray(eight if bits == 8 else eight.astype(np.uint16) * 257)

        return picture

    eight, sixteen = (
        folder_of(picture_folder(tmp_path / str(bits), grey(bits), counts=(4, 4))).test
        for bits in (8, 16)
    )
    try:
        found = images_of(sixteen)
    except UnreadableImage as fault:
        assert re.search("16|I;", str(fault))
    else:
        assert (found - images_of(eight)).abs().max() <= 1.5 / 255


@pytest.mark.parametrize("mode, ending", [("I;16", ".tif"), ("I;16B", ".tif"), ("I", ".ppm")])
def test_other_files_of_sixteen_bits_are_scaled(mode, ending, tmp_path):
    levels = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    if mode == "I;16B":
        levels = levels.astype(">u2")
    path = tmp_path / f"grey{ending}"
    if ending == ".ppm":
        path.write_bytes(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(path)
    with opened(path) as image:
        assert image.mode == mode
        found = np.asarray(to_rgb(image))
    expected = (levels.astype(float) / 257).round()
    assert np.array_equal(found, np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_of_32_bits_are_refused_by_name(kind, shapes):
    path = shapes / "val" / "bar" / "000.tif"
    Image.fromarray(np.full((24, 24), 300, kind)).save(path)
    with pytest.raises(UnreadableImage, match=r"bar/000.tif: ValueError: holds numbers of 32 bits"):
        images_of(folder_of(shapes).test)


def test_a_set_whose_first_images_are_dark_is_trained_on(sat, tmp_path):
    """Conclusions drawn from the first images: sets are often sorted."""
    generator = np.random.default_rng(0)
    x = generator.integers(256, size=(80, 8, 8), dtype=np.uint8)
    y = np.arange(80) % 2
    for dark, code in ((60, 0), (80, 2)):
        x[:dark] //= 20
        np.savez(tmp_path / f"{dark}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        words = [w for w in DIGITS if not w.startswith("dataset")]
        done = sat("dataset=npz", f"dataset.path={tmp_path / f'{dark}.npz'}", *words, tiny=False)
        assert done.code == code, done.err
        assert ("255" in done.err) == (code == 2)


def test_a_moved_set_is_named_by_its_key_when_a_run_is_evaluated(
    sat, shapes, tmp_path, monkeypatch
):
    """A run's keys judged by another composition."""
    done = sat(*FOLDER, f"dataset.root={shapes}", tiny=False)
    assert done.code == 0, done.err
    moved = shapes.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(moved)
    again = sat(
        f"evaluate={done.run}", "evaluation=pgd20", f"dataset.root={moved}", "dataset.workers=0",
        "evaluation.attacks.pgd20.steps=1", "evaluation.masking_checks=0", tiny=False,
    )  # fmt: skip
    assert again.code != 2 and "dataset.root" not in again.err, again.err
    assert again.code == 0, again.err
    assert result_of(done.run)["last"]["robust"]["pgd20"]["images"] == 27


@pytest.mark.parametrize("classes", [2, 3])
def test_autoattack_of_few_classes_is_refused_or_measured(classes, sat, tmp_path):
    """Evaluations that can't be had for a set, found hours later."""
    path = digits_npz(tmp_path / "digits.npz", classes)
    words = [
        *DIGITS, "dataset=npz", f"dataset.path={path}", "dataset.limit=null", "dataset.crop=1",
        "dataset.eps=8", "evaluation=autoattack", "evaluation.limit=4",
    ]  # fmt: skip
    done = sat(*words, tiny=False)
    if done.code == 2:
        assert "classes" in done.err and not done.runs, done.err
    else:
        assert done.code == 0, done.err
        robust = result_of(done.run)["last"]["robust"]
        assert robust["autoattack"]["images"] == 4 and "classes" in done.out + done.err


class Twice(nn.Module):
    """The layout of MadryLab's robustness: an attacker beside the model holds it once more."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.model, self.normalizer = net, Normalise()
        self.attacker = nn.Module()
        self.attacker.model, self.attacker.normalize = net, Normalise()


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("new_mean", torch.full((3, 1, 1), 0.3))
        self.register_buffer("new_std", torch.full((3, 1, 1), 0.4))


def test_weights_that_hold_the_network_twice_are_read(tmp_path, caplog):
    """Second copies and helpers in state dicts."""

    def classifier(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = ResNet(10, width=0.0625)(3, 5, 8)
        return assemble(net, ReLU, [0.5] * 3, [0.25] * 3, (3, 8, 8)).eval()

    theirs, mine = classifier(1), classifier(2)
    state = {f"module.{k}": v for k, v in Twice(theirs.backbone).state_dict().items()}
    torch.save({"model": state, "epoch": 90}, tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "sat"):
        load_weights(mine, str(tmp_path / "w.pt"))
    for key, value in theirs.backbone.state_dict().items():
        assert torch.equal(mine.backbone.state_dict()[key], value), key
    assert mine.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert mine.std.flatten().tolist() == pytest.approx([0.4] * 3)
    assert "attacker" in caplog.text


@pytest.mark.parametrize("kind", ["notebook", "fork", "folder"])
def test_what_systems_leave_in_folders_is_no_image(kind, shapes):
    for name in ("bar", "disc", "ring"):
        if kind == "fork":  # as macOS leaves them
            for split in ("train", "val"):
                head = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(200)
                (shapes / split / name / "._001.png").write_bytes(head)
        else:  # copies of test images, as a notebook or a file manager leaves them
            left = {"notebook": ".ipynb_checkpoints", "folder": ".thumbnails"}[kind]
            shutil.copytree(shapes / "val" / name, shapes / "train" / name / left)
    data = folder_of(shapes)
    assert (len(data.train) + len(data.held_out), len(data.test)) == (72, 27)


def test_what_is_hidden_is_refused_where_timm_would_read_it(shapes):
    options = {"name": "folder", "root": str(shapes), "image_size": 16, "workers": 0}
    sets = Timm(**options, train_split="train", test_split="val")
    assert len(sets(CPU, 0).test) == 27
    (shapes / "val" / "bar" / ".DS_Store").write_bytes(b"")  # is no image to timm either
    sets(CPU, 0)
    shutil.copytree(shapes / "val" / "bar", shapes / "train" / "bar" / ".ipynb_checkpoints")
    with pytest.raises(ValueError, match=r"timm would read .*/\.ipynb_checkpoints as images"):
        sets(CPU, 0)


def test_a_held_out_image_that_is_left_out_is_not_counted(shapes):
    for path in sorted((shapes / "train").glob("*/00[0-5].png")):
        path.write_bytes(b"")
    split = folder_of(shapes, skip_unreadable=True, holdout=24).held_out
    every = torch.arange(24)
    found = split.readable(every)
    ((_, labels),) = split.stream([Batch(every, None)])
    assert torch.equal(found, (labels >= 0).nonzero()[:, 0]) and 0 < len(found) < 24
    assert torch.equal(split.readable(every[:5]), found[found < 5])
    for path in (shapes / "train").glob("*/*.png"):
        path.write_bytes(b"")
    split = folder_of(shapes, skip_unreadable=True, holdout=24).held_out
    with pytest.raises(UnreadableImage, match="none of 24 images can be read"):
        split.readable(every)


def test_a_test_image_that_is_left_out_is_not_counted(shapes, sat):
    """A number that says it leaves out leaves out."""
    for path in sorted((shapes / "val").glob("*/00[0-2].png")):
        path.write_bytes(b"")
    done = sat(*FOLDER, f"dataset.root={shapes}", "dataset.skip_unreadable=true", tiny=False)
    assert done.code == 0, done.err
    assert result_of(done.run)["last"]["clean"]["images"] == 18


def test_a_part_of_which_one_image_is_left_ends_no_training(shapes, sat):
    """Guarantees made at the start and not kept when images drop out."""
    for i, path in enumerate(sorted(shapes.glob("train/*/*.png"))):
        if i % 3 == 0:
            path.write_bytes(b"")
    done = sat(
        *FOLDER, f"dataset.root={shapes}", "dataset.skip_unreadable=true", "model.stem=large",
        "schedule.batch_size=8", "schedule.accumulate=4", tiny=False,
    )  # fmt: skip
    assert done.code == 0, done.err[-500:]
    assert result_of(done.run)["status"] == "finished"


@pytest.mark.parametrize("left", [0, 1, 2, 3, 5, 8])
def test_a_batch_of_which_images_are_left_out_has_two_at_least(left, shapes):
    """Whatever is left of a batch; of nothing the reason is told."""
    for i, path in enumerate(sorted(shapes.glob("train/*/*.png"))):
        if i % 9 >= left:
            path.write_bytes(b"")
    data = folder_of(shapes, skip_unreadable=True, holdout=3)
    first = torch.arange(len(data.train))
    readable = data.train.readable(first) if left else first[:0]
    others = first[~torch.isin(first, readable)]
    batch = torch.cat([readable[:left], others[: 8 - left]])
    loader = Loader(data, Standard(), lambda *given: batch, 8, seed=0)
    stream = loader.stream(torch.arange(8), 0, 1)
    if not left:
        with pytest.raises(UnreadableImage, match="no image of a whole batch"):
            next(stream)
        return
    ((x, y),) = stream
    assert len(x) == len(y) == max(left, 2)


@pytest.mark.parametrize("kind", ["file", "class"])
def test_names_that_are_no_utf8_run(kind, shapes, sat):
    """Strict encoding of foreign text."""
    for split in ("train", "val"):
        inside = shapes / split / "bar"
        old, new = (
            (inside / "000.png", os.fsencode(inside) + b"/caf\xe9.png")
            if kind == "file"
            else (inside, os.fsencode(shapes / split) + b"/caf\xe9")
        )
        os.rename(os.fsencode(old), new)
    done = sat(*FOLDER, f"dataset.root={shapes}", tiny=False)
    assert done.code == 0, done.err[-500:]
    assert result_of(done.run)["test_images"] and "Traceback" not in done.err


def test_a_folder_that_cannot_be_listed_is_an_error(shapes):
    """Read errors taken for emptiness."""
    inner = shapes / "val" / "bar" / "more"
    inner.mkdir()
    for path in sorted((shapes / "val" / "bar").glob("00[0-4].png")):
        path.rename(inner / path.name)
    assert len(folder_of(shapes).test) == 27
    with unreadable(inner), pytest.raises((ValueError, OSError), match="bar/more"):
        folder_of(shapes)


@pytest.mark.parametrize("folder", ["train", "val/bar"])
def test_a_folder_of_a_set_that_cannot_be_listed_is_an_error_too(folder, shapes):
    timm = Timm(name="folder", root=str(shapes), image_size=16, test_split="val")
    with unreadable(shapes / folder):
        with pytest.raises(ValueError, match=f"{folder} can't be listed"):
            folder_of(shapes)
        with pytest.raises(ValueError, match=folder):
            timm(CPU, 0)


@pytest.mark.parametrize("numbers", [None, [0.3] * NUMBERS])
def test_other_cuts_of_thin_pictures_are_small_too(numbers):
    for cut in (ResizedCrop(224), PaddedCrop(224, 4)):
        with memory_limited(2 << 30):
            assert cut(Image.new("RGB", (1, 40000)), numbers).size == (224, 224)


def test_a_picture_that_is_less_thin_is_cut_as_before():
    wide = Image.fromarray(
        np.random.default_rng(0).integers(256, size=(20, 160, 3), dtype=np.uint8)
    )
    scaled = wide.resize((128, 16), Image.Resampling.BILINEAR)
    assert ResizedCrop(14)(wide, None).tobytes() == scaled.crop((57, 1, 71, 15)).tobytes()


@pytest.mark.parametrize("size", [(1, 40000), (40000, 1)])
def test_a_thin_picture_is_cut_before_it_is_enlarged(size):
    """Bounds on what comes in, not on what is made of it."""
    thin, cut = Image.new("RGB", size, (200, 30, 30)), None
    with memory_limited(2 << 30):
        try:
            cut = ResizedCrop(224)(thin, None)
        except MemoryError:
            pass
    assert cut is not None, "asked for more than 2 GB"
    assert cut.size == (224, 224) and cut.getextrema() == ((200, 200), (30, 30), (30, 30))


def test_a_kernel_that_must_be_positive_is_no_activation():
    """ReLU for positivity, not for nonlinearity."""
    net = assemble(
        TimmModel("efficientvit_b0")(3, 10, 32), SiLU, [0.5] * 3, [0.25] * 3, (3, 32, 32)
    )
    kernels = [m for name, m in net.named_modules() if name.endswith("kernel_func")]
    x = torch.tensor([-1.0, 0.0, 2.0])
    assert kernels and all((kernel(x) >= 0).all() for kernel in kernels)
    assert any(isinstance(m, SiLU) for m in net.modules())  # the rest is swapped
    assert sum("kernel_func (ReLU)" in gate for gate in net.swap.gates) == len(kernels)


def test_a_network_that_has_no_gradient_is_asked_for_none():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return (x > 0).float().mean((1, 2, 3))[:, None] * self.scale.round()

    net = Counts()
    assert seen(net, torch.rand(1, 3, 8, 6)) == (8, 6)
    assert not net.scale.any() and net.scale.grad is None


class h_sigmoid(nn.Module):  # noqa: N801, as it is copied from network to network
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class Attended(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.first, self.act, self.inner = nn.Conv2d(3, 10, 1), nn.ReLU6(), inner

    def forward(self, x):
        x = self.act(self.first(x))
        return (x * self.inner(x)).mean((2, 3))


def test_the_parts_of_a_hard_sigmoid_are_no_activations():
    gate = nn.Sequential(nn.Conv2d(10, 10, 1), h_sigmoid())
    net = assemble(Attended(gate), SiLU, [0.5] * 3, [0.25] * 3, (3, 8, 8))
    assert net.swap.gates == ("inner.1.relu (ReLU6)",) and net.swap.places == ("act",)
    with pytest.raises(ValueError, match="calls torch.Tensor.mul .*outside any module"):
        assemble(Attended(h_sigmoid()), SiLU, [0.5] * 3, [0.25] * 3, (3, 8, 8))  # a hard swish


@pytest.mark.parametrize("name, size, unseen, whole", [
    ("vit_tiny_patch16_224", 40, "36.0%", 32), ("convnext_atto", 39, "14.8%", 36),
    ("convnext_atto", 33, None, 32),
])  # fmt: skip
def test_a_border_that_no_patch_sees_is_refused_or_said(name, size, unseen, whole, caplog):
    """What a network silently ignores."""

    def build(size: int, trains: bool = True) -> None:
        net = TimmModel(name)(3, 10, size)
        net = assemble(net, SiLU, [0.5] * 3, [0.25] * 3, (3, size, size))
        check_sight(net, size, trains)

    with caplog.at_level(logging.WARNING, "sat"):
        if unseen is None:  # little of it is said
            build(size)
            assert "6.0% of the pixels of 33x33 images move nothing" in caplog.text
        else:
            with pytest.raises(ValueError, match=rf"^name={name}: {unseen} of .*={whole};"):
                build(size)
            build(size, trains=False)  # what is as it is may be measured
            assert "move nothing" in caplog.text
        caplog.clear()
        build(whole)
    assert "move nothing" not in caplog.text


class Root(nn.Module):
    """Two classes by the mean; the gradient of dark images is NaN, of a square root at 0."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        nothing = torch.sqrt(mean * (mean > 0.7)) * 0
        return torch.stack([0.5 - mean + nothing, mean - 0.5], 1)


def dark_and_bright():
    x = torch.cat([torch.full((4, 1, 8, 8), 0.1), torch.full((4, 1, 8, 8), 0.9)])
    return x, torch.tensor([0] * 4 + [1] * 4)


BALLS = {"linf": 8.0, "l2": 128.0}


def test_no_attack_makes_an_image_of_a_gradient_that_is_none():
    """Verdicts that don't look at the point: the same images go on where there is a gradient."""
    from sat.attacks import APGD, FAB, FGSM, PGD, Multi

    x, y = dark_and_bright()
    attacks = [Multi({"linf": 8.0, "l1": 800.0}, 3)]
    for norm, eps in {**BALLS, "l1": 800.0}.items():
        attacks += [PGD(eps, 5, norm=norm), FGSM(eps, norm), APGD(eps, 3, norm=norm)]
        attacks += [FAB(eps, 3, norm)] if norm != "l1" else []
    for attack in attacks:
        x_adv = attack(Root().eval(), x, y)
        moved, size = (x_adv - x).flatten(1), attack.eps / 255 + 1e-5
        order = {"linf": float("inf"), "l2": 2, "l1": 1}[attack.norm]
        assert (x_adv >= 0).all() and (x_adv <= 1).all(), attack
        assert isinstance(attack, Multi) or (moved.norm(p=order, dim=1) <= size).all(), attack
        assert isinstance(attack, FAB) or (moved[4:] != 0).any(1).all(), attack


def test_no_image_outside_the_ball_decides():
    from sat.attacks import PGD
    from sat.attacks.outcomes import AttackOutcomes
    from sat.attacks.series import ensemble_of
    from sat.evaluation.measure import measure

    x, y = dark_and_bright()
    for norm, eps in BALLS.items():
        judge = ensemble_of(PGD(eps, 5, norm=norm), 1, 8)
        outcomes = AttackOutcomes.new(judge.names, 8)
        measure(Root().eval(), iter([(torch.arange(8), x, y)]), judge, 0, outcomes)
        assert outcomes.robust.all(), norm


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_no_part_of_the_ensemble_fells_by_an_image_outside_the_ball(attack, norm):
    from sat.attacks import FastAutoAttack
    from sat.attacks.outcomes import STANDS

    x, y = dark_and_bright()
    if attack in ("apgd-t", "fab-t"):  # more classes, as they need; none of them ever wins
        root = Root()

        class Net(nn.Module):
            def forward(self, x):
                return torch.nn.functional.pad(root(x), (0, 2), value=-9.0)

        net = Net()
    else:
        net = Root()
    verdicts = FastAutoAttack(BALLS[norm], norm, attacks=(attack,)).verdicts(net.eval(), x, y)
    assert (verdicts == STANDS).all()


def test_a_class_named_with_dollars_is_drawn(shapes, sat):
    """Foreign text read as markup."""
    for split in ("train", "val"):
        (shapes / split / "bar").rename(shapes / split / "$_$ or $^$")
    done = sat(
        *FOLDER, f"dataset.root={shapes}", "evaluation=curves", "evaluation.limit=9", tiny=False
    )
    assert done.code == 0, done.err[-500:]
    assert result_of(done.run)["status"] == "finished"


def test_runs_set_aside_are_not_on_the_dashboard(sat):
    """Places hidden from our scripts alone."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    first = sat(*DIGITS, tiny=False)
    again = sat(*DIGITS, "record.fresh=true", tiny=False)
    assert (first.code, again.code) == (0, 0), again.err
    dashboard = EventMultiplexer()
    dashboard.AddRunsFromDirectory(str(again.root))
    assert {*dashboard.Runs()} == {again.run.name, ".hparams"}  # whose columns all runs share


def test_a_value_with_an_equals_sign_is_told_by_its_key(sat):
    done = sat("evaluate=w/epoch=3.ckpt", *DIGITS, tiny=False)
    assert done.code == 2
    assert "evaluate" in done.err and "w/epoch=3.ckpt" in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err


@pytest.mark.parametrize("word", ["dataset.root=/a=b", "model.weights=a b{c", "model.name=a~b"])
def test_other_values_that_cannot_be_read_are_told_by_their_keys(word, sat):
    done = sat(word, tiny=False)
    key, _, value = word.partition("=")
    assert done.code == 2 and f"! {word}: can't be read" in done.err
    assert f"'{key}=\"{value}\"'" in done.err


def test_what_is_passed_over_is_told_once(shapes, caplog):
    for name in ("a.heic", "b.HEIC", "readme.txt", "noending", ".hidden.heic"):
        (shapes / "train" / "bar" / name).write_bytes(b"no image that is read")
    with caplog.at_level(logging.WARNING, "sat"):
        for _ in range(2):
            folder_of(shapes)
    assert caplog.text.count("are passed over") == 1
    assert "4 files of other endings (2 .heic" in caplog.text


@pytest.mark.parametrize("ending, kind", [(".jfif", "JPEG"), (".gif", "GIF")])
def test_images_of_other_endings_are_read_or_told(ending, kind, shapes, caplog):
    for path in sorted(shapes.glob("*/bar/00[0-4].png")):
        Image.open(path).convert("RGB").save(path.with_suffix(ending), kind)
        path.unlink()
    with caplog.at_level(logging.WARNING, "sat"):
        data = folder_of(shapes)
    images = len(data.train) + len(data.held_out) + len(data.test)
    assert ending in caplog.text or images == 72 + 27


def test_a_closed_terminal_saves_and_stops(sat, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        done = hung_up(sat, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.code == 129, (done.code, done.err)
    assert (done.run / "checkpoints/last.pt").is_file() and not (done.run / "result.json").exists()


def test_nohup_is_left_alone(sat, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = hung_up(sat, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.code == 0 and result_of(done.run)["status"] == "finished"


def hung_up(sat, tmp_path):
    """A training that gets SIGHUP after its first checkpoint."""

    def hang_up() -> None:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("outputs/*/checkpoints/*.pt")) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGHUP)

    thread = threading.Thread(target=hang_up)
    thread.start()
    try:
        return sat(*DIGITS, "schedule.epochs=30", "validation.attack.steps=1", tiny=False)
    finally:
        thread.join()


def changed_npz(path: Path, count: int) -> None:
    """An npz of 80 + 40 images, of which `count` to train on are others than before."""
    generator = np.random.default_rng(0)
    arrays = {f"x_{p}": generator.integers(256, size=(n, 8, 8), dtype=np.uint8)
              for p, n in (("train", 80), ("test", 40))}  # fmt: skip
    arrays["x_train"][:count] = 255 - arrays["x_train"][:count]
    np.savez(path, **arrays, y_train=np.arange(80) % 2, y_test=np.arange(40) % 2)


NPZ = [w for w in DIGITS if not w.startswith("dataset")]


def test_a_training_goes_on_with_no_other_images(sat, tmp_path, monkeypatch):
    """Images that changed under a run: between its stop and its resume."""
    path = tmp_path / "set.npz"
    words = ["dataset=npz", f"dataset.path={path}", *NPZ, "schedule.epochs=3"]
    changed_npz(path, 0)
    look = Callbacks.look

    def stop(self, state):
        look(self, state)
        if state.step == 2:
            self.save(state)
            raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Callbacks, "look", stop)
        stopped = sat(*words, tiny=False)
    assert stopped.code == 143
    last = stopped.run / "checkpoints/last.pt"
    kept = last.read_bytes()
    changed_npz(path, 67)
    resumed = sat(*words, tiny=False)
    assert resumed.code == 0 and len(resumed.runs) == 2, resumed.err  # begun anew, as another run
    assert last.read_bytes() == kept and not (last.parent.parent / "result.json").exists()


def test_a_folder_of_other_pixels_under_the_same_names_is_told_nothing(shapes, sat):
    """Images that changed under a run: corrupted copies, as ImageNet-C has them, in its place."""
    first = sat(*FOLDER, f"dataset.root={shapes}", tiny=False)
    for number, file in enumerate(sorted((shapes / "val").rglob("*.png"))):
        noise(0, number).save(file)
    second = sat(f"evaluate={first.run}", tiny=False)
    assert second.code == 2
    third = sat(*FOLDER, f"dataset.root={shapes}", tiny=False)
    assert third.code == 0 and len(third.runs) == 2 and FINISHED not in third.out


@pytest.mark.parametrize("quick", [False, True])
def test_more_restarts_than_a_byte_counts_are_measured(quick):
    """Narrow integers that a count outgrows."""
    from sat.attacks import PGD
    from sat.attacks.outcomes import AttackOutcomes
    from sat.attacks.series import ensemble_of
    from sat.rng import RowRng

    x, y = dark_and_bright()
    ensemble = ensemble_of(PGD(8.0, 1), 130, 8, quick)
    outcomes = AttackOutcomes.new(ensemble.names, len(x))
    ensemble.run(Root().eval(), x, y, RowRng(0, torch.arange(len(x))), outcomes)
    assert outcomes.robust.all() and (outcomes.passed == len(ensemble.names)).all()
    assert len(ensemble.names) == 130


def test_names_that_look_alike_are_told(shapes):
    """Names equal on the screen: macOS writes an accent as a sign of its own."""
    (shapes / "train" / "bar").rename(shapes / "train" / "caf\u00e9")
    (shapes / "val" / "bar").rename(shapes / "val" / "cafe\u0301")
    with pytest.raises(ValueError, match="looks alike, written with other signs"):
        folder_of(shapes)
    (shapes / "val" / "cafe\u0301").rename(shapes / "val" / "cave")
    with pytest.raises(ValueError, match="is in train but not in val$"):
        folder_of(shapes)


def test_pillow_warns_of_nothing_that_is_not_read(shapes):
    """Warnings of a library, in the middle of a bar; here they are errors."""
    first, second = sorted((shapes / "val" / "bar").glob("*.png"))[:2]
    colours = Image.open(first).convert("P")
    before = np.asarray(colours.convert("RGB"))
    colours.save(first, transparency=bytes(10))
    with opened(first) as image:
        assert image.info["transparency"] and np.array_equal(np.asarray(to_rgb(image)), before)
    described = Image.Exif()
    described[0x0112] = 6
    Image.open(second).save(second.with_suffix(".jpg"), exif=described.tobytes()[:-10])
    second.unlink()
    assert len(images_of(folder_of(shapes).test)) == 27


def test_names_move_no_cursor(shapes, sat):
    """Escapes of foreign text on the terminal."""
    for split in ("train", "val"):
        (shapes / split / "bar").rename(shapes / split / "\x1b[2Jbar")
    (shapes / "val" / "disc" / "000.png").rename(shapes / "val" / "disc" / "\x1b]0;a\x07.png")
    (shapes / "val" / "disc" / "\x1b]0;a\x07.png").write_bytes(b"")
    words = [
        *FOLDER,
        f"dataset.root={shapes}",
        "dataset.name='a\x1b[2J'",
        "dataset.skip_unreadable=true",
    ]
    done = sat(*words, tiny=False)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err and "\\x1b]0;a\\x07.png" in done.err
