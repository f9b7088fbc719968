"""The classifier: images in [0, 1] in, logits out; a backbone with its activations swapped."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sat.activations.swap import SwapReport, check_module, prove_swap, swap_activations, title
from sat.models.receptive_field import REFUSED, seen

log = logging.getLogger("sat")


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
    sight: tuple[int, int] = (0, 0)  # rows and columns that move the logits

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
    the proof fails. The report is its `swap`; what it sees of such images, as one input gradient
    tells, is its `sight`.
    """
    check_module(backbone, "model")
    report = swap_activations(backbone, activation)
    device = next(backbone.parameters()).device
    image = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    net = Classifier(backbone, mean, std)
    net.swap = prove_swap(backbone, image, report)
    net.sight = seen(backbone, image)
    return net


def check_sight(net: Classifier, size: int, trains: bool) -> None:
    """Refuses to train a network that never looks at much of images of `size` pixels; warns of one
    that does not look at all of them."""
    rows, columns = net.sight
    if (unseen := 1 - rows * columns / size**2) == 0:
        return
    said = (
        f"name={title(net.backbone)}: {unseen:.1%} of the pixels of {size}x{size} images move"
        f" nothing; it sees {rows}x{columns}, all of dataset.image_size={min(rows, columns)}"
    )
    if trains and unseen > REFUSED:
        raise ValueError(f"{said}; choose that, or another model")
    log.warning("model.%s", said)
