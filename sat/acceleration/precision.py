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
    before, default = getattr(model, "autocast", None), torch.get_default_dtype()
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
