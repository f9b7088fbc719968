"""What tells a network from others: a digest of all that it holds."""

import enum
import functools
import hashlib
import inspect
import logging
import types
import uuid
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device,
         torch.layout, torch.memory_format, range, slice, enum.Enum, PurePath)  # fmt: skip
NAMED = (types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType,
         types.WrapperDescriptorType, logging.Logger)  # fmt: skip
OF_TORCH = (nn.Module, Tensor, types.FunctionType)  # what counts around its own functions
HEAP = 1 << 9  # of a class's flags: written in Python
OF_FX = ("_code", "_parameters", "_buffers", "_modules")  # what a traced module is; with tensors


def content_of(network: Any) -> str:
    """Sixteen hex digits that tell a network from others, by all that it holds: weights, buffers,
    other tensors and values, with the source of the classes and functions. What other code these
    call is not seen. Where something in it can't be told, the digits are new each time."""
    walk = _Walk()
    try:
        walk.add(network)
    except Exception:  # a module of the user's may fail in any way
        walk.say(uuid.uuid4().hex)
    return walk.digest.hexdigest()[:16]


class _Walk:
    """Goes through an object and all that it holds, each once, and digests it."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # keeps each alive, and so its id

    def say(self, *words: Any) -> None:
        self.digest.update(f"{words!r};".encode(errors="backslashreplace"))

    def add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.say(type(value).__qualname__, str(value))
        elif isinstance(value, tuple) or type(value) is frozenset:
            self._add_held(value)
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__))
        elif id(value) in self.seen:
            self.say("seen", self.seen[id(value)][0])
        else:
            self.seen[id(value)] = len(self.seen), value
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._add_array(value, value.detach().cpu().contiguous().view(-1))
        elif isinstance(value, np.ndarray | np.generic):
            self.add(value.tolist()) if value.dtype.hasobject else self.say(
                str(value.dtype), value.shape, value.tobytes())  # fmt: skip
        elif isinstance(value, list | dict | set):
            self._add_held(value)
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, torch.Generator):
            self.add(value.get_state())
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.CodeType):
            self.add((value.co_code, value.co_names, value.co_consts))
        elif isinstance(value, NAMED):
            self._add_named(value)
        elif isinstance(value, torch.jit.ScriptModule):
            self.add((value.save_to_buffer(), [*value.state_dict().values()]))
        else:
            self._add_object(value)

    def _add_array(self, value: Tensor, flat: Tensor) -> None:
        self.say("tensor", str(value.dtype), [*value.shape])
        self.digest.update(flat.resolve_conj().resolve_neg().view(torch.uint8).numpy())

    def _add_held(self, value: Any) -> None:
        self.add(type(value))
        self.say(len(value))
        if isinstance(value, dict):
            value = [part for pair in value.items() for part in pair]
        elif isinstance(value, set | frozenset):
            value = sorted(value, key=str)
        for part in value:
            self.add(part)

    def _add_class(self, cls: type) -> None:
        self.say(cls.__module__, cls.__qualname__, source := _source(cls))
        if not source and cls.__flags__ & HEAP and not _is_torchs(cls):
            self._add_members(cls)  # of a notebook, or of a text that was run
        for base in cls.__bases__:
            self.add(base)

    def _add_members(self, cls: type) -> None:
        for name, value in vars(cls).items():
            self.say(name, type(value).__qualname__)
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            elif isinstance(value, property):
                value = (value.fget, value.fset, value.fdel)
            if name[:2] != "__" or isinstance(value, types.FunctionType):
                if isinstance(value, (types.FunctionType, tuple, list, dict, *PLAIN)):
                    self.add(value)

    def _add_function(self, function: Any) -> None:
        source, code = _source(function), function.__code__
        self.say(function.__module__, function.__qualname__, source)
        if not source or "<lambda>" in function.__qualname__:
            self.add(code)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # of a name that is bound later
                held = cell.cell_contents
                if not _is_torchs(function) or isinstance(held, OF_TORCH):
                    self.add(held)
        self.add((function.__defaults__, function.__kwdefaults__))
        if _is_torchs(function):
            return
        self.add({k: v for k, v in vars(function).items() if k != "__wrapped__"})
        for name in code.co_names:
            found = function.__globals__.get(name)
            if isinstance(found, (nn.Module, Tensor, np.ndarray, *PLAIN)) and name[:2] != "__":
                self.add((name, found))

    def _add_named(self, value: Any) -> None:
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        self.say(type(value).__name__, getattr(value, "__module__", None), name or value.name)
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self.add(owner)

    def _add_object(self, value: Any) -> None:
        cls = type(value)
        if cls.__name__ == "OptimizedModule":
            return self.add(value._orig_mod)
        foreign = [c for c in cls.__mro__ if c is not object and not c.__flags__ & HEAP]
        slots = [s for c in cls.__mro__ for s in _slots(c)]
        if foreign or not (hasattr(value, "__dict__") or slots):
            raise TypeError(f"{cls.__name__} can't be told")
        self.add(cls)
        if isinstance(value, nn.Module):
            self.say(value.extra_repr())
        held = {s: getattr(value, s) for s in slots if hasattr(value, s)}
        for key, part in {**held, **getattr(value, "__dict__", {})}.items():
            if key == "training" and isinstance(value, nn.Module):
                continue
            if isinstance(value, torch.fx.GraphModule):
                if key not in OF_FX and not isinstance(part, Tensor):
                    continue
            self.say(key)
            hooks = isinstance(value, nn.Module) and "_hooks" in key and isinstance(part, dict)
            self.add([*part.values()] if hooks else part)  # their keys are counted in the process
        return None


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [*slots]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _is_torchs(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == "torch"


def _source(thing: Any) -> str:
    """The source of a class or function, but for torch's own, which are told by their names."""
    if _is_torchs(thing) or getattr(thing, "__module__", "") == "builtins":
        return ""
    with suppress(OSError, TypeError):
        return inspect.getsource(thing)
    return ""
