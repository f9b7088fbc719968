"""The optimiser, and steps of it that change nothing, on the device's own word."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from sat.acceleration.auto import FUSED

SGDS = ("sgd", "momentum")  # Nesterov's, and the plain one


class Recipe(Protocol):
    """What of a schedule builds an optimiser."""

    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float] | None: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def weight_decay_on(self) -> str: ...
    @property
    def layer_decay(self) -> float: ...


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
    """timm's optimiser; `sgd` is Nesterov's, `momentum` the plain one. `fused` asks torch for its
    step in one launch, which takes states laid out as the weights are.

    The learning rate is set anew before each step. Raises ValueError for one that can't be built.
    """
    from timm.optim import create_optimizer_v2

    groups = parameter_groups(model, schedule)
    more: dict[str, Any] = {"fused": True} if fused else {}
    more |= {"betas": tuple(schedule.betas)} if schedule.betas else {}
    try:
        optimizer = create_optimizer_v2(
            groups, opt=schedule.optimizer, lr=schedule.learning_rate, weight_decay=0.0,
            momentum=schedule.momentum, **more,
        )  # fmt: skip
    except Exception as error:  # a package that is not there, or a kind of parameter it can't take
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"optimizer={schedule.optimizer}: can't be built here ({reason}); sgd and adamw can"
        ) from error
    if skips_on_device(optimizer):
        _begin(optimizer)
    return optimizer


def parameter_groups(model: nn.Module, schedule: Recipe) -> list[dict[str, Any]]:
    """The weights by what is done to them: without weight decay first, and from the first layer to
    the last where each has a learning rate of its own, `lr_scale` times the schedule's."""
    layers, last = ({}, 0) if schedule.layer_decay == 1 else _layers(model)
    on = decayed(model, schedule.weight_decay_on) if schedule.weight_decay else set()
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        groups.setdefault((layers.get(name, last), name in on), []).append(weight)
    return [
        {"params": weights, "weight_decay": schedule.weight_decay if decays else 0.0}
        | ({"lr_scale": schedule.layer_decay ** (last - layer)} if layers else {})
        for (layer, decays), weights in sorted(groups.items(), key=lambda group: group[0])
    ]


def decayed(model: nn.Module, on: str) -> set[str]:
    """Names of the weights that weight decay falls on: `weights` of more than one dimension, but
    what the network itself spares (position embeddings, say); `all`; `all_but_norms`, which spares
    batch norm's scales and shifts; `all_but_biases`, which spares biases, too. What activations
    learn is always spared, also of those that a network keeps (`activation=keep`): decay would bend
    the function itself."""
    shapes = _of_activations(model)
    return {name for name, w in _chosen(model, on).items() if id(w) not in shapes}


def _of_activations(model: nn.Module) -> set[int]:
    """The ids of the parameters in the places where the swap found activations."""
    swap = getattr(model, "swap", None)  # of a Classifier
    places = swap.places if swap else ()
    found = (model.get_submodule(f"backbone.{place}") for place in places)
    return {id(weight) for activation in found for weight in activation.parameters()}


def _chosen(model: nn.Module, on: str) -> dict[str, nn.Parameter]:
    """What `decayed` chooses, whatever activations learn."""
    weights = dict(model.named_parameters())
    if on == "weights":
        from timm.optim import param_groups_weight_decay

        inner = getattr(model, "backbone", model)
        spared = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
        spared = [f"backbone.{name}" for name in spared]
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)
        chosen = {id(w) for group in groups if group["weight_decay"] for w in group["params"]}
        return {name: weight for name, weight in weights.items() if id(weight) in chosen}
    norms = {
        f"{place}.{name}".lstrip(".")
        for place, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    return {
        name: weight
        for name, weight in weights.items()
        if on == "all" or not (name in norms or on == "all_but_biases" and name.endswith("bias"))
    }


def _layers(model: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each weight, as timm's network tells them, and the last one's number."""
    from timm.models import group_parameters

    inner = getattr(model, "backbone", model)
    if not hasattr(inner, "group_matcher"):
        name = type(inner).__name__
        raise ValueError(f"layer_decay: {name} doesn't tell its layers; write layer_decay=1")
    layers = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
    prefix = "backbone." if inner is not model else ""
    return {prefix + name: layer for name, layer in layers.items()}, max(layers.values())


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
    """The learning rate of the step to come; a group may have its own share of it."""
    for group in optimizer.param_groups:
        own = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def set_momentum(optimizer: Optimizer, momentum: float) -> None:
    """The momentum of the step to come, of SGD."""
    for group in optimizer.param_groups:
        group["momentum"] = momentum


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a state dict that may be of another layout, and of a step that was fused where this one
    is not. What is kept of a weight gets its layout: a fused step takes memory as it lies."""
    keys = ("fused", "capturable", "lr", "lr_scale", "momentum")
    own = [{k: group[k] for k in keys if k in group} for group in optimizer.param_groups]
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
