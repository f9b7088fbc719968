"""A network at rest, as attacks search it: batch norms merged into the convolutions that feed them,
since in eval mode they are linear, and every weight frozen and cast once."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from sat.acceleration.precision import float32

log = logging.getLogger("sat")
Pairs = Sequence[tuple[str, str]]  # names of convolutions and of the batch norms that they feed


class Unfolded:
    """`net`: a model that can't be copied, as it is. What asks it sets its mode."""

    def __init__(self, model: nn.Module) -> None:
        self.net = model

    def follow(self) -> None:
        """Nothing to do: the weights are the model's own."""


class Folded:
    """`net`: a copy of a model in eval mode, a fifth faster, that takes what the model takes.

    It holds the model's own parameters, without gradients, and buffers; but for folded
    convolutions, whose weights `follow` computes from the model's. With a `dtype`, that of the
    model's autocast, it has weights of convolutions and linear layers in that, which autocast
    would cast in each forward, since they are frozen: of those that the model calls in autocast,
    given the images `x`. Build it with `fold`.
    """

    def __init__(
        self, model: nn.Module, pairs: Pairs, dtype: torch.dtype | None, x: Tensor
    ) -> None:
        shared = {id(p): _frozen(p.detach()) for p in model.parameters()}
        shared |= {id(buffer): buffer for buffer in model.buffers()}
        self.net = copy.deepcopy(model, shared)
        self.net.eval()  # returns nothing in some of timm's networks
        self.net.at_rest = True
        cast = set() if dtype is None else _in_autocast(self.net, x)
        self._folds = [self._merge(model, *names, dtype if names[0] in cast else None)
                       for names in pairs]  # fmt: skip
        self._casts = self._cast(model, cast - {*dict(pairs)}, dtype)
        # Some networks keep in eval mode what follows from their weights, until they train again.
        self._keeping = [m for m in self.net.modules() if type(m).train is not nn.Module.train]
        self.follow()

    def _merge(self, model: nn.Module, convolution: str, norm: str, dtype: torch.dtype | None):
        """Makes one layer of two; returns its weights and the layers that they follow."""
        layer, after = self.net.get_submodule(convolution), self.net.get_submodule(norm)
        layer.weight = _frozen(torch.empty_like(layer.weight, dtype=dtype))
        layer.bias = _frozen(torch.empty_like(after.bias, dtype=dtype))
        self.net.set_submodule(norm, _without_norm(after))
        return layer.weight, layer.bias, model.get_submodule(convolution), model.get_submodule(norm)

    def _cast(self, model: nn.Module, names: Collection[str], dtype: torch.dtype | None):
        """Gives these layers weights in `dtype`; returns each with what it follows."""
        casts = []
        for name in sorted(names):
            layer = self.net.get_submodule(name)
            for key, source in [*model.get_submodule(name).named_parameters(recurse=False)]:
                setattr(layer, key, _frozen(torch.empty_like(source, dtype=dtype)))
                casts.append((getattr(layer, key), source))
        return casts

    @torch.no_grad()
    def follow(self) -> None:
        """Takes over the model's weights and statistics of this moment."""
        if self._folds:
            weights, biases, convolutions, norms = zip(*self._folds, strict=True)
            scales = torch._foreach_add([n.running_var for n in norms], [n.eps for n in norms])
            torch._foreach_rsqrt_(scales)
            torch._foreach_mul_(scales, [n.weight for n in norms])
            means = torch._foreach_mul([n.running_mean for n in norms], scales)
            shifts = torch._foreach_sub([n.bias for n in norms], means)
            for i, convolution in enumerate(convolutions):
                scale = scales[i].view(-1, 1, 1, 1)
                torch.mul(convolution.weight, scale, out=weights[i])
                if convolution.bias is not None:
                    shifts[i].addcmul_(convolution.bias, scales[i])
            torch._foreach_copy_([*biases], [*shifts])
        if self._casts:
            own, sources = zip(*self._casts, strict=True)
            torch._foreach_copy_([*own], [*sources])
        for module in self._keeping:
            module.train()
            module.eval()


def fold(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Folded | Unfolded:
    """The folded model; `x` [B, C, H, W] are a few images, of which one forward shows which
    convolution feeds which batch norm.

    Nothing is merged where that moves a logit by more than rounding, nor for float16, whose range
    merged weights may leave. A model that can't be copied (a stored graph, a lock) stays as it is,
    which is said. Tried once for a model, whose layers must stay those that they are.
    """
    if model not in _TRIED:
        try:
            _TRIED[model] = _tried(model, x)
        except Exception as error:  # of any kind: the code is the user's
            reason = (str(error).strip().splitlines() or [""])[0]
            log.info("batch norms can't be merged: attacks are slower (%s)", reason[:200])
            _TRIED[model] = None
    if (pairs := _TRIED[model]) is None:
        return Unfolded(model)
    return Folded(model, [] if dtype is torch.float16 else pairs, dtype, x)


_TRIED: WeakKeyDictionary[nn.Module, Pairs | None] = WeakKeyDictionary()


def _tried(model: nn.Module, x: Tensor) -> Pairs:
    """The pairs of a model that can be merged."""
    trial, x = copy.deepcopy(model), x.detach().clone()
    trial.eval()
    _unsettle(trial)
    with float32(trial):
        with torch.enable_grad():
            before, pairs = _pairs(trial, x)
        trial.train()  # what it keeps in eval mode is of that graph now, and can't be copied
        trial.eval()
        with torch.no_grad():
            after = Folded(trial, pairs, None, x).net(x)
            size = before.abs().max()
            same = size > 0 and (after - before).abs().max() <= 1e-4 * size
    return pairs if same else []


@torch.no_grad()
def _in_autocast(net: nn.Module, x: Tensor) -> set[str]:
    """The layers that a network always calls in autocast: not a head that it keeps in float32."""
    calls: dict[str, bool] = {}

    def called(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, True) and torch.is_autocast_enabled(x.device.type)

        return hook

    hooks = [module.register_forward_pre_hook(called(name)) for name, module in net.named_modules()
             if type(module) in (nn.Conv2d, nn.Linear)]  # fmt: skip
    with torch.autocast(x.device.type, torch.bfloat16):
        net(x)
    for hook in hooks:
        hook.remove()
    return {name for name, always in calls.items() if always}


@torch.no_grad()
def _unsettle(model: nn.Module) -> None:
    """Norms that are far from doing nothing, and no weights of 0 or 1 alone, such as a head or a
    layer scale has before a training: a wrong merger might go unseen."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
            parameter.copy_(torch.linspace(0.2, 1.2, parameter.numel()).view_as(parameter))
    for norm in (module for module in model.modules() if type(module) in _norms()):
        for low, tensor in ((0.2, norm.weight), (-0.5, norm.bias),
                            (-0.5, norm.running_mean), (0.5, norm.running_var)):  # fmt: skip
            if tensor is not None:
                tensor.copy_(torch.linspace(low, low + 1, len(tensor)))


def _pairs(model: nn.Module, x: Tensor) -> tuple[Tensor, Pairs]:
    """Logits of x; and the pairs whose layers are called once each, where nothing but the norm uses
    what the convolution gives."""
    outputs: dict[int, tuple[Tensor, nn.Module, Node]] = {}  # with tensors, so that ids stay theirs
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Module, nn.Module, Node]] = []

    def after(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls[module] += 1
        if type(module) is nn.Conv2d and not module._forward_pre_hooks:  # as weight_norm has them
            outputs[id(output)] = (output, module, output.grad_fn)
        elif (fed := outputs.get(id(inputs[0]))) and module.affine and module.track_running_stats:
            if inputs[0].grad_fn is fed[2]:  # else something has changed it in place
                pairs.append((fed[1], module, fed[2]))

    kinds = (nn.Conv2d, *_norms())
    hooks = [m.register_forward_hook(after) for m in model.modules() if type(m) in kinds]
    logits = model(x.requires_grad_())
    for hook in hooks:
        hook.remove()
    names, uses = {module: name for name, module in model.named_modules()}, _uses(logits.grad_fn)
    return logits.detach(), [
        (names[convolution], names[norm])
        for convolution, norm, node in pairs
        if calls[convolution] == calls[norm] == uses[node] == 1
    ]


def _uses(end: Node) -> Counter[Node]:
    """How many nodes of an autograd graph take what each of them gives."""
    uses: Counter[Node] = Counter({end: 0})
    left = [end]
    while left:
        for node, _ in left.pop().next_functions:
            if node is not None:
                left += [node] * (node not in uses)
                uses[node] += 1
    return uses


@cache
def _norms() -> tuple[type, ...]:
    """Batch norms, which are all alike in eval mode."""
    from timm.layers import BatchNormAct2d, SyncBatchNormAct

    return nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a batch norm that is merged: timm has some with an activation in them."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
