"""Augmentation on the device: against torchvision's one image at a time, and whoever asks for a
batch."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as V
from conftest import small_network
from guard import HostAsked, nothing_asks_the_host
from scipy.stats import beta, kstest
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

import sat.data.operations as ops
from sat.attacks import PGD
from sat.config import composed
from sat.data import (
    IDBH,
    CutMix,
    Cutout,
    Digits,
    Jitter,
    Loader,
    MixUp,
    RandAugment,
    Standard,
    TimmAugment,
    Unchanged,
    epoch_batches,
)
from sat.data.augment import symmetric_beta
from sat.data.policies import NAMES, POLICY, crop_shift, erase
from sat.data.samplers import Epochs
from sat.data.timm_augment import INCREASING
from sat.distributed import World
from sat.errors import Refused
from sat.objectives import Adversarial
from sat.rng import RowRng, seed_of
from sat.training.preflight import check_augment, check_training

CPU, CLASSES, SIZE = torch.device("cpu"), 10, 12
EVERY = [Standard(), Unchanged(), Cutout(5), MixUp(), CutMix(), RandAugment(2, 20), IDBH("strong"),
         Jitter(), TimmAugment()]  # fmt: skip
names = lambda augment: type(augment).__name__  # noqa: E731


def pixels(count: int, channels: int = 3, size: int = SIZE, seed: int = 0) -> Tensor:
    """Images of 256 levels: smooth, and every one of another range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    x = nn.functional.interpolate(coarse, size, mode="bilinear")
    low = torch.rand(count, 1, 1, 1, generator=generator) * 0.5
    x = low + (1 - low) * x * torch.rand(count, 1, 1, 1, generator=generator)
    return (x * 255).round() / 255


def one_by_one(x: Tensor, reference, *strengths: Tensor) -> Tensor:
    own = zip(x, *(s.tolist() for s in strengths), strict=True)
    return torch.stack([reference(image, *numbers) for image, *numbers in own])


def of_8_bits(reference):
    """A reference for images of 256 levels, applied to those in [0, 1]."""
    return lambda image, *given: reference((image * 255).round().byte(), *given).float() / 255


# each operation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "saturation", "contrast", "sharpness"])
def test_a_blend_is_torchvisions_with_each_image_of_its_own_factor(name, channels):
    x, factor = pixels(8, channels), torch.linspace(0.1, 1.9, 8)
    expected = one_by_one(x, getattr(V, f"adjust_{name}"), factor)
    torch.testing.assert_close(getattr(ops, name)(x, factor), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, SIZE])
def test_what_has_no_strength_is_torchvisions(size):
    x = torch.cat([pixels(6, size=size), torch.full((1, 3, size, size), 0.4)])
    expected = one_by_one(x, V.autocontrast)
    torch.testing.assert_close(ops.autocontrast(x), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ops.equalize(x), one_by_one(x, of_8_bits(V.equalize)))
    assert torch.equal(ops.sharpness(x, torch.ones(7)), x)


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_posterize_and_solarize_are_torchvisions(bits):
    x = pixels(6)
    torch.testing.assert_close(
        ops.posterize(x, bits), one_by_one(x, of_8_bits(lambda image: V.posterize(image, bits)))
    )
    expected = one_by_one(x, lambda image: V.solarize(image, bits / 10))
    assert torch.equal(ops.solarize(x, bits / 10), expected)


def test_equalize_of_many_levels_is_torchvisions():
    """A large image, where a histogram's step is not 0."""
    x = pixels(3, size=64)
    ours = ops.equalize(x)
    assert (ours != x).any()
    torch.testing.assert_close(ours, one_by_one(x, of_8_bits(V.equalize)))


def test_a_rotation_is_torchvisions():
    x, degrees = pixels(7, size=15), torch.tensor([-28.3, -9.7, -1.0, 0.0, 3.3, 12.1, 29.0])
    ours = ops.warp(x, ops.rotation(degrees), torch.zeros(7, 2))
    expected = one_by_one(x, V.rotate, degrees)
    assert (ours != expected).float().mean() < 0.002  # a tie between two neighbours
    assert torch.equal(ours[3], x[3])


@pytest.mark.parametrize("vertical", [False, True])
def test_a_shear_is_torchvisions(vertical):
    x, slope = pixels(5, size=15), torch.tensor([-0.33, -0.13, 0.0, 0.07, 0.29])
    ours = ops.warp(x, ops.shear(slope, torch.tensor(vertical).expand(5)), torch.zeros(5, 2))

    def reference(image, slope):
        degrees = math.degrees(math.atan(slope))
        shear = [0.0, degrees] if vertical else [degrees, 0.0]
        return V.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear)

    assert torch.equal(ours, one_by_one(x, reference, slope))


# policies -----------------------------------------------------------------------------------------


def randaugments_reference(magnitude: int, size: int):
    """torchvision's `_apply_image_or_video_transform` by its public functions, for one image."""
    share = magnitude / 30
    affine = lambda image, **given: V.affine(  # noqa: E731
        image, **{"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **given}
    )
    degrees = lambda s: math.degrees(math.atan(s * 0.3 * share))  # noqa: E731
    pixels = int(150 / 331 * size * share)
    return {
        "identity": lambda image, s: image,
        "shear_x": lambda image, s: affine(image, shear=[degrees(s), 0.0], center=[0, 0]),
        "shear_y": lambda image, s: affine(image, shear=[0.0, degrees(s)], center=[0, 0]),
        "translate_x": lambda image, s: affine(image, translate=[int(s) * pixels, 0]),
        "translate_y": lambda image, s: affine(image, translate=[0, int(s) * pixels]),
        "rotate": lambda image, s: V.rotate(image, s * 30 * share),
        "brightness": lambda image, s: V.adjust_brightness(image, 1 + s * 0.9 * share),
        "color": lambda image, s: V.adjust_saturation(image, 1 + s * 0.9 * share),
        "contrast": lambda image, s: V.adjust_contrast(image, 1 + s * 0.9 * share),
        "sharpness": lambda image, s: V.adjust_sharpness(image, 1 + s * 0.9 * share),
        "posterize": lambda image, s: of_8_bits(V.posterize)(image, 8 - round(4 * share)),
        "solarize": lambda image, s: V.solarize(image, 1 - share),
        "autocontrast": lambda image, s: V.autocontrast(image),
        "equalize": lambda image, s: of_8_bits(V.equalize)(image),
    }


@pytest.mark.parametrize("magnitude", [0, 9, 17])
def test_randaugment_is_torchvisions_with_the_same_operation_and_sign(magnitude):
    reference = randaugments_reference(magnitude, 33)
    assert tuple(reference) == POLICY
    x = pixels(2 * len(POLICY), size=33)
    chosen = torch.arange(len(POLICY)).repeat(2)
    signs = torch.tensor([-1.0, 1.0]).repeat_interleave(len(POLICY))
    ours = RandAugment(1, magnitude).apply(x, chosen, signs)
    for k, (image, mine) in enumerate(zip(x, ours, strict=True)):
        name = POLICY[int(chosen[k])]
        expected = reference[name](image, float(signs[k]))
        near = torch.isclose(mine, expected, rtol=0, atol=1e-6).float().mean()
        assert near > 0.998, (name, float(near))
        if magnitude and name in ("shear_x", "rotate", "brightness", "color", "equalize"):
            assert not torch.equal(mine, image), name


def test_randaugment_has_torchvisions_strengths():
    """The reference's, by its own table."""
    from torchvision.transforms.v2 import RandAugment as Theirs

    table, share = Theirs._AUGMENTATION_SPACE, 9 / 30
    strength = lambda name: table[name][0](31, 33, 33)[9].item()  # noqa: E731
    assert len(table) == len(POLICY)
    expected = {"ShearX": 0.3 * share, "TranslateX": 150 / 331 * 33 * share, "Rotate": 30 * share,
                "Color": 0.9 * share, "Posterize": 7, "Solarize": 1 - share}  # fmt: skip
    for name, value in expected.items():
        assert strength(name) == pytest.approx(value)


@pytest.mark.parametrize("version", ["weak", "svhn"])
def test_idbh_is_torchvisions_with_the_same_operation_and_strength(version):
    """The table of the published code: names, and from weakest to strongest."""
    steep, turns = (0.35, 30) if version == "svhn" else (0.15, 10)
    x, strength = pixels(2 * len(NAMES), size=32), torch.linspace(0.97, 0.21, 2 * len(NAMES))
    chosen, signs = torch.arange(len(NAMES)).repeat(2), torch.tensor([-1.0, 1.0]).repeat(8)
    vertical = torch.arange(16) >= 8

    def reference(image, name, s, sign, vertical):
        wide, narrow = 0.1 + 1.8 * s, 0.5 + 1.4 * s
        if name == "shear":
            degrees = math.degrees(sign * (0.05 + (steep - 0.05) * s))
            shear = [0.0, degrees] if vertical else [degrees, 0.0]
            return V.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear,
                            interpolation=InterpolationMode.NEAREST, fill=0)  # fmt: skip
        return {
            "color": lambda: V.adjust_saturation(image, wide),
            "brightness": lambda: V.adjust_brightness(image, narrow),
            "contrast": lambda: V.adjust_contrast(image, narrow),
            "sharpness": lambda: V.adjust_sharpness(image, wide),
            "autocontrast": lambda: V.autocontrast(image),
            "equalize": lambda: of_8_bits(V.equalize)(image),
            "rotate": lambda: V.rotate(image, sign * (1 + int(s * turns))),
        }[name]()

    ours = IDBH(version).apply(x, chosen, strength, signs, vertical)
    for k, mine in enumerate(ours):
        name = NAMES[int(chosen[k])]
        given = name, strength[k].item(), signs[k].item(), bool(vertical[k])
        near = torch.isclose(mine, reference(x[k], *given), rtol=0, atol=1e-6).float().mean()
        assert near > 0.998, (given, float(near))
        assert not torch.equal(mine, x[k]), name


def test_idbh_draws_its_operations_as_often_as_published():
    drawn = []

    class Watched(IDBH):
        def apply(self, x, chosen, *given):
            drawn.append(chosen)
            return x

    for version, shares in (("weak", [0.125] * 8),
                            ("svhn", [0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.3, 0.3])):  # fmt: skip
        Watched(version)(torch.zeros(20000, 1, 1, 1), None, RowRng(3, torch.arange(20000)))
        found = drawn.pop().bincount(minlength=8) / 20000
        assert (found - torch.tensor(shares)).abs().max() < 0.01


def test_crop_shift_cuts_lines_off_and_puts_the_rest_anywhere():
    """The published loop, with the draws that the rows give."""
    x, rng, most = pixels(60, size=16), RowRng(5, torch.arange(60)), 11
    ours = crop_shift(x, rng, most)
    whole = lambda name, row, below: int(rng.uniform(name)[row] * below)  # noqa: E731
    lost = []
    for row, image in enumerate(x):
        lines = whole("crop:lines", row, most)
        right = whole("crop:columns", row, lines + 1)
        down = lines - right
        pair = lambda name, row=row, sides=(down, right): [  # noqa: E731
            int(u * (side + 1))
            for u, side in zip(rng.uniform(name, 2)[row].tolist(), sides, strict=True)
        ]
        (top, left), put = pair("crop:from"), pair("crop:to")
        cut = V.crop(image, top, left, 16 - down, 16 - right)
        padded = V.pad(cut, [right, down], fill=0)
        expected = V.crop(padded, down - put[0], right - put[1], 16, 16)
        assert torch.equal(ours[row], expected)
        lost.append(lines)
    assert {*lost} == {*range(most)}


@pytest.mark.parametrize("probability, largest", [(0.5, 0.33), (1.0, 0.5)])
def test_erasing_blackens_a_rectangle_of_the_published_sizes(probability, largest):
    size, count = 32, 3000
    x = torch.ones(count, 1, size, size)
    erased = erase(x, RowRng(1, torch.arange(count)), probability, largest)[:, 0] == 0
    found = erased.any(2).any(1)
    assert abs(found.float().mean() - probability) < 0.03
    heights, widths = erased.any(2).sum(1)[found], erased.any(1).sum(1)[found]
    assert torch.equal(erased.sum((1, 2))[found], heights * widths)  # a rectangle
    area, ratio = heights * widths / size**2, heights / widths
    assert 0.01 < area.min() < 0.04 and 0.9 * largest < area.max() < 1.1 * largest
    assert 0.2 < ratio.min() < 0.4 and 2.5 < ratio.max() < 4.5


def test_timms_randaugment_is_timms_with_the_same_operation_strength_and_sign(monkeypatch):
    """Turned by Pillow, whose weights between pixels are a little sharper than torch's."""
    from PIL import Image
    from timm.data import auto_augment as theirs

    named = {"AutoContrast": "autocontrast", "SolarizeAdd": "brighten_dark", "TranslateXRel":
             "translate_x", "TranslateYRel": "translate_y", "ShearX": "shear_x",
             "ShearY": "shear_y"}  # fmt: skip
    table = theirs._RAND_INCREASING_TRANSFORMS
    assert [named.get(n, n.removesuffix("Increasing").lower()) for n in table] == [*INCREASING]
    count = 2 * len(table)
    x, chosen = pixels(count, size=33), torch.arange(len(table)).repeat(2)
    signs = torch.tensor([-1.0, 1.0]).repeat_interleave(len(table))
    level = torch.linspace(0.31, 1.0, count)
    given = {"resample": Image.Resampling.BICUBIC, "fillcolor": (0, 0, 0)}

    def reference(image: Tensor, number: int, level: float, sign: float) -> Tensor:
        monkeypatch.setattr(theirs, "_randomly_negate", lambda value: sign * value)
        name, pillow = table[number], V.to_pil_image(image)
        strength = theirs.LEVEL_TO_ARG[name]
        arguments = strength(10 * level, {}) if strength else ()
        return V.pil_to_tensor(theirs.NAME_TO_OP[name](pillow, *arguments, **given)).float() / 255

    ours = TimmAugment.apply(x, chosen, level, signs)
    expected = one_by_one(x, reference, chosen, level, signs)
    for number, mine, other in zip(chosen.tolist(), ours, expected, strict=True):
        name, away = INCREASING[number], (mine - other).abs()
        assert away.mean() < 1 / 255 and away.max() < 3.1 / 255, (name, away.max())
        assert torch.equal(mine == 0, other == 0) or name in ("color", "contrast"), name


def test_timms_erasing_and_the_share_of_its_operations_are_published():
    count = 4000
    rng, still = RowRng(6, torch.arange(count)), TimmAugment(operations=0)
    x = still._alone(torch.full((count, 3, 16, 16), 0.5), rng)
    erased = (x != 0.5).flatten(1).any(1)
    assert abs(erased.float().mean() - 0.25) < 0.02
    noise = x[(x != 0.5)]
    assert abs((noise == 0).float().mean() - 0.5) < 0.02  # normal, cut to [0, 1]
    assert abs((noise == 1).float().mean() - 0.159) < 0.02


def test_timms_operations_are_drawn_as_published(monkeypatch):
    """`rand-m9-mstd0.5-inc1`: half of the time, of a strength around 9 of 10."""
    given = []

    def apply(self, x, *drawn):
        given.append(drawn)
        return torch.ones_like(x)

    monkeypatch.setattr(TimmAugment, "apply", apply)
    own = TimmAugment(operations=1, erasing=0.0)
    changed = own._alone(torch.zeros(6000, 1, 1, 1), RowRng(6, torch.arange(6000)))
    ((chosen, level, signs),) = given
    assert abs(changed.mean() - 0.5) < 0.02 and abs(signs.mean()) < 0.04
    assert (chosen.bincount(minlength=15) / 6000 - 1 / 15).abs().max() < 0.012
    assert abs(level.mean() - 0.9) < 0.003 and abs(level.std() - 0.05) < 0.003 and level.max() <= 1


def test_timms_augmentation_mixes_or_cuts_each_image_with_its_labels():
    x, y, rng = pixels(80), soft(80), RowRng(2, torch.arange(40))
    plain = {"operations": 0, "erasing": 0.0}
    images, labels = TimmAugment(**plain)(x, y, rng)
    mixed, cut = MixUp(0.8)(x, y, rng), CutMix(1.0)(x, y, rng)
    of_mixed, of_cut = ((images == of[0]).flatten(1).all(1) for of in (mixed, cut))
    assert (of_mixed | of_cut).all() and 10 < of_cut.sum() < 30
    torch.testing.assert_close(labels, torch.where(of_cut[:, None], cut[1], mixed[1]))
    for key, switch, only, kind in (("mixup", 0.0, mixed, MixUp), ("cutmix", 1.0, cut, CutMix)):
        assert torch.equal(TimmAugment(**plain, switch=switch)(x, y, rng)[0], only[0])
        own = TimmAugment(**plain, switch=switch, **{key: 0.1})(x, y, rng)[0]
        assert torch.equal(own, kind(0.1)(x, y, rng)[0]) and not torch.equal(own, only[0]), key


def test_jitter_is_torchvisions_with_the_same_factors_in_the_same_order():
    x = pixels(12)
    order = torch.tensor([[*p] for p in permutations((0.1, 0.5, 0.9))] * 2)
    factors = torch.linspace(0.6, 1.4, 36).view(3, 12)

    def reference(image: Tensor, order: list[float], *factors: float) -> Tensor:
        adjust = V.adjust_brightness, V.adjust_contrast, V.adjust_saturation
        for _, change, factor in sorted(
            zip(order, adjust, factors, strict=True), key=lambda k: k[0]
        ):
            image = change(image, factor)
        return image

    expected = one_by_one(x, reference, order, *factors)
    torch.testing.assert_close(Jitter.apply(x, [*factors], order), expected, rtol=0, atol=1e-6)
    drawn, _ = Jitter(lighting=0.0)(x, None, rng := RowRng(3, torch.arange(12)))
    ways = (2 * rng.uniform("factors", 3) - 1).T
    expected = one_by_one(x, reference, rng.uniform("order", 3), *(1 + 0.1 * ways))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)


def test_lighting_is_the_published_noise_along_imagenets_colours():
    """`eigvec * alpha * eigval`, summed over the components, is added to each channel."""
    x, rng = pixels(9), RowRng(3, torch.arange(9))
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140],
                            [-0.5836, -0.6948, 0.4203]])  # fmt: skip
    alpha = 0.05 * rng.normal("lighting", 3)
    added = (vectors * (alpha * torch.tensor([0.2175, 0.0188, 0.0045]))[:, None]).sum(2)
    still = Jitter(0.0, 0.0, 0.0, lighting=0.05)
    torch.testing.assert_close(still(x, None, rng)[0], (x + added[:, :, None, None]).clamp(0, 1))
    assert torch.equal(still(x[:, :1], None, rng)[0], x[:, :1])


# mixing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 1.4, 20.0])
def test_shares_come_from_the_beta_distribution(alpha):
    drawn = symmetric_beta(RowRng(7, torch.arange(4000)), alpha).double().numpy()
    assert kstest(drawn, beta(alpha, alpha).cdf).pvalue > 0.001


def soft(count: int) -> Tensor:
    return torch.eye(CLASSES)[torch.arange(count) % CLASSES]


def test_mixup_mixes_images_and_labels_by_one_share():
    x, y, rng = pixels(16), soft(16), RowRng(2, torch.arange(8))
    images, labels = MixUp(0.7)(x, y, rng)
    share = symmetric_beta(rng, 0.7)
    for k, s in enumerate(share.tolist()):
        torch.testing.assert_close(images[k], s * x[k] + (1 - s) * x[8 + k])
        torch.testing.assert_close(labels[k], s * y[k] + (1 - s) * y[8 + k])
    assert share.std() > 0.1


def test_cutmix_is_torchvisions_box_with_the_same_share_and_centre():
    """As `torchvision.transforms.v2.CutMix` has it, for one image with its own draws."""
    x, y, rng = pixels(2 * 43), soft(2 * 43), RowRng(4, torch.arange(43))
    images, labels = CutMix(0.9)(x, y, rng)
    shares, centres = symmetric_beta(rng, 0.9), (rng.uniform("centre", 2) * SIZE).long()
    for k, (share, (row, column)) in enumerate(zip(shares, centres.tolist(), strict=True)):
        half = int(0.5 * math.sqrt(1 - share) * SIZE)
        top, end = max(row - half, 0), min(row + half, SIZE)
        left, right = max(column - half, 0), min(column + half, SIZE)
        expected, kept = x[k].clone(), 1 - (end - top) * (right - left) / SIZE**2
        expected[:, top:end, left:right] = x[43 + k][:, top:end, left:right]
        assert torch.equal(images[k], expected)
        torch.testing.assert_close(labels[k], kept * y[k] + (1 - kept) * y[43 + k])


def test_cutout_is_torchvisions_erasing_within_the_image():
    x, y, rng = pixels(50), torch.arange(50), RowRng(4, torch.arange(50))
    images, labels = Cutout(5)(x, y, rng)
    corners = (rng.uniform("cutout", 2) * (SIZE - 5 + 1)).long()
    expected = [V.erase(image, *corner, 5, 5, torch.zeros(3, 5, 5))
                for image, corner in zip(x, corners.tolist(), strict=True)]  # fmt: skip
    assert torch.equal(images, torch.stack(expected)) and labels is y
    assert {*corners[:, 0].tolist()} == {*range(SIZE - 5 + 1)}
    assert (Cutout(50)(x, y, rng)[0] == 0).all()  # larger than the image


# whichever ----------------------------------------------------------------------------------------


def drawn(augment, rows: Tensor, x: Tensor, y: Tensor, key: int = 3) -> tuple[Tensor, Tensor]:
    """The rows of a batch that is augmented without the others."""
    x, y = x[rows], y[rows]
    if augment.partners:
        others = (rows + 1) % 24
        x, y = torch.cat([x, WHOLE[others]]), torch.cat([y, soft(24)[others]])
    return augment(x, y, RowRng(key, rows))


WHOLE = pixels(24)


@pytest.mark.parametrize("augment", EVERY, ids=names)
def test_an_image_depends_on_key_and_row_alone(augment):
    y = soft(24) if augment.partners else torch.arange(24)
    x, labels = drawn(augment, torch.arange(24), WHOLE, y)
    assert x.shape == WHOLE.shape and 0 <= x.min() and x.max() <= 1 and len(labels) == 24
    for rows in (torch.arange(7), torch.arange(7, 24), torch.tensor([23, 4])):
        some, some_labels = drawn(augment, rows, WHOLE, y)
        assert torch.equal(some, x[rows]) and torch.equal(some_labels, labels[rows])
    other = drawn(augment, torch.arange(24), WHOLE, y, key=4)[0]
    assert torch.equal(other, x) == isinstance(augment, Standard) * (type(augment) is not Cutout)


@pytest.mark.parametrize("augment", EVERY, ids=names)
def test_nothing_asks_the_host(augment):
    y = soft(24) if augment.partners else torch.arange(24)
    drawn(augment, torch.arange(24), WHOLE, y)  # what is kept from one call to the next
    rows, rng = torch.arange(12 if augment.partners else 24), RowRng(3, torch.arange(24))
    with nothing_asks_the_host():
        augment(WHOLE, y, rng[: len(rows)])
    with pytest.raises(HostAsked), nothing_asks_the_host():
        augment(WHOLE, y, rng[: len(rows)])[0].max().item()


@pytest.mark.parametrize("augment", EVERY, ids=names)
@pytest.mark.parametrize("channels, size", [(1, 8), (3, 1), (2, 5)])
def test_small_images_and_other_channels_will_do(augment, channels, size):
    x = pixels(8, channels, size)
    y = soft(8) if augment.partners else torch.arange(8)
    count = 4 if augment.partners else 8
    images, labels = augment(x, y, RowRng(0, torch.arange(count)))
    assert images.shape == (count, channels, size, size) and images.isfinite().all()
    if augment.partners:
        torch.testing.assert_close(labels.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Cutout(0), "size=0"), (lambda: MixUp(0.0), "alpha=0: of Beta"),
        (lambda: CutMix(float("nan")), "alpha=nan"), (lambda: RandAugment(0), "operations=0"),
        (lambda: RandAugment(2, 31), "magnitude=31: write 0 to 30"),
        (lambda: IDBH("cifar"), "version=cifar"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_its_key(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# batches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return Digits(crop=2, flip=True)(CPU, 0)


def loader(digits, augment, views=1, size=20) -> Loader:
    return Loader(digits, augment, Epochs(), size, seed=9, views=views)


def test_standard_is_what_the_set_does_to_the_bit(digits):
    rows = torch.tensor([4, 5, 6, 17])
    batches = [batch.part(rows) for batch in epoch_batches(len(digits.train), 20, 9, 2, 6)]
    before = digits.train.stream(batches)
    for (x, y), (a, b) in zip(loader(digits, Standard()).stream(rows, 2, 6), before, strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)


def test_none_gives_the_pixels_as_they_are_stored(digits):
    (batch,) = epoch_batches(len(digits.train), 20, 9, 0, 1)
    ((x, y),) = loader(digits, Unchanged()).stream(torch.arange(20), 0, 1)
    ((a, b),) = digits.train.stream([replace(batch, key=None)])
    assert torch.equal(x, a) and torch.equal(y, b)


@pytest.mark.parametrize("augment", EVERY, ids=names)
@pytest.mark.parametrize("views", [1, 2])
def test_processes_and_parts_see_what_one_process_sees(digits, augment, views):
    """Partners included, which lie in other processes' rows: each reads the one it lacks."""
    own = loader(digits, augment, views)
    ((x, y),) = own.stream(torch.arange(20), 1, 2)
    assert len(x) == len(y) == 20 * views
    for size in (2, 3):
        for rank in range(size):
            rows = torch.cat(World(rank, size).rows(20, parts=2))
            ((part, labels),) = own.stream(rows, 1, 2)
            chosen = torch.cat([rows + 20 * view for view in range(views)])
            assert torch.equal(part, x[chosen]) and torch.equal(labels, y[chosen])


def test_a_partner_is_the_next_row_of_the_whole_batch(digits):
    class Shown(MixUp):
        def __call__(self, x, y, rng):
            return x[len(x) // 2 :], y[len(x) // 2 :]

    plain = loader(digits, Standard())
    ((x, y),) = plain.stream(torch.arange(20), 0, 1)
    ((others, labels),) = loader(digits, Shown()).stream(torch.arange(20), 0, 1)
    assert torch.equal(others, x.roll(-1, 0)) and torch.equal(labels.argmax(1), y.roll(-1))


def test_two_views_are_two_augmentations_of_one_image(digits):
    ((x, y),) = loader(digits, Standard(), views=2).stream(torch.arange(20), 0, 1)
    ((first, labels),) = loader(digits, Standard()).stream(torch.arange(20), 0, 1)
    assert torch.equal(x[:20], first) and torch.equal(y, labels.repeat(2))
    assert not torch.equal(x[20:], first)
    ((a, _),) = loader(digits, Unchanged(), views=2).stream(torch.arange(20), 0, 1)
    assert torch.equal(a[:20], a[20:])


def test_a_step_depends_on_no_other(digits):
    every = list(loader(digits, CutMix()).stream(torch.arange(20), 0, 4))
    resumed = loader(digits, CutMix()).stream(torch.arange(20), 2, 4)
    for (x, y), (a, b) in zip(every[2:], resumed, strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)


def test_soft_labels_reach_objective_and_attack(digits):
    """The attack on mixed images ascends the cross-entropy of mixed labels, and so does training
    descend."""
    network = small_network().eval()
    ((x, y),) = loader(digits, MixUp()).stream(torch.arange(20), 0, 1)
    assert y.shape == (20, 10) and 0 < (y.max(1).values < 0.99).sum()
    attack = PGD(20, 1, start="none", step=1)
    x_adv = attack(network, x, y, RowRng(seed_of(0, "attack", 0), torch.arange(20)))
    given = x.clone().requires_grad_()
    loss = -(y * network(given).log_softmax(1)).sum()
    (gradient,) = torch.autograd.grad(loss, given)
    expected = (x + gradient.sign() / 255).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected)
    loss, _ = Adversarial()(network, x, x, y)
    torch.testing.assert_close(loss, -(y * network(x).log_softmax(1)).sum(1).mean())


class Wrong(Standard):
    """Breaks the contract in one way."""

    def __init__(self, change):
        object.__setattr__(self, "change", change)

    def __call__(self, x, y, rng):
        return self.change(x, y)


@pytest.mark.parametrize(
    "change", [lambda x, y: (2 * x, y), lambda x, y: (x[:1], y), lambda x, y: (x, y[:1]),
               lambda x, y: (x - 0.1, y), lambda x, y: (x / 0 * 0, y)],
)  # fmt: skip
def test_an_augmentation_that_breaks_its_contract_is_refused(digits, change):
    check_augment(loader(digits, Standard()), {})
    with pytest.raises(Refused, match="augment=mine: makes images"):
        check_augment(loader(digits, Wrong(change)), {"augment": "mine"})


def test_what_an_augmentation_does_not_say_goes_without_saying():
    class Silent:
        partners = True

        def __call__(self, x, y, rng):
            return x, y

    spec = composed(["objective=mart"]).bringing(augment=Silent())
    with pytest.raises(Refused, match="^objective=mart: "):
        check_training(spec)
    assert Silent.crops and Silent.partners


def test_what_is_read_in_order_alone_is_not_read_twice(digits):
    class InOrder:
        in_order, skips = True, False

    class Skipping:
        in_order, skips = False, True

    told, skipping = (replace(digits, train=split()) for split in (InOrder, Skipping))
    loader(told, MixUp()).check(processes=1)
    for wrong in (loader(told, MixUp()), loader(told, Standard(), views=2)):
        with pytest.raises(Refused, match="dataset.name=digits: is read in its order alone"):
            wrong.check(processes=2)
    with pytest.raises(Refused, match="dataset.skip_unreadable=true: would part the views"):
        loader(skipping, Standard(), views=2).check(processes=1)
    with pytest.raises(Refused, match="dataset.skip_unreadable=true: is for one process"):
        loader(skipping, Standard()).check(processes=2)
    loader(skipping, Standard()).check(processes=1)


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_gpu
@pytest.mark.parametrize("augment", EVERY, ids=names)
def test_a_gpu_gives_the_same_images_and_is_not_waited_for(augment, tmp_path):
    """With images beside the set, whose pixels come from the host in each step."""
    made = {"image": (WHOLE[:, 0, :8, :8] * 255).byte().numpy(), "label": soft(24).numpy()}
    np.savez(tmp_path / "made.npz", **made)
    found = []
    for device in ("cpu", "cuda"):
        data = Digits(crop=2, extra=str(tmp_path / "made.npz"))(torch.device(device), 0)
        stream = Loader(data, augment, data.mixture, 20, seed=9).stream(torch.arange(20), 0, 4)
        next(stream)  # what is kept from one step to the next
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            batches = list(stream)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append([torch.cat([t.cpu() for t in part]) for part in zip(*batches, strict=True)])
    (x, y), (a, b) = found
    assert (x - a).abs().gt(1e-6).float().mean() < 0.002  # a tie between two neighbours
    torch.testing.assert_close(y, b)
