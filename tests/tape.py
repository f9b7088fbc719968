"""What a CUDA graph is, on a CPU: the operators of one call, with the very memory that each has
read and written; replayed without a line of the call's own Python.

Numbers of the host are as they were. Memory that the call has made stays its own; a replay writes
into it again. Like a capture, a recording leaves no trace in memory that was there before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

UNTOLD = {"running_mean", "running_var"}  # batch norm's, of which its schema says nothing


class Tape(TorchDispatchMode):
    """Records `call()`; `replay` does it again."""

    def __init__(self, call: Callable[[], None]):
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # storages: a view of all; as it was
        self._made: dict[int, Tensor] = {}  # kept, so that no address comes twice
        try:
            with self:
                call()
        finally:
            for whole, was in self._before.values():
                whole.copy_(was)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for schema, value in zip(operator._schema.arguments, args, strict=False):
            self._written(schema, value)
        for schema in operator._schema.arguments:
            if schema.name in kwargs:
                self._written(schema, kwargs[schema.name])
        result = operator(*args, **kwargs)
        own = {_address(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        fresh = [t for t in tree_flatten(result)[0]
                 if isinstance(t, Tensor) and _address(t) not in own]  # fmt: skip
        self._made |= {_address(t): t for t in fresh}
        self.calls.append((operator, *_held((args, kwargs)), _held(result)))
        return result

    def _written(self, schema: Any, value: Any) -> None:
        """Keeps what an operator writes into, as it was before the call."""
        writes = schema.alias_info is not None and schema.alias_info.is_write
        if not writes and schema.name not in UNTOLD:
            return
        for t in value if isinstance(value, list | tuple) else [value]:
            if t is not None and (at := _address(t)) not in self._made and at not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
                self._before[at] = whole, whole.clone()

    @torch.no_grad()
    def replay(self) -> None:
        for operator, args, kwargs, results in self.calls:
            inputs = {_address(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
            again = tree_flatten(operator(*args, **kwargs))[0]
            for kept, new in zip(tree_flatten(results)[0], again, strict=True):
                if isinstance(kept, Tensor) and _address(kept) not in inputs:
                    kept.copy_(new)


def _held(tree: Any) -> Any:
    """The same memory, without autograd's graph."""
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, tree)


def _address(t: Tensor) -> int:
    return t.untyped_storage()._cdata
