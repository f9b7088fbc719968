"""What a network needs of a machine's memory at the least: told before any of it is asked for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

LARGE = 2**28  # bytes of weights that are made without asking
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container's own, in bytes or "max"


def room(device: torch.device) -> int:
    """All the memory of the device, or of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        whole = min(whole, int(GROUP_LIMIT.read_text()))
    return whole


def build_within(limit: float, make: Callable[[], nn.Module], told: str) -> nn.Module:
    """What `make` makes, if its weights take no more than `limit` bytes. A large network is made
    without memory first. Raises ValueError, which begins with what is `told`."""
    try:
        with _small():
            return make()
    except _Large:
        pass
    needed = 0
    with suppress(Exception), torch.device("meta"):  # which not every constructor can do
        needed = sum(w.numel() * w.element_size() for w in make().parameters())
    if needed > limit:
        raise ValueError(
            f"{told}: its weights take {size_of(needed)}, and in this memory there are"
            f" {size_of(limit)} for them; make it smaller"
        )
    return make()


class _Large(BaseException):
    """Weights of more than LARGE bytes."""


@contextmanager
def _small() -> Iterator[None]:
    """Raises _Large for what makes more weights in here, before the memory of the last one is
    written to, which is when it is given."""
    total = 0

    def count(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        nonlocal total
        total += 0 if weight is None else weight.numel() * weight.element_size()
        if total > LARGE:
            raise _Large

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as error:
        if "allocate" in str(error):
            raise _Large from error
        raise
    finally:
        hook.remove()


@contextmanager
def kept_for_backward(net: nn.Module) -> Iterator[list[int]]:
    """Counts, of forwards in here, the values that a backward pass needs at the least: what each
    layer with weights is given."""
    counts: list[int] = []

    def note(module: nn.Module, args: tuple) -> None:
        counts.extend(x.numel() for x in args if isinstance(x, Tensor))

    layers = [m for m in net.modules() if [*m.parameters(recurse=False)]]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def size_of(count: float) -> str:
    """Bytes as people read them: 3.4 TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
