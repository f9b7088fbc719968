"""Is the set-up sound? One batch tells, before hours of training do."""

import logging
from dataclasses import is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.acceleration.precision import float32
from sat.errors import Refused
from sat.rng import RowRng

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
            _check_attack(model, attack, x, y)
        finally:
            model.train(training)


def warn_of_threat_models(training: Any, others: dict[str, Any]) -> None:
    """An L2 model measured under L-inf, or the reverse, is nearly always a mistake."""
    norm = getattr(training, "norm", None)
    for name, attack in others.items():
        if norm is not None and getattr(attack, "norm", norm) != norm:
            log.warning("attack.norm=%s, but %s is in %s; dataset.norm=%s changes all", norm, name,
                        attack.norm, norm)  # fmt: skip


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


def _check_attack(model: nn.Module, attack: Any, x: Tensor, y: Tensor) -> None:
    rng = RowRng(0, torch.arange(len(x), device=x.device))
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x_adv = attack(model, x, y, rng)
    eps, norm = getattr(attack, "eps", None), getattr(attack, "norm", "linf")
    size = (x_adv - x).flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf).max().item()
    if eps is not None and size > eps / 255 + 1e-5:
        raise Refused(f"attack.eps={eps:g}: the attack moves an image by {255 * size:.4g}/255")
    if not (0 <= x_adv.min() and x_adv.max() <= 1):
        raise Refused("attack: leaves the range [0, 1] of the images; it must clamp to it")
    if any(not torch.equal(buffer, state[name]) for name, buffer in model.named_buffers()):
        raise Refused("attack: changes the model's statistics; batch norm must rest meanwhile")
    if eps is not None and is_dataclass(attack):
        if not torch.allclose(replace(attack, eps=0)(model, x, y, rng), x, atol=1e-6):
            raise Refused("attack: changes the images at eps=0; the perturbation is not projected")
    with torch.no_grad():
        before, after = (F.cross_entropy(model(image), y).item() for image in (x, x_adv))
    if eps and after <= before:
        log.warning(
            "preflight: the attack does not raise the loss of the first batch (%.4f to %.4f): its"
            " gradient may be masked, or the network's last layer begins at 0", before, after,
        )  # fmt: skip
