"""Is the set-up sound? One batch tells, before hours of training do."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.precision import float32
from sat.attacks.base import check_attack
from sat.errors import Refused

log = logging.getLogger("sat")


def preflight(model: nn.Module, attack: Any, x: Tensor, y: Tensor) -> None:
    """Checks images x [B, C, H, W], labels y [B], model and attack against each other.

    Raises Refused with a sentence that says what is wrong; warns of what may be meant. In float32,
    whatever ran before in this process. Leaves the model and the generators as they were.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    training = model.training
    with torch.random.fork_rng(devices), float32(model):
        try:
            _check_images(x)
            _check_model(model.eval(), x, y)
            check_attack(attack, model, x, y)
        finally:
            model.train(training)


def warn_of_threat_models(training: Any, others: dict[str, Any]) -> None:
    """An L2 model measured under L-inf, or the reverse, is nearly always a mistake."""
    for name, attack in others.items():
        if training.eps and attack.norm != training.norm:
            log.warning("attack.norm=%s, but %s is in %s; dataset.norm=%s changes all",
                        training.norm, name, attack.norm, training.norm)  # fmt: skip


def _check_images(x: Tensor) -> None:
    low, high = x.min().item(), x.max().item()
    if x.dtype != torch.float32 or not (0 <= low <= high <= 1):
        raise Refused(
            f"dataset: images are {x.dtype} from {low:.3g} to {high:.3g} instead of float32 in"
            " [0, 1]; they must be neither normalised (the model does it) nor left at 0 to 255"
        )
    if high - low < 0.1:
        raise Refused(
            f"dataset: a batch of images spans {low:.3g} to {high:.3g} only, as if divided by 255"
            " twice; store them as uint8, 0 to 255"
        )


def _check_model(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        logits = model(x)
    if logits.shape[:1] != x.shape[:1] or logits.ndim != 2 or not torch.isfinite(logits).all():
        raise Refused(
            f"model: gives logits of shape {list(logits.shape)} for {len(x)} images, or some that"
            " are not finite; try schedule.precision=fp32, or another model"
        )
    if y.max() >= logits.shape[1]:
        raise Refused(
            f"dataset: has the label {int(y.max())}, but the model {logits.shape[1]} classes;"
            " labels must run from 0 to classes - 1"
        )
