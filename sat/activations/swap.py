"""Replace every activation of a network by one kind, and prove that none was missed.

An *activation* is a nonlinearity on the network's main path, or in any of its branches: ReLU,
SiLU, GELU and their relatives, as torch and timm have them. A *gate* is a function that weighs
something (sigmoid, hard sigmoid, softmax: squeeze-and-excitation, attention); gates are left alone.
A ReLU that is there for what it cuts off is one, too: the kernel of a linear attention, which
divides by the sum of what comes out of it, and the ReLU6 of which a hard sigmoid is made.

The swap works on modules. Some networks call activations as functions, which no swap of modules can
reach, so the proof runs one forward and watches every torch function that is called, and every
operation of what is compiled from Python (TorchScript).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from sat.activations.functions import Keep
from sat.errors import Refused

# ReLU6 is a Hardtanh to torch.
_ACTIVATIONS = (
    *(nn.ReLU, nn.RReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softplus, nn.Softsign, nn.Threshold),
    *(nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
)
_KERNELS = ("kernel_func", "kernel_fn", "kernel_function", "feature_map")  # attributes
_READ_OUTPUT = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU)  # in the backward pass; others the input
_GATES = (
    *(nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.GLU),
    *(nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax),
)

# Names of functions and methods, without the underscores of in-place and private forms. `erf` is
# how GELU is written by hand; the fused encoder layer of torch has its activation inside.
_ACTIVATION_CALLS = frozenset(
    "relu relu6 rrelu leaky_relu prelu elu celu selu gelu silu mish softplus hardswish hardtanh "
    "tanh softsign threshold tanhshrink softshrink hardshrink erf "
    "transformer_encoder_layer_fwd".split()
)
_SIGMOID_CALLS = frozenset({"sigmoid", "special_expit", "hardsigmoid"})
_GATE_CALLS = _SIGMOID_CALLS | {"log_sigmoid", "glu", "softmax", "log_softmax"}
_FAILS = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
_PRODUCTS = frozenset({"mul", "multiply", "rmul", "imul"})
_PAIRS = frozenset({"maximum", "max", "fmax", "minimum", "min", "fmin"})  # of two tensors
_CUTS = _PAIRS | {"clamp", "clip", "clamp_min", "clamp_max"}


@dataclass(frozen=True)
class SwapReport:
    """What a swap did: the places it filled, and the gates it left alone, as 'name (type)'.

    `called` is the number of swapped modules that ran in the proof (None before it): a network may
    hold modules that it does not use. `kept`: the places hold what was there.
    """

    places: tuple[str, ...]
    gates: tuple[str, ...]
    called: int | None = None
    kept: bool = False

    @property
    def swapped(self) -> int:
        return 0 if self.kept else len(self.places)


def swap_activations(net: nn.Module, activation: Callable[[], nn.Module]) -> SwapReport:
    """Put a fresh `activation()` in every place of `net` that holds an activation module.

    A place is an attribute of a module. One module instance held in two places becomes two
    modules; a place that is called several times in a forward (torchvision's `self.relu`) stays one
    module, so a learnable activation shares its parameter among those calls. An activation that is
    of the asked kind already is replaced like the others; where one works in place, so does
    the new one if its input then needs no memory. `net` is changed in place; `Keep` leaves it as it
    is.
    """
    activations, gates = _kinds()
    found: list[tuple[nn.Module, str, str]] = []
    left: list[str] = []
    for path, parent in net.named_modules():
        for key, child in parent._modules.items():
            name = f"{path}.{key}".lstrip(".")
            if isinstance(child, gates) or _cuts(parent, key, child):
                left.append(f"{name} ({type(child).__name__})")
            elif isinstance(child, activations):
                found.append((parent, key, name))
    kept = getattr(activation, "func", activation) is Keep
    for parent, key, _ in found if not kept else ():
        new, old = activation(), getattr(parent, key)
        check_module(new, "activation")
        new.train(parent.training)
        if isinstance(new, _READ_OUTPUT):
            new.inplace = getattr(old, "inplace", False)
        setattr(parent, key, new)
    return SwapReport(tuple(name for *_, name in found), tuple(left), kept=kept)


def check_module(made: Any, what: str) -> None:
    """Raises Refused for what is no module, or was not set up as one, itself or a part of it."""
    try:
        [*made.modules()]
    except (AttributeError, TypeError) as error:
        raise Refused(
            f"{what}: {getattr(made, '__name__', type(made).__name__)} is no torch.nn.Module, or"
            " it, or a module in it, lacks super().__init__() in its __init__"
        ) from error


def _cuts(parent: nn.Module, key: str, child: nn.Module) -> bool:
    """Whether an activation is there for its range: a kernel, or a part of a hard sigmoid."""
    made_by_hand = isinstance(child, nn.Hardtanh) and _is_sigmoid(parent)
    return isinstance(child, _ACTIVATIONS) and (key in _KERNELS or made_by_hand)


def _is_sigmoid(module: nn.Module) -> bool:
    return "sigmoid" in type(module).__name__.lower()


def prove_swap(net: nn.Module, x: Tensor, report: SwapReport) -> SwapReport:
    """Run `net` once on `x` and raise ValueError if an activation is called outside the swapped
    modules, naming the function and the innermost module that calls it; none may, where they were
    kept.

    The forward is in eval mode without gradients; modes and batch-norm statistics are as before.
    Returns the report with `called` and with the gates that are called as functions. What is not
    seen: branches that run in training alone, activations within a fused operator (an LSTM's), and
    nonlinearities written out by hand, but for x * sigmoid(x), hard, scaled or not, erf and
    comparison with zero (clamp, maximum, minimum).
    """
    watch = _Watch(net, report)
    try:
        with in_eval_mode(net), torch.no_grad(), watch, _Operations(watch):
            net(x)
    except _FAILS as error:
        size = "x".join(map(str, x.shape[1:]))
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"name={title(net)}: fails on {size} images ({reason}); choose another image size or "
            "another model"
        ) from error
    finally:
        watch.remove_hooks()
    gates = dict.fromkeys((*report.gates, *watch.gates))
    if report.kept:
        return replace(report, gates=tuple(gates), called=len(watch.called))
    if watch.missed:
        raise ValueError(f"name={title(net)}: {watch.complaint()}; choose another model")
    if not watch.called:
        raise ValueError(
            f"name={title(net)}: runs no activation that can be swapped ({report.swapped} such "
            "modules found); choose another model"
        )
    return replace(report, gates=tuple(gates), called=len(watch.called))


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Puts `net` in eval mode for a time; each module's mode is then as before."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        net.train()  # clears what some transformers cache in eval mode (LeViT's attention biases)
        for module, training in modes.items():
            module.training = training


class _Watch(TorchFunctionMode):
    """Records the activation functions and gates that are called outside modules made for them."""

    def __init__(self, net: nn.Module, report: SwapReport) -> None:
        super().__init__()
        self.swapped = {net.get_submodule(name) for name in report.places}
        gates = {net.get_submodule(gate.rpartition(" (")[0]) for gate in report.gates}
        self.own = self.swapped | gates
        self.missed: dict[tuple[str, str], None] = {}  # (function, place), in order
        self.gates: list[str] = []
        self.called: set[nn.Module] = set()
        self.watching = 0  # calls of functions that are under way
        self._running: list[tuple[str, nn.Module]] = [("", net)]
        self._sigmoids: dict[int, tuple[object, object]] = {}  # id of output: (output, input)
        self._scaled: dict[int, tuple[object, object]] = {}  # likewise, of products with a number
        self._hooks = []
        for name, module in net.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it has no hooks, and can hold no module of ours
            self._hooks.append(module.register_forward_pre_hook(self._enter(name)))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            self._running.append((name, module))
            if module in self.swapped:
                self.called.add(module)

        return hook

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        self._running.pop()
        if _is_sigmoid(module) and len(args) == 1:
            self._sigmoids[id(output)] = (output, args[0])

    def remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.watching += 1
        try:
            return self.call(func, resolve_name(func), args, kwargs or {})
        finally:
            self.watching -= 1

    def call(self, func: Callable, known_as: str | None, args: tuple, kwargs: dict) -> Any:
        """Calls a function, and remembers what it is."""
        if any(module in self.own for _, module in self._running):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").partition(".")[0].strip("_")
        given = [kwargs[key] for key in ("input",) if key in kwargs]
        given += [*args, *(kwargs[key] for key in ("other",) if key in kwargs)]
        if self._is_activation(name, given, kwargs):  # asked first: the call may be in place
            self.missed[known_as or name, self._place()] = None
        output = func(*args, **kwargs)
        if name in _GATE_CALLS:
            self.gates.append(f"{self._place()}: {name}()")
        if name in _SIGMOID_CALLS:
            self._sigmoids[id(output)] = (output, given[0])
        if name in _PRODUCTS and len(given) == 2:
            for x, factor in (given, given[::-1]):
                if not isinstance(factor, Tensor):
                    self._scaled[id(output)] = (output, x)
        return output

    def _is_activation(self, name: str, given: list, kwargs: dict) -> bool:
        if name in _ACTIVATION_CALLS:
            return True
        if name in _CUTS:
            return _cuts_at_zero(name, given, kwargs)
        if name in _PRODUCTS and len(given) == 2:
            a, b = given
            return self._is_sigmoid_of(a, b) or self._is_sigmoid_of(b, a)  # x * sigmoid(x): SiLU
        return False

    def _is_sigmoid_of(self, y: object, x: object) -> bool:
        """Whether y is the sigmoid of x, or of x times a number."""
        output, of = self._sigmoids.get(id(y), (None, None))
        return output is y and (of is x or self._scaled.get(id(of), (None, None))[1] is x)

    def _place(self) -> str:
        name, module = self._running[-1]
        return f"{name or 'its forward'} ({type(module).__name__})"

    def complaint(self) -> str:
        (function, place), *others = self.missed
        more = f" (and in {len(others)} more places)" if others else ""
        return f"calls {function} in {place}{more} outside any module that can be swapped"


class _Operations(TorchDispatchMode):
    """Shows a watch the operations that no function of torch asks for: those of TorchScript."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.watch.watching:
            return func(*args, **kwargs or {})
        return self.watch.call(func, str(func), args, kwargs or {})


def _cuts_at_zero(name: str, given: list, kwargs: dict) -> bool:
    """Whether a clamp, a maximum or a minimum is a ReLU: a bound of 0 on floats some of which it
    cuts.

    Without that last condition, guards such as `variance.clamp(0)` would count. An input of zeros
    alone (a branch whose last scale starts at 0) says nothing, and counts. A clamp to [0, 1] is a
    hard sigmoid, a gate.
    """
    x, *bounds = given
    if not torch.is_floating_point(x):
        return False
    if name in _PAIRS:
        if not bounds or not isinstance(bounds[0], Tensor):  # a reduction
            return False
        x, bound = (bounds[0], x) if not x.any() else (x, bounds[0])
        return _cuts_off(x, bound, from_above=name in ("minimum", "min", "fmin"))
    if name == "clamp_max":
        low, high = None, kwargs.get("max", *bounds)
    else:
        low, high = ([*bounds, None, None])[:2]
        low, high = kwargs.get("min", low), kwargs.get("max", high)
    if low is not None and not isinstance(high, Tensor) and high == 1:
        return False
    return _cuts_off(x, low) or _cuts_off(x, high, from_above=True)


def _cuts_off(x: Tensor, bound: Any, from_above: bool = False) -> bool:
    if bound is None or torch.as_tensor(bound).any():
        return False
    return bool((x > 0).any() if from_above else (x < 0).any() or not x.any())


@cache
def _kinds() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """torch's and timm's activation classes, and their gates."""
    from timm.layers import activations, activations_me

    found = [*vars(activations).values(), *vars(activations_me).values()]
    found = [c for c in found if isinstance(c, type) and issubclass(c, nn.Module)]
    gates = [c for c in found if "sigmoid" in c.__name__.lower()]
    return (*_ACTIVATIONS, *(c for c in found if c not in gates)), (*_GATES, *gates)


def title(net: nn.Module) -> str:
    """timm's name for the network, or its class."""
    return getattr(net, "default_cfg", {}).get("architecture", type(net).__name__)
