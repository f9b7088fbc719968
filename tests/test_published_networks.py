"""Networks and image sets as published code has them, where ours are otherwise."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ended
from torch import nn

from sat.data import Digits
from sat.data.choice import split_training
from sat.data.cutter import mirrored
from sat.models import PreActResNet, ResNet, WideResNet
from sat.objectives import Adversarial

CPU = torch.device("cpu")


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def test_weights_begin_as_torch_has_them():
    torch.manual_seed(0)
    for net in (ResNet(18, 0.5, init="torch"), PreActResNet(18, 0.5, init="torch"),
                WideResNet(10, 2.0, init="torch")):  # fmt: skip
        built = net(3, 10, 32)
        for conv in convolutions(built):
            bound = 1 / math.sqrt(conv.weight[0].numel())  # kaiming_uniform with a = sqrt(5)
            assert 0.9 * bound < conv.weight.abs().max() <= bound
        norms = [m for m in built.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_weights_begin_normal_by_fan_out():
    torch.manual_seed(0)
    wide, usual = WideResNet(10, 2.0, init="fan_out")(3, 10, 32), ResNet(18, 0.5, init="fan_out")
    for net, zero in ((wide, True), (usual(3, 10, 32), False)):
        large = [conv for conv in convolutions(net) if conv.weight.numel() > 9000]
        assert large
        for conv in large:
            expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
        head = net.get_classifier().weight  # of a Wide ResNet a 1x1 convolution
        assert head.std().item() == pytest.approx(1 / math.sqrt(3 * head.shape[1]), rel=0.1)
        biases = [module.bias for name, module in net.named_modules()
                  if isinstance(module, nn.Linear) or name == "head.fc"]  # fmt: skip
        assert biases and all(bool((bias == 0).all()) is zero for bias in biases)


def test_goyals_classifier_begins_small():
    torch.manual_seed(0)
    net = ResNet(50, init="goyal")(3, 1000, 32)
    assert net.fc.weight.std().item() == pytest.approx(0.01, rel=0.02) and (net.fc.bias == 0).all()
    assert (net.layer1[0].bn3.weight == 0).all() and (net.layer1[0].bn1.weight == 1).all()


def test_a_raw_shortcut_takes_the_blocks_input():
    torch.manual_seed(0)
    raw, usual = (PreActResNet(18, 0.125, shortcut=kind)(3, 10, 32).eval()
                  for kind in ("raw", "activated"))  # fmt: skip
    assert sum(p.numel() for p in raw.parameters()) == sum(p.numel() for p in usual.parameters())
    x = torch.randn(2, 8, 8, 8)
    changed = 0
    for stage in raw.stages:
        for block in stage.blocks:
            x = x[:, : block.conv1.in_channels]
            if getattr(block, "downsample", None) is not None:
                residual = block.conv2(block.norm2(block.conv1(block.norm1(x))))
                torch.testing.assert_close(block(x), residual + block.downsample(x))
                changed += 1
            x = block(x)
    assert changed == 3
    with pytest.raises(ValueError, match="shortcut=raw: is of basic blocks"):
        PreActResNet(50, shortcut="raw")


def test_padding_may_be_at_the_right_and_below_alone():
    net = WideResNet(10, 0.5, padding="same", norm_momentum=0.01)(3, 10, 32).eval()
    strided = [conv for conv in convolutions(net) if conv.stride == (2, 2)]
    assert [conv.padding for conv in strided if conv.kernel_size == (3, 3)] == [(0, 0)] * 2
    usual = WideResNet(10, 0.5)(3, 10, 32).eval()
    assert len(net.state_dict()) == len(usual.state_dict())
    sizes = [net.forward_features(torch.rand(1, 3, 32, 32)).shape, usual.forward_features(
        torch.rand(1, 3, 32, 32)).shape]  # fmt: skip
    assert sizes[0] == sizes[1] and sizes[0][-1] == 8
    padded = next(m for m in net.modules() if isinstance(m, nn.ZeroPad2d))
    assert padded.padding == (0, 1, 0, 1)
    assert all(m.momentum == 0.01 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(ValueError, match="norm_momentum=0"):
        WideResNet(norm_momentum=0.0)


@pytest.mark.parametrize("forwards, expected", [(1, "a"), (2, "aa"), (3, "aac")])
def test_forwards_move_statistics_and_no_number(forwards, expected):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, x_adv, y = torch.rand(6, 1, 2, 2), torch.rand(6, 1, 2, 2), torch.arange(6) % 3
    mean = torch.zeros(4)
    for kind in expected:
        mean = 0.9 * mean + 0.1 * (x_adv if kind == "a" else x).flatten(1).mean(0)
    loss, logits = Adversarial(forwards=forwards)(net, x, x_adv, y)
    torch.testing.assert_close(net[1].running_mean, mean)
    plain = nn.Sequential(*net)
    torch.testing.assert_close(loss, F.cross_entropy(plain(x_adv), y))
    assert logits.requires_grad


# images ---------------------------------------------------------------------------------------


def test_edges_are_mirrored_as_torch_does():
    images = torch.randint(256, (3, 2, 8, 8), dtype=torch.uint8)
    for width in (0, 1, 4, 7):
        expected = F.pad(images.float(), [width] * 4, mode="reflect")
        assert torch.equal(mirrored(images, width).float(), expected)
    with pytest.raises(ValueError, match="crop=8: images of 8 pixels mirror 7"):
        mirrored(images, 8)


def test_a_set_pads_as_it_is_told():
    from sat.data import Batch

    whole = torch.arange(60)
    black, reflect = (
        next(iter(Digits(crop=2, pad=pad)(CPU, 0).train.stream([Batch(whole, 5)])))[0]
        for pad in ("black", "reflect")
    )
    same = (black == reflect).flatten(1).all(1)
    assert 0 < int(same.sum()) < 60, "some windows lie inside, others reach over the edge"
    assert (reflect[~same].flatten(1).mean(1) > black[~same].flatten(1).mean(1)).all()


def test_held_out_images_may_be_the_first_the_last_or_none():
    labels = torch.arange(50) % 5
    for place, held in (("first", range(7)), ("last", range(43, 50))):
        for seed in (0, 1):
            train, held_out = split_training(labels, None, 7, seed, place)
            assert held_out.tolist() == [*held]
            assert train.tolist() == sorted({*range(50)} - {*held})
    ordered = labels.sort().values  # ten of each
    for place, count, told in (
        ("first", 12, "0 is not among those trained on"),
        ("last", 12, "4 is not among those trained on"),
        ("last", 9, "0 is not among those held out"),
    ):
        with pytest.raises(ValueError, match=f"^holdout_from={place}: class {told}"):
            split_training(ordered, None, count, 0, place)
    train, held_out = split_training(labels, None, 0, 0)
    assert len(held_out) == 0 and train.tolist() == [*range(50)]


def test_a_run_may_hold_nothing_out(tmp_path, capfd):
    import json

    words = ["dataset.holdout=0", "dataset.limit=80", "model.width=0.0625", "schedule.epochs=1",
             "schedule.batch_size=20", "schedule.swa_start=0.5", "schedule.precision=fp32",
             "evaluation.attacks.pgd20.steps=1", "evaluation.limit=20",
             "evaluation.masking_checks=0"]  # fmt: skip
    assert ended(f"record.root={tmp_path}", *words) == 0, capfd.readouterr().err
    assert "0 held-out (no `best`" in capfd.readouterr().out
    (path,) = tmp_path.glob("*/result.json")
    result = json.loads(path.read_text())
    assert result["best"] is None and result["last"]["robust"]["pgd20"]
    assert not (path.parent / "checkpoints" / "best.pt").exists()
    assert ended(f"record.root={tmp_path}", *words, "evaluation.checkpoints=[best]",
                 "schedule.epochs=2") == 2  # fmt: skip
    assert "none is chosen with dataset.holdout=0" in capfd.readouterr().err
