"""Backbones by timm, a frozen dataclass a family.

Called with what the dataset fixes (channels, classes, image size) it returns a timm network with
the activations timm gives it, which `sat.models.classifier` swaps.

`width` multiplies a family's channels; they are rounded to a multiple of 2 (8 in the pre-activation
families, whose timm class rounds so), and a width that leaves none is refused.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn

from sat.arguments import check_choices, check_range
from sat.models.files import read_tensors
from sat.models.initialisation import Init, initialise
from sat.models.preactivation import pad_right, raw_shortcuts
from sat.models.stems import Stem, fit_stem, stem_convolution

_BLOCKS = {  # a stage, by depth
    **dict.fromkeys((10, 14), (1, 1, 1, 1)),
    **dict.fromkeys((18, 26), (2, 2, 2, 2)),
    **dict.fromkeys((34, 50), (3, 4, 6, 3)),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
DEEPEST = 1202  # of He et al. (2016)
WIDEST = 10_000
_BASIC = (10, 18, 34)  # blocks of two 3x3 convolutions; the others have bottlenecks

# (width, depth, dropout): Tan and Le, 2019; l1 is of Smooth Adversarial Training.
_EFFICIENTNETS = {
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
    "b5": (1.6, 2.2, 0.4),
    "b6": (1.8, 2.6, 0.5),
    "b7": (2.0, 3.1, 0.5),
    "l1": (3.9, 3.7, 0.5),
}


@dataclass(frozen=True)
class ResNet:
    """ResNet v1.5 (He et al., 2016; stride in the 3x3 convolution), ResNeXt and wide nets.

    The last batch-norm scale of each block starts at 0. `cardinality` groups of `base_width`
    channels make a ResNeXt: 50-32x4d is depth=50, cardinality=32, base_width=4. Wide ResNet-50-2 is
    base_width=128, where `width` would widen the stem and the residual path too.
    """

    depth: int = 18
    width: float = 1.0
    cardinality: int = 1
    base_width: int = 64
    stem: Stem = "auto"
    init: Init = "timm"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_depth(self.depth, tuple(_BLOCKS))
        channels = _widened((64, 128, 256, 512), self.width)
        for key, value, usual in (
            ("cardinality", self.cardinality, 1),
            ("base_width", self.base_width, 64),
        ):
            check_range(key, value, 1, WIDEST, "is a number of channels, or of their groups")
            if self.depth in _BASIC and value != usual:
                bottlenecks = _listed(depth for depth in _BLOCKS if depth not in _BASIC)
                raise ValueError(
                    f"{key}={value}: the basic blocks of depth {self.depth} have none; choose a "
                    f"depth with bottlenecks ({bottlenecks}), or write {key}={usual}"
                )
        if channels[0] * self.base_width < 64:
            raise ValueError(
                f"base_width={self.base_width}: leaves no channels at width={self.width}; "
                f"write {math.ceil(64 / channels[0])} or more"
            )

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        from timm.models.resnet import BasicBlock, Bottleneck

        block = BasicBlock if self.depth in _BASIC else Bottleneck
        widths = _widened((64, 128, 256, 512), self.width)
        groups = {"cardinality": self.cardinality, "base_width": self.base_width}
        net = _resnet(block, _BLOCKS[self.depth], widths, channels, classes, **groups)
        return initialise(fit_stem(net, self.stem, image_size), self.init)


@dataclass(frozen=True)
class CifarResNet:
    """The CIFAR family of He et al. (2016), section 4.2: depth 6n + 2, stages of 16, 32, 64
    channels after a 3x3 stem. Its shortcuts change width by 1x1 convolutions (option B)."""

    depth: int = 20
    width: float = 1.0

    def __post_init__(self) -> None:
        if not 8 <= self.depth <= DEEPEST or self.depth % 6 != 2:
            raise ValueError(
                f"depth={self.depth}: not of the form 6n + 2, up to {DEEPEST}; choose 20, 32, 44,"
                " 56 or 110"
            )
        _widened((16, 32, 64), self.width)

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        from timm.models.resnet import BasicBlock

        blocks = ((self.depth - 2) // 6,) * 3
        widths = _widened((16, 32, 64), self.width)
        net = _resnet(BasicBlock, blocks, widths, channels, classes)
        net.layer4 = nn.Sequential()  # timm's forward calls four stages
        return fit_stem(net, "small", image_size)


@dataclass(frozen=True)
class PreActResNet:
    """ResNet v2 (He et al., 2016, "Identity Mappings"): batch norm and activation come first.

    A shortcut that changes width takes the activated input, or the raw one (Wong et al. 2020).
    """

    depth: int = 18
    width: float = 1.0
    stem: Stem = "auto"
    shortcut: Literal["activated", "raw"] = "activated"
    init: Init = "timm"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_depth(self.depth, (18, 34, 50, 101, 152))
        if self.shortcut == "raw" and self.depth not in _BASIC:
            raise ValueError("shortcut=raw: is of basic blocks; write depth=18 or depth=34")
        _widened((64,), self.width, multiple=8)

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        basic = self.depth in _BASIC
        stem, *stages = _widened((64, 64, 128, 256, 512), self.width, multiple=8)
        stages = stages if basic else [4 * c for c in stages]
        net = _resnet_v2(_BLOCKS[self.depth], stages, stem, channels, classes, basic)
        if self.shortcut == "raw":
            raw_shortcuts(net)
        return initialise(fit_stem(net, self.stem, image_size), self.init)


@dataclass(frozen=True)
class WideResNet:
    """Wide ResNet (Zagoruyko and Komodakis, 2016): WRN-28-10 is depth=28, width=10.

    depth is 6n + 4; three pre-activation stages of 16, 32, 64 times `width` channels after a 3x3
    stem of 16. WRN-28-10 on CIFAR-10 has the published 36,479,194 parameters. `padding=same` pads a
    strided convolution at the right and below alone, and `norm_momentum` is batch norm's, as Gowal
    et al. (2020) have both.
    """

    depth: int = 28
    width: float = 10.0
    init: Init = "timm"
    padding: Literal["symmetric", "same"] = "symmetric"
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        why = "below that, the statistics stay what they began as"
        check_range("norm_momentum", self.norm_momentum, 1e-4, 1, why)
        if not 10 <= self.depth <= DEEPEST or self.depth % 6 != 4:
            raise ValueError(
                f"depth={self.depth}: not of the form 6n + 4, up to {DEEPEST}; choose 10, 16, 28,"
                " 34 or 70"
            )
        _widened((16, 32, 64), self.width, multiple=8)

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        blocks = ((self.depth - 4) // 6,) * 3
        stages = _widened((16, 32, 64), self.width, multiple=8)
        net = _resnet_v2(blocks, stages, 16, channels, classes, basic=True)
        net = fit_stem(net, "small", image_size)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.norm_momentum
        if self.padding == "same":
            pad_right(net)
        return initialise(net, self.init, zero_bias=True)


@dataclass(frozen=True)
class EfficientNet:
    """EfficientNet (Tan and Le, 2019) b0 .. b7, and l1 (width 3.9, depth 3.7) of the paper.

    As published: batch-norm momentum 0.9 (torch counts it as 0.1), epsilon 1e-5, stochastic depth
    up to 0.2, and the variant's own dropout unless `dropout` is given. Few classes start with the
    classifier of 1,000: timm's weights grow as classes become fewer, to a loss of 5.6 for ten.
    """

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l1"] = "b0"
    dropout: float | None = None
    stem: Stem = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: not in [0, 1); write null for the usual one")

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        # Private, but the one place where timm takes the two multipliers that l1 needs.
        from timm.models.efficientnet import _gen_efficientnet

        name = f"efficientnet_{self.variant}"
        width, depth, dropout = _EFFICIENTNETS[self.variant]
        net = _gen_efficientnet(
            name,
            channel_multiplier=width,
            depth_multiplier=depth,
            in_chans=channels,
            num_classes=classes,
            drop_rate=dropout if self.dropout is None else self.dropout,
            drop_path_rate=0.2,
            pretrained_cfg={"architecture": name},
        )
        with torch.no_grad():
            net.classifier.weight.mul_(min(1.0, classes / 1000) ** 0.5)
        return fit_stem(net, self.stem, image_size)


@dataclass(frozen=True)
class Timm:
    """Any model timm knows, by name. A transformer gets the dataset's image size where it takes
    one. With `pretrained` the weights are downloaded, or come from a file of timm's weights for
    this network, and stem=auto keeps their stem; a classifier of other classes begins anew.
    `drop_path` is the stochastic depth of the last block; 0 is none."""

    name: str = "resnet18"
    pretrained: bool | str = False
    stem: Stem = "auto"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path}: is a probability, from 0 to below 1")

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        import timm

        if not timm.is_model(self.name):
            near = get_close_matches(self.name, timm.list_models(), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
            raise ValueError(f"name={self.name}: no such model in timm; {hint}")
        try:
            net = self._create(channels, classes, image_size)
        except Exception as error:  # a download fails in many ways, and so do timm's constructors
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if isinstance(self.pretrained, str):
                raise ValueError(f"pretrained={self.pretrained}: {reason}") from error
            if "drop_path_rate" in reason:
                raise ValueError(
                    f"drop_path={self.drop_path}: {self.name} has none; write drop_path=0"
                ) from error
            if self.pretrained:
                raise ValueError(
                    f"pretrained=true: no weights for {self.name} ({reason}); check the network "
                    "and the name's tag, or write a file of its weights in place of true"
                ) from error
            raise ValueError(
                f"name={self.name}: timm cannot build it for images of {image_size} pixels "
                f"({reason}); choose another image size or another model"
            ) from error
        return fit_stem(net, self.stem, image_size, bool(self.pretrained))

    def _create(self, channels: int, classes: int, image_size: int) -> nn.Module:
        import timm

        given: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
        given |= {"pretrained": bool(self.pretrained)}
        if isinstance(self.pretrained, str):  # timm would unpickle whatever is in a file
            given |= {"pretrained_cfg_overlay": {"state_dict": read_tensors(self.pretrained)}}
        if self.drop_path:
            given |= {"drop_path_rate": self.drop_path}
        try:
            return timm.create_model(self.name, img_size=image_size, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        return timm.create_model(self.name, **given)


def _resnet(
    block: type, blocks: Sequence[int], widths: Sequence[int], channels: int, classes: int, **groups
) -> nn.Module:
    """timm's ResNet with a 7x7 stem as wide as its first stage."""
    from timm.models.resnet import ResNet

    # timm's plain stem has 64 channels whatever is asked; its deep one, here replaced, follows.
    stem = {"stem_type": "deep", "stem_width": widths[0] // 2}
    net = ResNet(block, blocks, classes, channels, channels=widths, **stem, **groups)
    net.conv1 = stem_convolution(nn.Conv2d, channels, widths[0], kernel=7, stride=2)
    return net


def _resnet_v2(
    blocks: Sequence[int],
    widths: Sequence[int],
    stem: int,
    channels: int,
    classes: int,
    basic: bool,
) -> nn.Module:
    """timm's pre-activation ResNet with batch norm (its own default is group norm)."""
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    layers = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}
    ratio = 1.0 if basic else 0.25
    sizes = {"stem_chs": stem, "basic": basic, "bottle_ratio": ratio}
    return ResNetV2(blocks, widths, classes, channels, **sizes, **layers)


def _widened(channels: Sequence[int], width: float, multiple: int = 2) -> tuple[int, ...]:
    """`channels` times `width`, rounded to a multiple; ValueError if none are left."""
    if not 0 < width <= WIDEST:
        raise ValueError(
            f"width={width}: multiplies channels, above 0, up to {WIDEST:,}; write 1.0 for the"
            " family's own"
        )
    scaled = tuple(round(c * width / multiple) * multiple for c in channels)
    if not all(scaled):
        raise ValueError(
            f"width={width}: leaves no channels; write {multiple / min(channels)} or more"
        )
    return scaled


def _check_depth(depth: int, known: Sequence[int]) -> None:
    if depth not in known:
        raise ValueError(f"depth={depth}: no such depth here; choose one of {_listed(known)}")


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
