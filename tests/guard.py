"""A guard that refuses what asks the host: on a GPU it would wait for the device, and no CUDA graph
can hold it.

Two modes, since neither sees all: torch's functions (`.cpu()` of a CPU tensor never reaches the
dispatcher), and the dispatcher's (what torch does inside of its own functions). Whoever reads a
tensor's shape, type or device asks nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class HostAsked(Exception):
    """What was asked for."""


# Methods that give a number, a truth, a text or an array of the host.
TELLING = {
    "tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__",
    "__complex__", "__repr__", "__format__", "__array__", "__contains__",
}  # fmt: skip
MAKING = {"tensor", "as_tensor", "asarray"}  # of the host's numbers: a copy
# Operators whose result, or its shape, depends on what a tensor holds.
DEPENDING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "equal", "bincount", "repeat_interleave",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_"}
COPYING = {"_to_copy", "copy_"}


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in TELLING or name in MAKING:
            raise HostAsked(name)
        if name in ("__getitem__", "__setitem__") and _chooses(args[1]):
            raise HostAsked(f"{name} with a mask or a list")
        result = function(*args, **kwargs)
        if name == "to" and result.device != args[0].device:
            raise HostAsked(f"to {result.device}")
        return result


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in DEPENDING:
            raise HostAsked(name)
        if name in INDEXING and _chooses(args[1]):
            raise HostAsked(f"{name} with a mask")
        result = operator(*args, **(kwargs or {}))
        if name in COPYING and result.device != args[name == "copy_"].device:
            raise HostAsked(f"{name} {result.device}")
        return result


def _chooses(index: object) -> bool:
    """Whether an index holds a truth for each place, or numbers of the host."""
    if isinstance(index, tuple | list) and not isinstance(index, Tensor):
        return any(isinstance(part, list) or _chooses(part) for part in index) or (
            isinstance(index, list) and any(isinstance(part, int) for part in index)
        )
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def nothing_asks_the_host() -> Iterator[None]:
    """Raises HostAsked where anything inside does."""
    with Functions(), Operators():
        yield
