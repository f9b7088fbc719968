"""A verdict is computed in IEEE float32, whatever the model trains in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def set_tf32(on: bool | None) -> None:
    """Whether products and convolutions of float32 on a GPU may round their factors to 10 bits;
    None: convolutions alone, as torch has it."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on is not False


def channels_last_pays(kind: str, precision: str) -> bool:
    """Whether it pays on a device of this kind: but for float32 on a GPU, whose best kernels want
    them first."""
    return kind != "cuda" or precision != "fp32"


def lay_out(model: nn.Module, channels_last: bool) -> None:
    """Weights, and images in the model's forward, with the channels last or first; first in a
    network that takes no others."""
    channels_last = channels_last and getattr(model, "any_layout", True)
    model.channels_last = channels_last
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def autocast_of(model: nn.Module) -> torch.dtype | None:
    """The type that the model's forward computes in; None: that of its weights."""
    return getattr(model, "autocast", None)


def gradient_scale(model: nn.Module) -> float:
    """What a loss is multiplied with for a gradient of the images: float16 would round small ones
    to 0."""
    return 2.0**10 if autocast_of(model) is torch.float16 else 1.0


@contextmanager
def tf32_kept() -> Iterator[None]:
    """On leaving, products and convolutions may round as they might before."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


@contextmanager
def float32(model: nn.Module) -> Iterator[None]:
    """The model without its autocast, products and convolutions without TF32, new tensors in
    float32 unless they say otherwise; on leaving all is as it was."""
    before, default = autocast_of(model), torch.get_default_dtype()
    with tf32_kept():
        torch.set_default_dtype(torch.float32)
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        if before is not None:
            model.autocast = None
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            if before is not None:
                model.autocast = before
