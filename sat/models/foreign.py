"""Networks from anywhere, as the attacks here want one: a module that takes any batch of images."""

import functools
import inspect
import math
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy

import torch
from torch import Tensor, nn

from sat.errors import first_line, is_out_of_memory

LARGEST_BATCH = 1024  # of an exported graph that takes one size alone
MEMBERS = 100  # of a list or an object, that are looked through for modules
PATIENCE = 10.0  # seconds to look for that size; a wrong one is refused at once


class NoLogits(ValueError):
    """A network gives something else."""

    def __init__(self, given: object):
        remedy = "give a tensor"
        if isinstance(given, Mapping):
            key = "logits" if "logits" in given else next(iter(given), "logits")
            remedy = f"wrap it: lambda x: model(x)[{key!r}]"
        elif isinstance(given, tuple | list):
            remedy = "wrap it: lambda x: model(x)[0]"
        elif hasattr(given, "logits"):
            remedy = "wrap it: lambda x: model(x).logits"
        super().__init__(
            f"model: gives {type(given).__name__}, and must give logits [B, K]; {remedy}"
        )


class Foreign(nn.Module):
    """Images [B, C, H, W] in [0, 1], in any number, to float32 logits [B, K], by `function`.

    What stands between the two: images that `function` takes flat, `shape` [F]; a batch of `fixed`
    size, filled up with the first image; `copies`, where it would change the images that it is
    given; `autocast`, where the search runs in fewer bits; torch's `default` dtype of the time when
    this was made, by which the function may go. A function that is no module, or whose modes can't
    be set (an exported or frozen graph), is kept out of sight of what walks through modules, and is
    shared by copies.
    """

    autocast: torch.dtype | None = None

    def __init__(
        self, function: Callable[[Tensor], Tensor], shape: torch.Size, device: torch.device
    ):
        super().__init__()
        self.flat, self.fixed, self.copies = len(shape) == 1, 0, False
        self.default = torch.get_default_dtype()
        self.place = nn.Parameter(torch.zeros(0, device=device), requires_grad=False)
        walked = isinstance(function, nn.Module)
        if isinstance(function, nn.Module):
            try:
                function.eval()
            except Exception:  # exported and frozen graphs: modes are part of them
                walked = False
        walked = walked and not isinstance(function, torch.jit.ScriptModule)
        if walked:
            self.function = function
        else:
            self.__dict__["function"] = function

    @property
    def can_be_walked(self) -> bool:
        """Whether the function is a module in sight: its parts can be copied, laid out, swapped."""
        return "function" in self._modules

    def move(self, device: torch.device) -> None:
        """To a device, with what is out of sight; constants of a frozen graph stay."""
        self.to(device)
        if isinstance(self.function, nn.Module):
            self.function.to(device)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.flat else x.contiguous()
        x = x.clone() if self.copies else x
        if not self.fixed:
            return self._ask(x)
        short = -len(x) % self.fixed
        x = torch.cat([x, x[:1].expand(short, *x.shape[1:])]) if short else x
        return torch.cat([self._ask(part) for part in x.split(self.fixed)])[: len(x) - short]

    def _ask(self, x: Tensor) -> Tensor:
        on = self.autocast is not None
        with _by_default(self.default), torch.autocast(x.device.type, self.autocast, on):
            logits = self.function(x)
        if not isinstance(logits, Tensor):
            raise NoLogits(logits)
        if logits.ndim == 1 and len(x) == 1:  # of a function that squeezes what it gives
            logits = logits[None]
        return logits.float()

    def __deepcopy__(self, memo: dict) -> "Foreign":
        """A copy, which shares a function that is kept out of sight."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        nn.Module.__init__(copied)
        if "function" in self.__dict__:
            own = ("function", "flat", "fixed", "copies", "autocast", "default")
            copied.__dict__ |= {key: getattr(self, key) for key in own}
            copied.place = self.place
            return copied.train(self.training)
        copied.__dict__ = deepcopy(self.__dict__, memo)
        return copied


@contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of that type, unless they say otherwise, for a time."""
    if (before := torch.get_default_dtype()) == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def adopt(model: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> Foreign:
    """The network `model` as a module for images like x [N, C, H, W] or [N, F], float in [0, 1].

    Raises ValueError, in one line, for one that gives no logits.
    """
    if not callable(model):
        raise ValueError(
            f"model: {type(model).__name__} is no function of images; give a module, or a function"
            " (sat.load gives that of a run)"
        )
    if isinstance(model, type):
        raise ValueError(f"model: is the class {model.__name__}; make an instance of it")
    if device.type == "meta":
        raise ValueError(
            "model: lies on no device (meta); give it weights, model.to_empty(device='cpu') and"
            " model.load_state_dict(...)"
        )
    net = Foreign(model, x.shape[1:], device)
    few = as_images(x[:3]).to(device, copy=True)
    before = few.clone()
    try:
        logits = _logits(net, few)
    except NoLogits:
        raise
    except Exception as error:  # of any kind: the code is the user's
        if is_out_of_memory(error):
            raise
        logits = _with_fixed_batch(net, few, error)
    if logits.shape in ((len(few),), (len(few), 1)):
        column = ", torch.nn.Unflatten(0, (-1, 1))" * (logits.ndim == 1)
        raise ValueError(
            "model: gives one number an image; it must give a logit a class, two or more: where it"
            f" is the logit of class 1, torch.nn.Sequential(model{column}, torch.nn.ZeroPad1d((1,"
            " 0)))"
        )
    if logits.ndim != 2 or len(logits) != len(few):
        raise ValueError(
            f"model: gives {list(logits.shape)} for {len(few)} images; it must give [{len(few)}, K]"
        )
    net.copies = not torch.equal(few, before)
    return net


@torch.no_grad()
def _logits(net: nn.Module, x: Tensor) -> Tensor:
    """Logits of x in a batch and alone; raises what either raises."""
    net(x[:1])
    return net(x)


def _with_fixed_batch(net: Foreign, x: Tensor, first: Exception) -> Tensor:
    """Logits of x by the one size of a batch that it takes, which is tried for; 1 for a network
    that takes one image alone."""
    sizes = [1, *(2**k for k in range(1, 11)), *range(3, LARGEST_BATCH)]
    until = time.monotonic() + PATIENCE
    for net.fixed in dict.fromkeys(sizes):
        with suppress(Exception):
            return _logits(net, x)
        if time.monotonic() > until:
            break
    raise ValueError(
        f"model: fails on images [{len(x)}, {', '.join(map(str, x.shape[1:]))}]"
        f" ({first_line(first)}); {_remedy(net.function, x)}"
    ) from first


def _remedy(function: object, x: Tensor) -> str:
    """What may help a network that fails on images x [B, C, H, W], float32."""
    weights = [*function.parameters()] if isinstance(function, nn.Module) else []
    for weight in weights:
        if weight.is_floating_point() and weight.dtype != torch.float32:
            kind = weight.dtype
            return f"its weights are {kind}: give model.float(), or lambda x: model(x.to({kind}))"
    if x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        return "where the channels are last, give images.permute(0, 3, 1, 2)"
    return "give it images of its kind (dataset=... on a command line)"


NO_GRADIENT = "model: its logits have no gradient by the images (no_grad, numpy, argmax inside?)"


def has_gradient(net: nn.Module, x: Tensor) -> bool:
    """Whether logits of images x can be differentiated by them."""
    few = x[:2].detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            total = net(few).sum()
        return total.requires_grad and (
            torch.autograd.grad(total, few, allow_unused=True)[0] is not None
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"model: its gradient fails ({first_line(error)})") from error


def as_images(x: Tensor) -> Tensor:
    """Images [N, C, H, W] of flat ones [N, F], as square as F allows; any others as they are."""
    if x.ndim != 2:
        return x
    height = next(h for h in range(math.isqrt(x.shape[1]), 0, -1) if x.shape[1] % h == 0)
    return x.view(len(x), 1, height, -1)


def held_by(thing: object, depth: int = 5) -> list[nn.Module]:
    """The modules that a function, or what it holds, has in sight: in its closure, its defaults,
    the names of its module that it speaks of, the object that it belongs to, and in few steps from
    there."""
    if isinstance(thing, nn.Module):
        return [thing]
    if not depth or isinstance(thing, type | types.ModuleType | Tensor | str | bytes):
        return []
    parts: list[object] = []
    if isinstance(thing, functools.partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif inspect.ismethod(thing):
        parts = [thing.__self__, thing.__func__]
    elif inspect.isfunction(thing):
        parts = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        parts += [thing.__globals__[name] for name in _names(thing.__code__)
                  if name in thing.__globals__]  # fmt: skip
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # of a name that is bound later
                parts.append(cell.cell_contents)
    elif isinstance(thing, list | tuple | dict):
        parts = [*(thing.values() if isinstance(thing, dict) else thing)][:MEMBERS]
    elif hasattr(thing, "__dict__"):
        parts = [*vars(thing).values()][:MEMBERS]
    return [module for part in parts for module in held_by(part, depth - 1)]


def _names(code: types.CodeType) -> set[str]:
    """What a function speaks of by name, and what the functions do that are written in it."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


@contextmanager
def keeping_statistics(modules: list[nn.Module]) -> Iterator[None]:
    """Puts back what buffers held, as far as they can be copied."""
    kept = dict[int, tuple[Tensor, Tensor]]()
    buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
    for buffer in buffers.values():
        with suppress(Exception):  # of a lazy module
            kept[id(buffer)] = buffer, buffer.clone()
    try:
        yield
    finally:
        for buffer, before in kept.values():
            with suppress(Exception), torch.no_grad():  # of another shape by now, expanded, ...
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def resting(model: object) -> Iterator[None]:
    """A module in eval mode and without gradients of its own, for a time; the statistics of modules
    that a function holds, or a module out of sight, are put back, whatever mode they are in."""
    net = model if isinstance(model, nn.Module) else nn.Module()
    if any(weight.is_inference() and weight.requires_grad for weight in net.parameters()):
        raise ValueError(
            "model: its weights were made in inference_mode; give copy.deepcopy(model), made"
            " outside of it"
        )
    hidden = [inner for module in net.modules() for inner in held_by([*vars(module).values()])]
    modes = [(module, getattr(module, "training", None)) for module in net.modules()]
    trained = [p for p in net.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with keeping_statistics(held_by(model) + hidden):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            if mode is not None and getattr(module, "training", mode) != mode:
                module.training = mode
