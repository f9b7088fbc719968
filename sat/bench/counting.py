"""What a piece of work computes, moves and keeps, counted operation by operation as torch does it:
nothing here is timed, and tensors may have no memory at all (`meta`)."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from sat.bench.stopwatch import Timed


class Live(TorchDispatchMode):
    """Bytes of storages that are alive and were made within: `now`, and at most so far, `most`.

    Of `held` none counts. Memory that a kernel takes for itself and gives back is not seen.
    """

    def __init__(self, held: Iterable[Tensor]):
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()
        for tensor in held:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in [t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)]:
            if storage not in self._known:
                self._known[storage] = True
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._part, storage.nbytes())
        return made

    def _part(self, count: int) -> None:
        self.now -= count


class Passes(TorchDispatchMode):
    """FLOP and bytes of each operation: multiplications and additions of products and convolutions,
    by torch's formulas, and the tensors that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(("empty", "new_empty")):
            formula = flop_registry.get(func._overloadpacket)
            flop = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
            self.each.append((flop, size_of((args, kwargs)) + size_of(out)))
        return out


def size_of(found: Any) -> int:
    """Bytes of the tensors in it, each once; what is expanded is as large as it lies in memory."""
    tensors = {id(t): t for t in tree_leaves(found) if isinstance(t, Tensor)}.values()
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def passes(call: Timed) -> list[tuple[int, int]]:
    """(FLOP, bytes) of each operation of one call, which must run eagerly."""
    with call.entered(), Passes() as counted:
        call.run()
    return counted.each


def peak_bytes(call: Timed) -> int:
    """The most that one call, which must run eagerly, holds beside what was there before:
    activations, gradients and intermediates."""
    with call.entered(), Live([]) as live:
        call.run()
    return live.most


def limits(
    work: Sequence[tuple[int, int]], product: float, memory: float
) -> dict[str, tuple[float, float]]:
    """The roofline (Williams et al. 2009): seconds that operations need at FLOP/s and bytes/s, each
    the larger of its two; and the share of them that memory binds. By each operation itself, and
    where all that isn't a product is fused into one, and moves nothing of its own."""
    found = {}
    costs = [(flop / product, moved / memory) for flop, moved in work]
    for name, chosen in (("limit", costs), ("limit, fused", [c for c in costs if c[0]])):
        seconds = sum(map(max, chosen))
        found[name] = seconds, sum(m for f, m in chosen if m > f) / seconds
    return found
