"""The optimiser, and steps of it that change nothing, on the device's own word."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from sat.acceleration.auto import FUSED


class Recipe(Protocol):
    """What of a schedule builds an optimiser."""

    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def check_optimizer(name: str) -> None:
    """Refuses what timm does not know, or what needs second derivatives."""
    if name in FUSED:  # timm takes seconds to import
        return
    from difflib import get_close_matches

    from timm.optim import list_optimizers

    known = [known for known in list_optimizers() if known != "adahessian"]
    if name.removeprefix("lookahead_") not in known:
        nearest = ", ".join(get_close_matches(name, known, 3, 0.4)) or "sgd, adamw"
        raise ValueError(f"optimizer={name}: timm has none that fits; nearest: {nearest}")


def build_optimizer(model: nn.Module, schedule: Recipe, fused: bool = False) -> Optimizer:
    """timm's optimiser, momentum 0.9; `sgd` is Nesterov's, `momentum` the plain one. `fused` asks
    torch for its step in one launch, which takes states laid out as the weights are.

    The learning rate is set anew before each step. Raises ValueError for one that can't be built.
    """
    from timm.optim import create_optimizer_v2, param_groups_weight_decay

    inner = getattr(model, "backbone", model)
    spared = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    spared = [f"backbone.{name}" for name in spared]
    groups = param_groups_weight_decay(model, schedule.weight_decay, no_weight_decay_list=spared)
    more = {"fused": True} if fused else {}
    try:
        optimizer = create_optimizer_v2(
            groups, opt=schedule.optimizer, lr=schedule.learning_rate, weight_decay=0.0, **more
        )
    except Exception as error:  # a package that is not there, or a kind of parameter it can't take
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"optimizer={schedule.optimizer}: can't be built here ({reason}); sgd and adamw can"
        ) from error
    if skips_on_device(optimizer):
        _begin(optimizer)
    return optimizer


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether its step changes nothing where `optimizer.found_inf`, on the device, is 1: torch's
    fused ones. Others assert it away, or become NaN."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and type(optimizer) in (SGD, Adam, AdamW, Adagrad)


def _begin(optimizer: Optimizer) -> None:
    """Makes a fused step one that may be skipped, and that a graph may hold: its learning rate is a
    tensor on the device."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        if "capturable" in group:  # of Adam's, by which torch lets it be captured
            group["capturable"] = device.type == "cuda"
        exact = torch.float64 if device.type == "cpu" else torch.float32  # what each kernel reads
        group["lr"] = torch.tensor(float(group["lr"]), device=device, dtype=exact)
    _rest(optimizer)


def _rest(optimizer: Optimizer) -> None:
    """SGD's momentum begins at 0, which gives the same first step to the bit. Without, a first step
    that is skipped would leave memory in it that nobody has written."""
    for group in optimizer.param_groups:
        for weight in group["params"] if group.get("momentum") else ():
            optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a state dict that may be of another layout, and of a step that was fused where this one
    is not. What is kept of a weight gets its layout: a fused step takes memory as it lies."""
    kind = ("fused", "capturable", "lr")
    own = [{k: group[k] for k in kind if k in group} for group in optimizer.param_groups]
    groups = [{**kept, **mine} for kept, mine in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, mine in zip(optimizer.param_groups, own, strict=True):
        group["lr"] = mine["lr"]  # the tensor itself
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.ndim:
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
    if skips_on_device(optimizer):
        _rest(optimizer)
