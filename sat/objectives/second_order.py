"""Gradients of the images that are differentiated in turn, by the weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def input_gradient(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The logits of images x [B, C, H, W], and the gradient of the summed loss(logits) with respect
    to x, in the shape of x; both can be differentiated. In training mode images share batch norm's
    statistics, and an image's gradient is that of all their losses. Attention is written out: its
    fused kernels have no second derivative. float16 would round small gradients to 0, so there the
    loss is scaled up meanwhile."""
    x = x.detach().requires_grad_()
    scale = 2.0**10 if getattr(model, "autocast", None) is torch.float16 else 1.0
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        logits = model(x)
        (gradient,) = torch.autograd.grad(scale * loss(logits).sum(), x, create_graph=True)
    return logits, gradient / scale
