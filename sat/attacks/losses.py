"""Losses that an attack may ascend, by the names of `attack.loss`; one value an image.

Each takes logits [B, K] and labels, [B] or soft [B, K] (`margin`, `cw` and `dlr`, which are about
one label, take the likeliest), and gives [B]. `kl` takes what the model says of the clean images
in the place of labels: see `reference`. The targeted forms take a target class [B] as well.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossName = Literal["auto", "ce", "kl", "cw", "dlr", "margin"]
Loss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL divergence from the clean images' log-probabilities [B, K] (TRADES, Zhang et al. 2019)."""
    here = F.log_softmax(logits, 1)
    return F.kl_div(here, clean, reduction="none", log_target=True).sum(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the label's: above 0 the image is fooled."""
    y = one_label(y)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def cw(logits: Tensor, y: Tensor) -> Tensor:
    """The margin, cut at 0: a fooled image is left alone (Carlini and Wagner 2017)."""
    return margin(logits, y).clamp(max=0)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020); where fewer than 3 classes have a finite
    logit there is no scale, and it is the margin, whose gradient has the same direction."""
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    ratio = top[:, 0] - top[:, 2] + 1e-12
    return margin(logits, y) / torch.where(top[:, 2].isinf(), 1.0, ratio)


def targeted_ce(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the target as label, negated."""
    return -ce(logits, target)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's."""
    y = one_label(y)
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted difference of logits ratio; where fewer than 4 classes have a finite logit there
    is no scale, and it is the plain difference, whose gradient has the same direction."""
    difference = targeted_margin(logits, y, target)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    ratio = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
    return difference / torch.where(top[:, 3].isinf(), 1.0, ratio)


LOSSES: dict[str, Loss] = {"ce": ce, "kl": kl, "cw": cw, "dlr": dlr, "margin": margin}
TARGETED: dict[str, TargetedLoss] = {
    "ce": targeted_ce, "dlr": targeted_dlr, "margin": targeted_margin,
}  # fmt: skip


def named(loss: str) -> Loss:
    """The loss of that name; `auto` is cross-entropy where no objective has resolved it."""
    return LOSSES["ce" if loss == "auto" else loss]


@torch.no_grad()
def reference(loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What the loss compares logits with: the labels; for `kl` the model's own answer on x."""
    return F.log_softmax(model(x), 1) if loss is kl else y


def one_label(y: Tensor) -> Tensor:
    """Labels [B] of labels [B] or soft ones [B, K]."""
    return y if y.ndim == 1 else y.argmax(1)
