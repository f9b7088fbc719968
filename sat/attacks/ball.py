"""The eps-ball of an attack, cut by [0, 1]: its size, its nearest point, its steepest way up."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sat.arguments import check_choices
from sat.rng import RowRng

Norm = Literal["linf", "l2", "l1"]
_ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
SPARSE = 0.05  # of an image's entries share a step in L1 (Croce and Hein 2021)


@dataclass(frozen=True)
class Ball:
    """The eps-ball around an image, cut by [0, 1]: radius `eps`, as a share of the pixel range, a
    number or a tensor without dimensions."""

    eps: float | Tensor
    norm: Norm

    def __post_init__(self) -> None:
        check_choices(self)

    def size(self, d: Tensor) -> Tensor:
        """The norm of each row [B, 1, 1, 1], kept off 0 so that it can divide."""
        size = d.flatten(1).norm(p=_ORDER[self.norm], dim=1)
        return size.clamp_min_(1e-12).view(-1, 1, 1, 1)

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball around x for Linf and L1; scaled towards x for L2."""
        return self.around(x)(point)

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The projection onto the ball around x, for many points."""
        if self.norm == "linf":
            low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
            return lambda point: point.clamp(low, high)
        if self.norm == "l1":
            return lambda point: x + onto_l1(point - x, x, self.eps)
        scaled = lambda d: d * (self.eps / self.size(d)).clamp_(max=1)  # noqa: E731
        return lambda point: (x + scaled(point - x)).clamp_(0, 1)

    def steepest(self, gradient: Tensor, entries: Tensor | None = None) -> Tensor:
        """The direction of length 1 that rises the most. In L1 that would be one entry, which a
        step carries out of [0, 1]: it is the sign of the largest `entries` [B] of each image."""
        if self.norm == "linf":
            return gradient.sign()
        gradient = without_infinities(gradient)
        if self.norm == "l2":
            # Where a softmax saturates its gradient's squares are 0; a power of two moves no bit.
            largest = gradient.flatten(1).abs().amax(1).clamp_min_(torch.finfo(gradient.dtype).tiny)
            scale = largest / (2 * torch.frexp(largest).mantissa)
            scaled = gradient / scale.view(-1, 1, 1, 1)
            return scaled / self.size(scaled)
        if entries is None:
            count = math.prod(gradient.shape[1:])
            entries = torch.full(
                (len(gradient),), count - int((1 - SPARSE) * count), device=gradient.device
            )
        size = gradient.abs()
        ranked = size.flatten(1).sort(dim=1, descending=True).values
        least = ranked.gather(1, (entries - 1).clamp(0, ranked.shape[1] - 1)[:, None])
        signs = gradient.sign() * (size >= least.view(-1, 1, 1, 1))
        return signs / self.size(signs)

    def noise(self, shape: torch.Size, rng: RowRng) -> Tensor:
        """A uniform point of the ball of radius 1 around 0, uncut, for each row [B, *shape]."""
        if self.norm == "linf":
            return 2 * rng.uniform("start", *shape) - 1
        if self.norm == "l2":
            direction = rng.normal("start", *shape)
            radius = rng.uniform("radius", 1, 1, 1) ** (1 / math.prod(shape))
            return radius * direction / self.size(direction)
        spread = _laplace(rng.uniform("start", *shape))
        return spread / (self.size(spread) - torch.log1p(-rng.uniform("radius", 1, 1, 1)))

    def surface(self, x: Tensor, rng: RowRng) -> Tensor:
        """A random point at distance eps of x, then cut by [0, 1]."""
        shape = x.shape[1:]
        if self.norm == "l2":
            noise = rng.normal("start", *shape)
        else:
            uniform = rng.uniform("start", *shape)
            noise = 2 * uniform - 1 if self.norm == "linf" else _laplace(uniform)
        return (x + self.eps * noise / self.size(noise)).clamp_(0, 1)

    def holds(self, point: Tensor, x: Tensor) -> Tensor:
        """Which points [B] are finite, in [0, 1] and, but for rounding, in the ball around x."""
        within = ((point >= 0) & (point <= 1)).flatten(1).all(1)  # False for NaN
        return within & (self.size(point - x).flatten() <= self.eps * (1 + 1e-5) + 1e-6)


def _laplace(uniform: Tensor) -> Tensor:
    """Laplace noise of uniform numbers in [0, 1); scaled to one length it is uniform in L1."""
    signed = (2 * uniform - 1).clamp_(-1 + 2.0**-23, 1 - 2.0**-23)
    return -signed.sign() * torch.log1p(-signed.abs())


def onto_l1(d: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """The nearest [B, ...] to d of those of L1 norm eps at most that leave x + d in [0, 1] (Croce
    and Hein 2021, "Mind the box").

    Each entry keeps clamp(|d| - cut, 0, room), room being its way to the end of [0, 1], with one
    cut an image. What is kept falls with the cut, linearly between the points where an entry begins
    to shrink or is gone; those are sorted, and the cut lies between two of them.
    """
    size, room = d.flatten(1).abs(), torch.where(d > 0, 1 - x, x).flatten(1)
    points, order = torch.cat([size - room, size], 1).clamp_(min=0).double().sort(dim=1)
    shrinking = torch.where(order < size.shape[1], 1.0, -1.0).double().cumsum(1)
    kept = torch.minimum(size, room).double().sum(1, keepdim=True)
    lost = (shrinking[:, :-1] * points.diff(dim=1)).cumsum(1)
    excess = torch.cat([kept, kept - lost], 1) - eps
    last = ((excess > 0).sum(1, keepdim=True) - 1).clamp(min=0)  # at which too much is kept
    rest, speed = excess.gather(1, last).clamp(min=0), shrinking.gather(1, last).clamp(min=1)
    cut = torch.where(excess[:, :1] > 0, points.gather(1, last) + rest / speed, 0.0)
    left = size - cut.to(size.dtype)
    left = torch.where(left > 1e-6 * size, left, 0.0)  # gone but for rounding is gone
    return d.sign() * torch.minimum(left, room).view_as(d)


def without_infinities(gradient: Tensor) -> Tensor:
    """A gradient [B, ...] whose infinite entries are as large as the largest other one of their
    image, and 0 where they are no number: no such entry, of a square root at a black pixel, may
    take the whole step."""
    limit = torch.finfo(gradient.dtype).max
    size = gradient.abs()
    largest = size.where(size < limit, 0.0).flatten(1).amax(1).view(-1, *[1] * (gradient.ndim - 1))
    return gradient.where(size < limit, gradient.sign() * largest.where(largest > 0, 1.0))
