"""Stems: small images keep their size, large ones are halved twice."""

import logging
from typing import Literal

from torch import nn

log = logging.getLogger("sat")
Stem = Literal["auto", "small", "large"]


def fit_stem(net: nn.Module, stem: Stem, image_size: int, pretrained: bool = False) -> nn.Module:
    """Give `net` the stem asked for, in place: small is a 3x3 convolution of stride 1 without
    pooling, large what the family has. auto is small for images of at most 64 pixels, and large
    for pretrained weights or where this function knows no small one. A small stem that would lose
    pretrained weights is refused.
    """
    from timm.models.resnet import ResNet
    from timm.models.resnetv2 import ResNetV2

    if stem == "large" or (stem == "auto" and (pretrained or image_size > 64)):
        return net
    if isinstance(net, ResNet):
        _shrink(net, "conv1", ("maxpool",), pretrained)
    elif isinstance(net, ResNetV2):
        conv = "conv" if hasattr(net.stem, "conv") else "conv1"
        _shrink(net.stem, conv, ("pad", "pool"), pretrained)
    elif isinstance(getattr(net, "conv_stem", None), nn.Conv2d):
        _shrink(net, "conv_stem", (), pretrained)
    elif stem == "small":
        raise ValueError(
            f"stem=small: not known for {type(net).__name__}, only for ResNet, ResNetV2 and "
            "EfficientNet-like models; write stem=auto"
        )
    else:
        log.warning(
            "model.stem=auto: no small stem is known for %s, which was made for larger images than"
            " %d pixels; dataset.image_size=224 enlarges them", type(net).__name__, image_size,
        )  # fmt: skip
    return net


def _shrink(owner: nn.Module, name: str, pools: tuple[str, ...], pretrained: bool) -> None:
    """Make the stem convolution `owner.name` 3x3 with stride 1, and drop the pooling after it."""
    conv = getattr(owner, name)
    first = conv[0] if isinstance(conv, nn.Sequential) else conv  # a deep stem: three 3x3
    dropped = [pool for pool in pools if hasattr(owner, pool)]
    too_large = first.kernel_size[0] > 3
    if pretrained and (
        too_large or any(list(getattr(owner, pool).parameters()) for pool in dropped)
    ):
        raise ValueError(
            "stem=small: would throw away the pretrained weights of the stem; write stem=large, or "
            "pretrained=false"
        )
    first.stride = (1, 1)
    if too_large:
        setattr(
            owner, name, stem_convolution(type(first), first.in_channels, first.out_channels, 3, 1)
        )
    for pool in dropped:
        setattr(owner, pool, nn.Identity())


def stem_convolution(kind: type, inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    conv = kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
