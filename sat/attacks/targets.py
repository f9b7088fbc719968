"""The classes that a targeted search leads to, those that promise the most first.

On four networks of a hundred classes (two digits side by side), in twelve balls of L-inf, L2 and L1
with 200 to 300 images each, MALT's order felled 7 images that the likeliest nine did not, all in
L2, and left none that they felled. For each image that a targeted attack meets it costs a forward
and min(K - 1, 100) backward passes, a third more of these than without. With ten classes all are
tried anyway.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from sat.attacks.ball import Norm

Choice = Literal["auto", "likeliest", "malt"]
TRIED = 9  # at most
LOOKED_AT = 100  # of the likeliest wrong classes, by MALT
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}  # the norm of a slope, by that of the way


@torch.no_grad()
def ranked(choice: Choice, model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """At most nine other classes of each image, [B, T] of x [B, C, H, W]: the likeliest, or, with
    `malt`, the nearest; -1 in place of those whose logit is -inf, as of classes that a head masks,
    unless all are: then other points may have others. `auto` is `malt` where not all can be tried.
    A label y of -1 is unknown."""
    logits = model(x)
    own = y.clamp_min(0)[:, None]
    lowest = torch.finfo(logits.dtype).min
    others = logits.clamp_min(lowest).scatter(1, own, -math.inf)  # the label comes last
    values, classes = others.sort(dim=1, descending=True, stable=True)
    values, classes = values[:, :-1], classes[:, :-1].clone()
    classes[(values == lowest) & (values[:, :1] > lowest)] = -1
    if by_malt(choice, logits.shape[1]):
        classes = by_distance(model, x, own, classes, norm)
    return classes[:, :TRIED]


def by_malt(choice: Choice, classes: int) -> bool:
    return choice == "malt" or choice == "auto" and classes - 1 > TRIED


@torch.enable_grad()
def by_distance(model: nn.Module, x: Tensor, own: Tensor, classes: Tensor, norm: Norm) -> Tensor:
    """The first hundred of `classes` [B, T], the nearest first, were the model as linear as it is
    at x: MALT (Melamed, Yehudai and Shamir 2024, "Malt powers up adversarial attacks"). The label's
    is `own` [B, 1]. A backward pass a class; a forward, too, where the network is compiled so that
    its backward can't be done twice."""
    classes, x = classes[:, :LOOKED_AT], x.detach().requires_grad_()

    def ahead() -> Tensor:
        logits = model(x)
        return logits.gather(1, own) - logits.gather(1, classes.clamp_min(0))

    def steepness(of: Callable[[], Tensor], retain: bool) -> Tensor:
        slopes = (
            torch.autograd.grad(of()[:, k].sum(), x, retain_graph=retain)[0]
            for k in range(classes.shape[1])
        )
        return torch.stack([slope.flatten(1).norm(p=DUAL[norm], dim=1) for slope in slopes], 1)

    gaps = ahead()
    try:
        steep = steepness(lambda: gaps, retain=True)
    except RuntimeError:  # torch.compile's backward, which overwrites what it was given
        steep = steepness(ahead, retain=False)
    distance = (gaps.detach() / steep).nan_to_num(math.inf).masked_fill(classes < 0, math.inf)
    return classes.gather(1, distance.sort(dim=1, stable=True).indices)
