"""The eps-ball around an image, cut by [0, 1]: noise on it, and the way back into it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sat.rng import RowRng


@dataclass(frozen=True)
class Ball:
    """Radius `eps` (as a share of the pixel range) in the norm."""

    eps: float
    norm: Literal["linf", "l2"]

    def size(self, d: Tensor) -> Tensor:
        """The norm of each row [B, 1, 1, 1], kept off 0 so that it can divide."""
        order = torch.inf if self.norm == "linf" else 2
        return d.flatten(1).norm(p=order, dim=1).clamp_min_(1e-12).view(-1, 1, 1, 1)

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball around x for Linf; scaled towards x for L2."""
        if self.norm == "linf":
            low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
            return torch.minimum(torch.maximum(point, low), high)
        d = point - x
        return (x + d * (self.eps / self.size(d)).clamp_(max=1)).clamp_(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 that rises the most."""
        return gradient.sign() if self.norm == "linf" else gradient / self.size(gradient)

    def surface(self, x: Tensor, rng: RowRng) -> Tensor:
        """A random point at distance eps of x, then cut by [0, 1]."""
        shape = x.shape[1:]
        noise = rng.normal("start", *shape)
        if self.norm == "linf":
            noise = 2 * rng.uniform("start", *shape) - 1
        return (x + self.eps * noise / self.size(noise)).clamp_(0, 1)
