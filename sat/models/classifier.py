"""The classifier: images in [0, 1] in, logits out; a backbone with its activations swapped."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sat.activations.swap import SwapReport, prove_swap, swap_activations, title
from sat.models.sight import REFUSED, seen

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
    forward on a random image of `image_shape` (channels, height, width). The report is its `swap`.

    Raises ValueError where the proof fails, and where a tenth of the pixels or more has no
    influence, as one input gradient tells; warns of fewer.
    """
    report = swap_activations(backbone, activation)
    device = next(backbone.parameters()).device
    image = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    net = Classifier(backbone, mean, std)
    net.swap = prove_swap(backbone, image, report)
    _check_sight(backbone, image)
    return net


def _check_sight(net: nn.Module, image: Tensor) -> None:
    """Refuses a network that never looks at much of such an image [1, C, H, W]."""
    height, width = image.shape[2:]
    rows, columns = seen(net, image)
    if (unseen := 1 - rows * columns / (height * width)) == 0:
        return
    said = (
        f"name={title(net)}: {unseen:.1%} of the pixels of {height}x{width} images move nothing; it"
        f" sees {rows}x{columns}, all of dataset.image_size={min(rows, columns)}"
    )
    if unseen > REFUSED:
        raise ValueError(f"{said}; choose that, or another model")
    log.warning("model.%s", said)
