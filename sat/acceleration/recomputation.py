"""Gradient checkpointing, as timm has it: what a block computes inside is not kept for the backward
pass but computed again in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


def recompute(model: nn.Module) -> None:
    """Switches it on for a classifier, in attacks and evaluations too.

    Raises ValueError, beginning with the key, for a network that timm has not prepared for it.
    """
    try:
        model.backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:  # timm's models answer by an assertion
        raise ValueError(
            f"grad_checkpointing=true: timm has none for {type(model.backbone).__name__}; write"
            " false"
        ) from error
    model.recomputes = True


@contextmanager
def counted_once(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Guards a backward pass: its second forward would move statistics of batch norm once more."""
    held = [buffer.clone() for buffer in buffers]
    yield
    for now, before in zip(buffers, held, strict=True):
        now.copy_(before)
