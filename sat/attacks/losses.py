"""Losses that an attack may ascend, by the names of `attack.loss`; one value an image.

Each takes logits [B, K] and labels, [B] or soft [B, K] (`margin`, `cw`, `dlr` and `pma`, which are
about one label, take the likeliest), and gives [B]. `kl` takes what the model says of the clean
images in the place of labels: see `reference`. The targeted forms take a target class [B] as well.
What an attack says of its loss becomes one of these in `aimed`.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.errors import Refused

LossName = Literal["auto", "ce", "kl", "cw", "dlr", "margin", "pma"]
Loss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ce(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy; labels are smoothed over the classes that no logit of -inf masks."""
    if not label_smoothing or y.ndim > 1:
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)
    here, masked = F.log_softmax(logits, 1), logits == -torch.inf
    # in float64, as torch divides: without masked classes all is torch's to the bit
    share = (label_smoothing / (~masked).sum(1).double()).to(here)
    others = -here.masked_fill(masked, 0.0).sum(1)
    return (1 - label_smoothing) * F.nll_loss(here, y, reduction="none") + others * share


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL divergence from the clean images' log-probabilities [B, K] (TRADES, Zhang et al. 2019)."""
    return divergences(clean, F.log_softmax(logits, 1)).sum(1)


def divergences(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [B, K], class by class: [B, K]. One that is impossible by p
    adds nothing and has no gradient, where 0 * inf would be no number."""
    never = p == -torch.inf
    p, q = p.masked_fill(never, 0.0), q.masked_fill(never, 0.0)
    return F.kl_div(q, p, reduction="none", log_target=True)


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


def pma(logits: Tensor, y: Tensor) -> Tensor:
    """The margin of probabilities, plus 1: above 1 the image is fooled (Xin et al. 2024, PMA). The
    1 stands for all probabilities together, so that the label's, where it rounds to 1 and has no
    gradient, is not asked for. It is above 0 everywhere, so that APGD counts its first step as a
    rise (see `sat.attacks.apgd`)."""
    wrong = _wrong(logits, y)
    return wrong.amax(1) + wrong.sum(1)


def targeted_ce(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the target as label, negated."""
    return -ce(logits, target)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's."""
    y = one_label(y)
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def targeted_cw(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted margin, cut at 0: an image that is taken for the target is left alone."""
    return targeted_margin(logits, y, target).clamp(max=0)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted difference of logits ratio; where fewer than 4 classes have a finite logit there
    is no scale, and it is the plain difference, whose gradient has the same direction."""
    difference = targeted_margin(logits, y, target)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    ratio = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
    return difference / torch.where(top[:, 3].isinf(), 1.0, ratio)


def targeted_pma(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's probability minus the label's, plus 1."""
    wrong = _wrong(logits, y)
    return wrong.gather(1, target[:, None])[:, 0] + wrong.sum(1)


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    """The probabilities of all classes [B, K], 0 in the place of the label's."""
    return logits.softmax(1).scatter(1, one_label(y)[:, None], 0.0)


LOSSES: dict[str, Loss] = {
    "ce": ce, "kl": kl, "cw": cw, "dlr": dlr, "margin": margin, "pma": pma,
}  # fmt: skip
TARGETED: dict[str, TargetedLoss] = {
    "ce": targeted_ce, "cw": targeted_cw, "dlr": targeted_dlr, "margin": targeted_margin,
    "pma": targeted_pma,
}  # fmt: skip


class Aim(Protocol):
    """What an attack says of the loss that it ascends."""

    @property
    def loss(self) -> str: ...
    @property
    def label_smoothing(self) -> float: ...  # of cross-entropy
    @property
    def target(self) -> int | None: ...  # a class to be taken for: the k-th likeliest wrong one


def check_aim(attack: Aim) -> None:
    """Raises ValueError, beginning with the key, for what no loss of its kind can be."""
    if not 0 <= attack.label_smoothing < 1:
        raise ValueError(f"label_smoothing={attack.label_smoothing}: from 0 to below 1")
    if attack.label_smoothing and (attack.loss not in ("auto", "ce") or attack.target):
        ascended = "a target's" if attack.target else attack.loss
        raise ValueError(
            f"label_smoothing={attack.label_smoothing}: is of the loss ce, and this attack ascends"
            f" {ascended}; write 0"
        )
    if attack.target is not None and attack.target < 1:
        raise ValueError(
            f"target={attack.target}: is the rank of a wrong class, 1 for the likeliest; null for"
            " no target"
        )
    if attack.target and attack.loss == "kl":
        raise ValueError(
            f"target={attack.target}: the loss kl leads away from the clean answer, and to no"
            " class; write loss=ce, cw, dlr, margin or pma"
        )


def aimed(attack: Aim, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Loss, Tensor]:
    """The loss that the attack ascends, and what it compares logits with: the labels, or for `kl`
    what the model says of the clean images. `auto` is cross-entropy where no objective has resolved
    it. A target is chosen by the model's answer to the clean images."""
    name = "ce" if attack.loss == "auto" else attack.loss
    if attack.target:
        loss, target = TARGETED[name], likely_wrong(model, x, y, attack.target)
        return lambda logits, y: loss(logits, y, target), y
    if attack.label_smoothing:
        return partial(ce, label_smoothing=attack.label_smoothing), y
    return LOSSES[name], reference(LOSSES[name], model, x, y)


@torch.no_grad()
def likely_wrong(model: nn.Module, x: Tensor, y: Tensor, rank: int) -> Tensor:
    """The class [B] of that rank, from 1, among those but the label's, by the clean images; the
    last one that is not masked (a logit of -inf). Raises Refused where there are fewer."""
    logits = model(x)
    if rank >= logits.shape[1]:
        raise Refused(f"attack.target={rank}: there are {logits.shape[1] - 1} wrong classes")
    others = logits.scatter(1, one_label(y)[:, None], -torch.inf)
    found = others.topk(rank, dim=1)
    last = (found.values > -torch.inf).sum(1, keepdim=True).clamp(min=1) - 1  # not masked
    return found.indices.gather(1, last)[:, 0]


@torch.no_grad()
def reference(loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What the loss compares logits with: the labels; for `kl` the model's own answer on x."""
    return F.log_softmax(model(x), 1) if loss is kl else y


def one_label(y: Tensor) -> Tensor:
    """Labels [B] of labels [B] or soft ones [B, K]."""
    return y if y.ndim == 1 else y.argmax(1)
