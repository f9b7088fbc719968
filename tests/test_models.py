import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from sat.activations.swap import prove_swap, swap_activations
from sat.models import (
    CifarResNet,
    Classifier,
    EfficientNet,
    PreActResNet,
    ResNet,
    Timm,
    WideResNet,
)
from sat.models.classifier import assemble
from sat.models.stems import fit_stem

OPTIONS = Path(__file__).parents[1] / "conf" / "model"
FAMILIES = {
    "resnet": ResNet,
    "resnet_cifar": CifarResNet,
    "preact_resnet": PreActResNet,
    "wide_resnet": WideResNet,
    "efficientnet": EfficientNet,
    "timm": Timm,
}
DEPTHS = (10, 14, 18, 26, 34, 50, 101, 152, 200)
VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l1")


class Marker(nn.Module):
    """An activation that calls no activation function, so that any that is called was left over."""

    def forward(self, x):
        return 0.5 * x


def on_meta(family, channels=3, classes=1000, image_size=224):
    with torch.device("meta"):
        return family(channels, classes, image_size)


def count(net):
    return sum(p.numel() for p in net.parameters())


def assembled(net, activation=nn.SiLU, channels=3, size=32):
    return assemble(net, activation, [0.5] * channels, [0.25] * channels, (channels, size, size))


# Options


@pytest.mark.parametrize("option", FAMILIES)
def test_option_gives_every_argument_and_the_weights(option):
    root = OmegaConf.create({"dataset": {"depth": 10, "width": 0.25}})
    root.model = OmegaConf.load(OPTIONS / f"{option}.yaml")
    given = OmegaConf.to_container(root.model, resolve=True)
    module, _, name = given.pop("_target_").rpartition(".")
    family = getattr(importlib.import_module(module), name)
    assert family is FAMILIES[option]
    for key in ("weights", "mean", "std"):
        assert given.pop(key, "absent") is None
    assert list(given) == [field.name for field in dataclasses.fields(family)]
    model = family(**given)
    if option == "resnet":
        assert (model.depth, model.width) == (10, 0.25)
    assert on_meta(model, classes=7, image_size=32).num_classes == 7


# Families

PUBLISHED = [
    (ResNet(18), 11_689_512),
    (ResNet(34), 21_797_672),
    (ResNet(50), 25_557_032),
    (ResNet(101), 44_549_160),
    (ResNet(152), 60_192_808),
    (ResNet(50, cardinality=32, base_width=4), 25_028_904),
    (ResNet(50, base_width=128), 68_883_240),
    (EfficientNet("b0"), 5_288_548),
    (EfficientNet("b7"), 66_347_960),
]


@pytest.mark.parametrize(("model", "parameters"), PUBLISHED, ids=str)
def test_published_parameter_counts_at_imagenet(model, parameters):
    assert count(on_meta(model)) == parameters


def test_published_parameter_counts_at_cifar():
    assert count(on_meta(WideResNet(28, 10.0), 3, 10, 32)) == 36_479_194
    assert count(on_meta(WideResNet(70, 16.0), 3, 10, 32)) == 266_796_506
    # 0.27 M and 1.7 M in the paper, whose shortcuts have no parameters; ours have two convolutions
    # of 16 * 32 and 32 * 64 and their batch norms.
    assert count(on_meta(CifarResNet(20), 3, 10, 32)) == 269_722 + 512 + 2048 + 64 + 128
    assert count(on_meta(CifarResNet(110), 3, 10, 32)) == 1_727_962 + 512 + 2048 + 64 + 128


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_resnet_depth_has_its_layers(depth):
    net = on_meta(ResNet(depth, width=0.25), 1, 10, 8)
    convolutions = [
        m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n
    ]
    assert len(convolutions) + 1 == depth  # and the linear layer
    assert net.conv1.out_channels == 16


@pytest.mark.parametrize("depth", (18, 34, 50, 101, 152))
def test_every_preact_depth_has_its_layers(depth):
    net = on_meta(PreActResNet(depth, width=0.25), 3, 10, 32)
    convolutions = [
        m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n
    ]
    assert len(convolutions) == depth  # the classifier is a 1x1 convolution
    assert (net.stem.conv.out_channels, net.stages[0].blocks[0].conv1.out_channels) == (16, 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_efficientnet_variants_have_their_dropout(variant):
    usual = {"b0": 0.2, "b1": 0.2, "b2": 0.3, "b3": 0.3, "b4": 0.4, "b5": 0.4}
    net = on_meta(EfficientNet(variant), 3, 10, 600)
    assert net.drop_rate == usual.get(variant, 0.5)
    assert (net.bn1.momentum, net.bn1.eps) == (0.1, 1e-5)
    if variant == "l1":  # width 3.9 of 32 channels, depth 3.7 of 16 blocks, each stage rounded up
        assert net.conv_stem.out_channels == 128
        assert sum(len(stage) for stage in net.blocks) == 4 + 8 + 8 + 12 + 12 + 15 + 4


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_efficientnet_starts_at_chance_for_few_classes(classes):
    torch.manual_seed(0)
    net = EfficientNet("b0", dropout=0.0)(3, classes, 32)
    loss = F.cross_entropy(net(torch.rand(16, 3, 32, 32)), torch.arange(16) % 10)
    assert abs(loss.item() - math.log(classes)) < 0.5
    largest = net.classifier.weight.abs().max().item()
    assert 0.9 < largest * 1000**0.5 <= 1  # timm's, of ImageNet's classes


def test_efficientnet_dropout_can_be_given():
    assert on_meta(EfficientNet("b0", dropout=0.0)).drop_rate == 0.0


SMALL = [
    (ResNet(10, 0.25), 8, 1),
    (ResNet(14, 0.1), 16, 1),
    (ResNet(50, 0.25, cardinality=4, base_width=16), 32, 3),
    (CifarResNet(20, 0.5), 32, 3),
    (PreActResNet(18, 0.125), 32, 3),
    (PreActResNet(50, 0.125), 32, 3),
    (WideResNet(10, 0.5), 28, 1),
    (EfficientNet("b0"), 32, 3),
    (Timm("mobilenetv3_small_050"), 32, 1),
    (Timm("vit_tiny_patch16_224"), 48, 3),
]


@pytest.mark.parametrize(("model", "size", "channels"), SMALL, ids=str)
def test_every_family_classifies_small_images(model, size, channels):
    net = assembled(model(channels, 7, size), channels=channels, size=size)
    logits = net(torch.rand(2, channels, size, size))
    assert logits.shape == (2, 7) and logits.dtype == torch.float32
    assert net.swap.swapped == net.swap.called > 0


def test_resnet_is_v1_5_and_its_blocks_start_as_identities():
    net = ResNet(26, 0.25)(3, 10, 32)
    assert net.layer2[0].conv1.stride == (1, 1) and net.layer2[0].conv2.stride == (2, 2)
    assert all(not block.bn3.weight.any() for block in [*net.layer1, *net.layer4])


def test_the_seed_alone_decides_the_weights():
    def weights():
        torch.manual_seed(3)
        return ResNet(10, 0.25)(1, 10, 8).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


REFUSED = [
    (lambda: ResNet(19), "depth=19: .* 10, 14, 18"),
    (lambda: PreActResNet(10), "depth=10: .* 18, 34, 50"),
    (lambda: CifarResNet(18), "depth=18: .* 6n \\+ 2"),
    (lambda: WideResNet(27), "depth=27: .* 6n \\+ 4"),
    (lambda: ResNet(18, width=0.0), "width=0.0: multiplies channels, above 0"),
    (lambda: ResNet(18, width=float("nan")), "width=nan"),
    (lambda: ResNet(18, width=0.001), "width=0.001: leaves no channels; write 0.03125"),
    (lambda: WideResNet(28, width=0.01), "width=0.01: leaves no channels"),
    (lambda: ResNet(18, cardinality=32), "cardinality=32: .* depth 18 .*14, 26, 50"),
    (lambda: ResNet(34, base_width=128), "base_width=128: .* depth 34"),
    (lambda: ResNet(50, cardinality=0), "cardinality=0: is a number of channels"),
    (lambda: ResNet(50, width=0.25, base_width=2), "base_width=2: .* write 4 or more"),
    (lambda: EfficientNet("b0", dropout=1.0), "dropout=1.0"),
    (lambda: Timm("resnt18")(3, 10, 32), "name=resnt18: .* did you mean resnet18"),
    (lambda: Timm("qqqqqqqq")(3, 10, 32), "name=qqqqqqqq: no such model"),
    (lambda: Timm("swin_tiny_patch4_window7_224")(0, 10, 32), "name=swin_.*: timm cannot build"),
    (lambda: Timm("dla34", stem="small")(3, 10, 32), "stem=small: not known for DLA"),
    (lambda: assembled(Timm("convnext_atto")(3, 10, 8), size=8), "name=convnext_atto: .* 3x8x8"),
]


@pytest.mark.parametrize(("action", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_mistakes_are_refused_in_one_line_that_names_the_key(action, message):
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        action()
    assert "\n" not in str(refusal.value)


def test_a_failed_download_is_refused_with_its_remedy(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Name or service not known\n(a long story)")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="^pretrained=true: .*Name or service.* write") as refusal:
        Timm("resnet18", pretrained=True)(3, 10, 32)
    assert "\n" not in str(refusal.value)


# Stems

# A model by its stem, and how much smaller the stem's stride gets: 4 with pooling, 2 without.
STEMS = [
    (lambda stem: ResNet(10, 0.25, stem=stem), 4),
    (lambda stem: PreActResNet(18, 0.125, stem=stem), 4),
    (lambda stem: EfficientNet("b0", stem=stem), 2),
    (lambda stem: Timm("resnet18d", stem=stem), 4),
    (lambda stem: Timm("resnetv2_18d", stem=stem), 4),
    (lambda stem: Timm("resnetblur18", stem=stem), 4),
    (lambda stem: Timm("mobilenetv3_small_050", stem=stem), 2),
]


@pytest.mark.parametrize(("model", "shrink"), STEMS, ids=[str(m("auto")) for m, _ in STEMS])
def test_stem_fits_the_image(model, shrink):
    def side(size, stem):
        net = model(stem)(3, 10, size).eval()
        with torch.no_grad():
            return net.forward_features(torch.rand(1, 3, size, size)).shape[-1]

    assert side(64, "large") == 2
    assert side(64, "auto") == side(64, "small") == 2 * shrink
    assert side(96, "auto") == 3


def test_cifar_families_keep_the_resolution():
    x = torch.rand(1, 3, 32, 32)
    assert CifarResNet(8, 0.5)(3, 10, 32).eval().forward_features(x).shape[-1] == 8
    assert WideResNet(10, 0.5)(3, 10, 32).eval().forward_features(x).shape[-1] == 8


def test_pretrained_stems_are_not_thrown_away():
    with pytest.raises(ValueError, match="^stem=small: would throw away"):
        fit_stem(Timm("resnet18", stem="large")(3, 10, 32), "small", 32, pretrained=True)
    kept = Timm("resnet18", stem="large")(3, 10, 32)
    assert fit_stem(kept, "auto", 32, pretrained=True).conv1.stride == (2, 2)
    deep = Timm("resnet18d", stem="large")(3, 10, 32)
    before = deep.conv1[0].weight.clone()
    small = fit_stem(deep, "small", 32, pretrained=True).conv1[0]
    assert small.stride == (1, 1) and torch.equal(small.weight, before)


def test_transformers_take_the_image_size_and_others_stay_as_they_are():
    assert Timm("vit_tiny_patch16_224")(3, 10, 48).patch_embed.img_size == (48, 48)
    assert Timm("dla34")(3, 10, 32).base_layer[0].kernel_size == (7, 7)


# The swap

ZOO = [
    *("resnet18d", "legacy_seresnet18", "efficientnet_b0", "mobilenetv3_small_050"),
    *("convnext_atto", "vit_tiny_patch16_224", "regnety_002", "densenet121", "resnetv2_18"),
    *("repvgg_a0", "ghostnet_100", "mixer_s32_224", "xcit_nano_12_p16_224", "pvt_v2_b0"),
    *("skresnet18", "dla46_c", "xception41", "mobilevit_xxs", "poolformerv2_s12"),
]
FUNCTIONS = ("relu", "relu6", "gelu", "silu", "hardswish", "elu", "leaky_relu", "mish", "hardtanh")


@pytest.mark.parametrize("name", ZOO)
def test_swap_leaves_no_activation(name, monkeypatch):
    net = assembled(Timm(name)(3, 10, 64), Marker, size=64)
    markers = [m for m in net.modules() if isinstance(m, Marker)]
    assert len(markers) == net.swap.swapped == net.swap.called > 0

    def left_over(*args, **kwargs):
        raise AssertionError("an activation was left")

    for function in FUNCTIONS:
        monkeypatch.setattr(F, function, left_over)
        if hasattr(torch, function):
            monkeypatch.setattr(torch, function, left_over)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 10)


class Hidden(nn.Module):
    """One honest activation, and one that is called as a function in `block`."""

    def __init__(self, function):
        super().__init__()
        self.act = nn.ReLU()
        self.block = Block(function)

    def forward(self, x):
        return self.block(self.act(x) - 0.5).mean((2, 3))


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


HIDDEN = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "x.relu": lambda x: x.relu(),
    "x.relu_": lambda x: x.relu_(),
    "x.clamp": lambda x: x.clamp(min=0),
    "x.clamp_": lambda x: x.clamp_(0),
    "x.clamp 0 6": lambda x: x.clamp(0, 6),
    "torch.clamp": lambda x: torch.clamp(input=x, min=0.0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "torch.maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "torch.max": lambda x: torch.max(torch.zeros_like(x), x),
    "F.relu6": F.relu6,
    "F.gelu": F.gelu,
    "F.silu": F.silu,
    "F.elu": F.elu,
    "F.leaky_relu": F.leaky_relu,
    "F.hardswish": F.hardswish,
    "F.softplus": F.softplus,
    "F.mish": F.mish,
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "F.prelu": lambda x: F.prelu(x, torch.tensor([0.1])),
    "torch.tanh": torch.tanh,
    "x * sigmoid(x)": lambda x: x * x.sigmoid(),
    "-(-x).clamp(max=0)": lambda x: -(-x).clamp(max=0),
    "torch.clamp_max": lambda x: -torch.clamp_max(-x, 0),
    "torch.minimum": lambda x: -torch.minimum(-x, torch.zeros(())),
    "x * sigmoid(1.702 * x)": lambda x: x * torch.sigmoid(1.702 * x),
    "torch.mul": lambda x: torch.mul(input=x, other=torch.sigmoid(x)),
    "x * hardsigmoid(x)": lambda x: x * F.hardsigmoid(x),
    "x.mul_": lambda x: x.mul_(torch.sigmoid(input=x)),
    "GELU by hand": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "a module out of sight": lambda x: nn.ReLU()(x),
    "clamp of a branch that starts at 0": lambda x: (0 * x).clamp(min=0),
}


@pytest.mark.parametrize("function", HIDDEN.values(), ids=HIDDEN.keys())
def test_hidden_activation_is_refused_by_its_place(function):
    with pytest.raises(ValueError, match=r"^name=Hidden: calls torch\S+ in block \(Block\)"):
        assembled(Hidden(function), size=8)


def silu(x):
    return x * torch.sigmoid(x)


COMPILED = {
    "a scripted function": lambda: torch.jit.script(silu),
    "a scripted module": lambda: torch.jit.script(nn.Sequential(nn.ReLU())),
    "a traced module": lambda: torch.jit.trace(nn.Sequential(nn.ReLU()), torch.rand(1)),
    "an operation": lambda: torch.ops.aten.relu.default,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("made", COMPILED.values(), ids=COMPILED.keys())
def test_an_activation_in_what_is_no_python_is_refused(made):
    with pytest.raises(ValueError, match=r"^name=Hidden: calls aten\.(mul|relu)\S* in block"):
        assembled(Hidden(made()), size=8)


HARMLESS = {
    "guard of a variance": lambda x: (x * x - 0).clamp(0),
    "guard of a norm": lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-6),
    "upper bound": lambda x: x.clamp(max=0.1),
    "guard of what is never above 0": lambda x: (-x * x).clamp(max=0),
    "smaller of two": lambda x: torch.minimum(x, x.flip(1)),
    "scaled twice": lambda x: 2 * x * (x.mean(1, keepdim=True) * 3),
    "hard sigmoid": lambda x: x * (x + 0.5).clamp(0, 1),
    "positions": lambda x: x + (torch.arange(x.shape[-1]) - 2).clamp(min=0),
    "reduction": lambda x: x - x.max(1, keepdim=True).values,
    "larger of two": lambda x: torch.maximum(x, x.flip(1)),
    "normalise": lambda x: F.normalize(x),
}


@pytest.mark.parametrize("function", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_is_no_activation_passes(function):
    report = assembled(Hidden(function), size=8).swap
    assert (report.swapped, report.gates) == (1, ())


GATES = {
    "sigmoid": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    "softmax": lambda x: x.softmax(1),
    "hardsigmoid": lambda x: x * F.hardsigmoid(x.mean(1, keepdim=True)),
    "glu": lambda x: F.glu(x, 1),
}


@pytest.mark.parametrize("gate", GATES)
def test_gates_that_are_functions_are_reported(gate):
    assert assembled(Hidden(GATES[gate]), size=8).swap.gates == (f"block (Block): {gate}()",)


def test_gates_that_are_modules_survive():
    net = assembled(Timm("legacy_seresnet18")(3, 10, 32))
    assert sum(isinstance(m, nn.Sigmoid) for m in net.modules()) == 8
    assert len(net.swap.gates) == 8 and all("(Sigmoid)" in gate for gate in net.swap.gates)
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    mobile = assembled(Timm("mobilenetv3_small_050")(3, 10, 32))
    assert sum(isinstance(m, nn.Hardsigmoid) for m in mobile.modules()) == 9


def test_places_get_modules_of_their_own():
    shared = nn.ReLU()
    net = nn.Sequential(shared, nn.Sequential(nn.Conv2d(3, 3, 1), shared), nn.Flatten(), nn.PReLU())
    report = swap_activations(net, nn.PReLU)
    assert set(report.places) == {"0", "1.1", "3"} and report.called is None
    assert len({id(net[0]), id(net[1][1]), id(net[3])}) == 3
    assert len([name for name, _ in net.named_parameters()]) == 2 + 3  # PReLU has one each


def test_the_activation_of_a_norm_layer_is_swapped_and_its_absence_kept():
    net = PreActResNet(18, 0.125)(3, 10, 32)
    assert swap_activations(net, nn.PReLU).swapped == 17  # 16 in blocks, one before the head
    assert isinstance(net.norm.act, nn.PReLU)
    silent = timm.layers.BatchNormAct2d(4, apply_act=False)
    assert swap_activations(silent, nn.PReLU).swapped == 0


def test_a_network_without_activations_is_refused():
    with pytest.raises(ValueError, match=r"^name=Sequential: runs no activation .*\(0 such"):
        assembled(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), size=8)


def test_a_swapped_module_need_not_be_called_but_one_must():
    net = Hidden(lambda x: x)
    net.spare = nn.GELU()
    report = assembled(net, size=8).swap
    assert (report.swapped, report.called) == (2, 1)
    net.forward = lambda x: x.mean((2, 3))
    with pytest.raises(ValueError, match=r"^name=Hidden: runs no activation .*\(2 such"):
        assembled(net, size=8)


@pytest.mark.parametrize("passes", [True, False])
def test_proof_leaves_no_trace(passes):
    net = ResNet(10, 0.25)(1, 10, 8)
    if not passes:
        net.layer4[0].drop_block = Block(F.relu)
        net.layer4[0].drop_block.conv = nn.Identity()
    report = swap_activations(net, nn.SiLU)
    net.train()
    net.layer2.eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    x = torch.rand(2, 1, 8, 8)
    generator = torch.get_rng_state()
    if passes:
        prove_swap(net, x, report)
    else:
        with pytest.raises(ValueError, match="layer4.0.drop_block"):
            prove_swap(net, x, report)
    assert [m.training for m in net.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_proof_leaves_nothing_cached():
    net = assembled(Timm("levit_128s")(3, 10, 224), size=224)  # caches biases in eval mode
    caches = [m.attention_bias_cache for m in net.modules() if hasattr(m, "attention_bias_cache")]
    assert caches and not any(caches)


# The classifier


def test_assembling_draws_nothing():
    net = ResNet(10, 0.25)(1, 10, 8)
    generator = torch.get_rng_state()
    assembled(net, channels=1, size=8)
    assert torch.equal(generator, torch.get_rng_state())


def test_classifier_normalises_and_carries_its_constants():
    net = Classifier(nn.Flatten(), [0.1, 0.2, 0.3], [0.5, 0.25, 0.125])
    pixel = torch.tensor([0.6, 0.45, 0.425]).view(1, 3, 1, 1)
    assert torch.allclose(net(pixel), torch.ones(1, 3))
    assert set(net.state_dict()) == {"mean", "std"}
    assert net.mean.shape == net.std.shape == (1, 3, 1, 1)


def test_classifier_casts_and_lays_out_the_backbone_alone():
    net = assembled(ResNet(10, 0.25)(3, 10, 16), size=16).eval()
    seen = {}

    def look(module, args, output):
        layout = args[0].is_contiguous(memory_format=torch.channels_last)
        seen.update(dtype=output.dtype, input=args[0].dtype, channels_last=layout)

    net.backbone.conv1.register_forward_hook(look)
    x = torch.rand(2, 3, 16, 16)
    plain = net(x)
    assert seen == {"dtype": torch.float32, "input": torch.float32, "channels_last": False}
    net.autocast, net.channels_last = torch.bfloat16, True
    cast = net(x)
    assert seen == {"dtype": torch.bfloat16, "input": torch.float32, "channels_last": True}
    assert cast.dtype == torch.float32 and 0 < (cast - plain).abs().max() < 0.05


def test_classifier_compiles_into_one_graph():
    net = assembled(ResNet(10, 0.25)(1, 10, 8), channels=1, size=8).eval()
    net.autocast, net.channels_last = torch.bfloat16, True
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))
