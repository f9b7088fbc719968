"""What of an image a network never looks at: rows and columns that its patches leave over."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sat.activations.swap import in_eval_mode

# A row or two is lost to strides in networks that people use as they are (Inception at 224 pixels).
REFUSED = 0.1  # of the pixels


def seen(net: nn.Module, image: Tensor) -> tuple[int, int]:
    """How many rows and columns of images like `image` [1, C, H, W] move the output of `net`.

    All, where the input has no gradient that could tell. `net` is left as it was.
    """
    with in_eval_mode(net), _nothing_is_zero(net):
        rows, columns = _moved(net, image)
        if 0 < int(rows.sum() * columns.sum()) < rows.numel() * columns.numel():
            noise = torch.randn(8, *image.shape[1:], generator=torch.Generator().manual_seed(1))
            again = _moved(net, noise.to(image))  # one image alone may miss a row by chance
            rows, columns = rows | again[0], columns | again[1]
    if not rows.any():
        return image.shape[2], image.shape[3]
    return int(rows.sum()), int(columns.sum())


def _moved(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [H] and columns [W] with a gradient anywhere; none, where there is no gradient."""
    x = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(net(x).square().sum(), x)
    except RuntimeError:  # a network of whole numbers, say; who attacks it will be told
        gradient = torch.zeros_like(x)
    moves = (gradient != 0).any(1).any(0)
    return moves.any(1), moves.any(0)


@contextmanager
def _nothing_is_zero(net: nn.Module) -> Iterator[None]:
    """Weights that begin at 0 (of a branch's last scale, of a last layer) are small noise in here,
    since nothing is seen through them."""
    generator = torch.Generator().manual_seed(0)
    zero = [weight for weight in net.parameters() if not weight.any()]
    with torch.no_grad():
        for weight in zero:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zero:
                weight.zero_()
