"""Stems: small images keep their size, large ones are halved twice."""

import logging
import math
from typing import Literal

from torch import nn

log = logging.getLogger("sat")
Stem = Literal["auto", "small", "large", "conv"]


def fit_stem(net: nn.Module, stem: Stem, image_size: int, pretrained: bool = False) -> nn.Module:
    """Give `net` the stem asked for, in place: small is a 3x3 convolution of stride 1 without
    pooling, large what the family has. auto is small for images of at most 64 pixels, and large
    for pretrained weights or where this function knows no small one. A small stem that would lose
    pretrained weights is refused. conv is a stack of 3x3 convolutions in the place of large
    patches, for ConvNeXt and ViT; it begins anew.
    """
    from timm.models.resnet import ResNet
    from timm.models.resnetv2 import ResNetV2

    if stem == "conv":
        return _convolutional(net)
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


def _convolutional(net: nn.Module) -> nn.Module:
    """ConvStem (Singh et al. 2023, as ConvNeXt-T-CvSt and ViT-S-CvSt have it): each 3x3 convolution
    of stride 2 doubles the channels, with layer norm and activation after it; a ViT's ends in a 1x1
    one."""
    from timm.models.convnext import ConvNeXt
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(net, ConvNeXt):
        first, last = net.stem[0], next(m for m in net.stem[::-1] if isinstance(m, nn.Conv2d))
        stride = math.prod(m.stride[0] for m in net.stem if isinstance(m, nn.Conv2d))
        net.stem = _stack(first.in_channels, last.out_channels, stride)
    elif isinstance(net, VisionTransformer):
        patches = net.patch_embed.proj
        stack = _stack(patches.in_channels, patches.out_channels, patches.stride[0])
        width = patches.out_channels
        net.patch_embed.proj = nn.Sequential(*stack, nn.Conv2d(width, width, 1))
    else:
        raise ValueError(
            f"stem=conv: not known for {type(net).__name__}, only for ConvNeXt and ViT; write"
            " stem=auto"
        )
    return net


def _stack(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    from timm.layers import LayerNorm2d

    layers: list[nn.Module] = []
    halvings = stride.bit_length() - 1
    if stride < 4 or 2**halvings != stride or outputs % stride:
        raise ValueError(f"stem=conv: no patches of {stride} pixels; they must be of 4, 8, 16, ...")
    for left in reversed(range(halvings)):
        width = outputs >> left
        layers += [nn.Conv2d(inputs, width, 3, 2, 1), LayerNorm2d(width), nn.GELU()]
        inputs = width
    return nn.Sequential(*layers)


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
