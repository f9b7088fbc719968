"""The attacked network: fast copies to search with, and the model itself to confirm."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from sat.acceleration.folding import fold
from sat.acceleration.precision import lay_out

# A confirmed fall is a margin below 0 by this share of the logits' scale, so that it is one in a
# batch of another size too, where sums round differently.
ROUNDING = 1e-5
# How near to a fall a search in bfloat16 has to come, as a share of the largest logit, for float32
# to be asked: three steps of its 8 bits.
NEAR = 3 * 2.0**-8


class Network:
    """What a search asks of a model: logits, gradients of the input, and a verdict in float32.

    `precision` is what the search runs in (None: float32); it needs a model with an `autocast`
    attribute. The model must be in eval mode, with parameters that ask for no gradient; `x` are
    a few images that it takes.
    """

    def __init__(self, model: nn.Module, precision: torch.dtype | None, x: Tensor) -> None:
        self.exact = model
        self.precision = precision if hasattr(model, "autocast") else None
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.fast = self.low = fold(model, x.to(self.device)).net
        self.near = 0.0
        if self.precision is not None:
            self.near, self.low = NEAR, self._lower(model, x.to(self.device))

    def _lower(self, model: nn.Module, x: Tensor) -> nn.Module:
        """A copy that computes in `precision`, with weights in it unless the model has a part that
        autocast leaves alone."""
        for dtype in (self.precision, None):
            net = fold(model, x, dtype).net
            net.autocast = self.precision
            lay_out(net, channels_last=True)
            try:
                with torch.no_grad():
                    net(x)
                break
            except RuntimeError:
                if dtype is None:
                    raise
        return net

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]):
        """Logits [B, K], loss(logits) [B] and the gradient of each loss by its image."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.low(x)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        return logits.detach(), losses.detach(), gradient

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """In float32: a search without gradients lives on differences that bfloat16 rounds off."""
        return self.fast(x)

    def may_fall(self, logits: Tensor, y: Tensor) -> Tensor:
        """Which images [B] are wrong by these logits of a search, or nearly."""
        return (margins(logits, y) <= self.near * scale(logits)) | ~torch.isfinite(logits).all(1)

    @torch.no_grad()
    def falls(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images [B] the model itself gets wrong, in float32."""
        logits = self.exact(x)
        wrong = margins(logits, y) < -ROUNDING * scale(logits)
        return wrong | ~torch.isfinite(logits).all(1)


@cache
def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """What each step looks up; made once, since a GPU is waited for to make it."""
    return torch.tensor(numbers, device=device)


def scale(logits: Tensor) -> Tensor:
    """How large an image's logits are [B], whatever they have in common."""
    return (logits - logits.mean(1, keepdim=True)).abs().amax(1)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """How far the label's logit is above the best other [B]; below 0 is wrong."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)
