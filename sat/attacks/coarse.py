"""Logits of few values (rounding, quantisation, a saturated softmax, a plateau), and what is behind
them: differences too small to move a logit tell a search nothing, and where the last real-valued
layer is in sight it tells what they hide. And gradients that don't say how the logits change."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sat.attacks.ball import Ball
from sat.rng import RowRng

COARSE = 0.05  # of VALUES logits repeat another; 16 bits of half precision give 2 %, 32 bits none
VALUES = 320  # at most: the more there are, the more of them repeat one by chance
# How far a gradient may miss the slope of the logits, as a share of it. 34 honest networks: 0.07 at
# most, six in float16: 0.13; without the gradient of each fourth column of pixels: 0.49.
ASTRAY = 0.2
# Of the pixel range, to either side: float32 is exact enough on the first, float16 on the second.
LENGTHS = (2e-3, 1.6e-2)
NEARBY = 8 / 255  # of an image is that point
DIRECTIONS = 8
POINTS = 4  # of each image's ball, to look at


@torch.no_grad()
def repeated(model: nn.Module, x: Tensor, ball: Ball, rng: RowRng) -> float:
    """The share of logits that repeat another one exactly, over random points around images x
    [B, C, H, W]; classes whose logit never changes are left out."""
    rows = [rng.child("coarse", k).to(x.device) for k in range(POINTS)]
    return share_repeated(torch.cat([model(_around(x, ball, own)) for own in rows]))


def _around(x: Tensor, ball: Ball, rng: RowRng) -> Tensor:
    """A random point of each ball: of its surface, which is two points where an image is one value,
    and then of all of it."""
    if x[0].numel() > 1:
        return ball.surface(x, rng)
    return _within(x, ball.eps, rng)


def _within(x: Tensor, size: float, rng: RowRng) -> Tensor:
    """A random image that is nowhere further than `size` from x, in [0, 1]."""
    low, high = (x - size).clamp_(min=0), (x + size).clamp_(max=1)
    return low + (high - low) * rng.uniform("centre", *x.shape[1:])


def share_repeated(logits: Tensor) -> float:
    """What share of the finite entries [N, K] repeat another, constant columns left out, and log
    probabilities that are 0 since the class is sure; of many entries some, spread over all."""
    moving = logits[:, (logits != logits[:1]).any(0)]
    sure = (moving == 0) & (logits.logsumexp(1, keepdim=True) == 0)
    values = moving[moving.isfinite() & ~sure]
    if len(values) > VALUES:
        values = values[torch.linspace(0, len(values) - 1, VALUES).long()]
    return 1 - len(values.unique()) / max(1, len(values)) if logits.numel() else 0.0


def share_blind(model: nn.Module, x: Tensor) -> float:
    """The share of images x [B, C, H, W] at which the gap between the two largest logits has a
    gradient of exactly 0, or NaN: rounding too fine for values to repeat hides it as well."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        first, second = model(x).topk(2).values.unbind(1)
        (slope,) = torch.autograd.grad((first - second).sum(), x)
    slope = slope.flatten(1)
    return float(((slope == 0) | slope.isnan()).all(1).float().mean())


@torch.no_grad()
def beside_slope(model: nn.Module, x: Tensor, rng: RowRng, length: float) -> Tensor:
    """How far the gradient of the gap between the two largest logits misses its slope, as a
    share of it [B]: from a point near each image [B, C, H, W] to random points that far away.

    Not through the image itself, where zeros lie on the kinks of networks without biases.
    """
    centre = _within(x, NEARBY, rng.child("slope").to(x.device))
    top = model(centre).topk(2).indices
    gap = lambda images: model(images).gather(1, top).diff(dim=1)[:, 0]  # noqa: E731
    with torch.enable_grad():
        there = centre.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(gap(there).sum(), there)
    gradient = gradient.nan_to_num_(0.0)  # as a search goes on with it
    gained, told = [], []
    for k in range(DIRECTIONS):
        after = Ball(length, "linf").surface(centre, rng.child("slope", k).to(x.device))
        before = (2 * centre - after).clamp_(0, 1)
        gained.append((gap(after) - gap(before)).double())
        told.append((gradient * (after - before)).flatten(1).sum(1).double())
    gain = torch.stack(gained)
    off = gain - torch.stack(told)
    return (off.square().sum(0) / gain.square().sum(0)).sqrt().nan_to_num(0.0).float()


def leads_astray(model: nn.Module, x: Tensor, rng: RowRng) -> float:
    """The root mean square of `beside_slope`, 1 at most, over images x [B, C, H, W], each at the
    length where it is smaller; without the largest, since a single image may have no slope."""
    shares = [beside_slope(model, x, rng, length) for length in LENGTHS]
    ranked = torch.minimum(*shares).clamp_(max=1).sort().values
    return float(ranked[: max(1, len(x) - 1)].square().mean().sqrt())


@dataclass
class Tap:
    """Calls a network and shows what its last layer of real values, `module`, gave, one a class."""

    module: nn.Module

    @classmethod
    def of(cls, net: nn.Module, x: Tensor) -> "Tap | None":
        """Looks for a module whose output [B, K] orders the classes as the logits do, has many
        values and a gradient; the last one called is taken. None where there is none."""
        calls: list[tuple[nn.Module, Tensor]] = []
        note = lambda module, given, out: calls.append((module, out))  # noqa: E731
        hooks = [
            module.register_forward_hook(note) for module in net.modules() if module is not net
        ]
        x = x.detach().requires_grad_()
        try:
            with torch.enable_grad():
                logits = net(x)
        finally:
            for hook in hooks:
                hook.remove()
        for module, out in reversed(calls):
            if isinstance(out, Tensor) and out.shape == logits.shape and _tells(out, logits, x):
                return cls(module)
        return None

    def __call__(self, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and that layer's, on which nothing is left: it may be the user's."""
        seen: list[Tensor] = []
        hook = self.module.register_forward_hook(lambda module, given, out: seen.append(out))
        try:
            return net(x), seen[-1].float()
        finally:
            hook.remove()


def _tells(out: Tensor, logits: Tensor, x: Tensor) -> bool:
    """Whether a layer's output says more of the classes than the logits do."""
    if not out.is_floating_point() or share_repeated(out.detach()) > COARSE:
        return False
    if out.grad_fn is None:
        return False
    try:
        (slope,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True, allow_unused=True)
    except RuntimeError:  # a part is compiled by torch, whose backward overwrites the graph
        return False
    if slope is None or not (slope.nan_to_num(0.0) != 0).any():
        return False
    top = logits.gather(1, out.argmax(1, keepdim=True))[:, 0]
    return bool((top >= logits.amax(1)).float().mean() >= 0.5)
