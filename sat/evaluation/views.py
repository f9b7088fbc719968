"""A few images, what an attack makes of them, and what the network takes both for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sat.attacks import PGD, Attack
from sat.attacks.outcomes import Ensemble
from sat.rng import RowRng


@dataclass(frozen=True)
class Views:
    """Images [B, C, H, W] clean and attacked, on the CPU; names of classes, one an image."""

    x: Tensor
    x_adv: Tensor
    truth: list[str]
    clean: list[str]  # what the network takes the image for
    attacked: list[str]
    fell: list[bool]  # right when clean, wrong under attack
    attack: str  # its words


def views(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    attack: Attack | None,
    classes: Sequence[str],
) -> Views | None:
    """Attacks images x [B, C, H, W] of labels y [B] (-1: unknown) and places `rows` [B] in their
    set; None without an attack. Changes nothing of the model."""
    if attack is None or not attack.eps:
        return None
    if isinstance(attack, Ensemble):  # an ensemble takes minutes, and shows no more
        attack = PGD(attack.eps, 20, norm=attack.norm)
    training = model.training
    model.eval()
    try:
        x_adv = attack(model, x, y.clamp_min(0), RowRng(0, rows.to(x.device)))
        with torch.no_grad():
            seen = [model(points).argmax(1).cpu() for points in (x, x_adv)]
    finally:
        model.train(training)
    y = y.cpu()
    name = lambda labels: [classes[k] if k >= 0 else "?" for k in labels.tolist()]  # noqa: E731
    kind = type(attack).__name__ + (f"-{attack.steps}" if attack.steps else "")
    return Views(
        x.cpu(), x_adv.cpu(), truth=name(y), clean=name(seen[0]), attacked=name(seen[1]),
        fell=((seen[0] == y) & (seen[1] != y)).tolist(),
        attack=f"{kind}, eps {attack.eps:g}/255 {attack.norm}",
    )  # fmt: skip
