"""The classifier: images in [0, 1] in, logits out; a backbone with its activations swapped."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sat.activations.swap import SwapReport, prove_swap, swap_activations


class Classifier(nn.Module):
    """Images in [0, 1], float32 [B, C, H, W], to float32 logits [B, classes].

    Normalises first, so an attack works in pixel space; `mean` and `std` are part of the state
    dict. With `autocast` set, the backbone runs in that type; with `channels_last`, on images laid
    out so (the caller converts the weights).
    """

    autocast: torch.dtype | None = None
    channels_last: bool = False
    any_layout: bool = True  # else images and weights stay with the channels first
    recomputes: bool = False  # see sat.acceleration.recomputation
    swap: SwapReport | None = None

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.autocast is None:
            return self.backbone(x).float()
        with torch.autocast(x.device.type, dtype=self.autocast):
            return self.backbone(x).float()


def assemble(
    backbone: nn.Module,
    activation: Callable[[], nn.Module],
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
) -> Classifier:
    """The classifier with `activation` in place of every activation of `backbone`, proved by one
    forward on a random image of `image_shape` (channels, height, width); raises ValueError where
    the proof fails. The report is its `swap`."""
    report = swap_activations(backbone, activation)
    device = next(backbone.parameters()).device
    image = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    net = Classifier(backbone, mean, std)
    net.swap = prove_swap(backbone, image, report)
    return net
