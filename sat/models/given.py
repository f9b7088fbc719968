"""A network that is no option here: a user's own, brought from Python, a package or a file."""

import hashlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sat.models.foreign import adopt

Network = Callable[[Tensor], Tensor]
Make = Callable[[tuple[int, int, int]], Network]  # from the shape of an image


@dataclass(frozen=True)
class Given:
    """A network that whoever calls brings along: `sat.train(model=...)`, `evaluate=FILE`. A config
    alone holds none of it, so that no config opens a file or runs foreign code.

    `name` is shown in the run's name.
    """

    name: str | None = field(default=None, metadata={"identity": False})

    make: ClassVar[Make | None] = None
    content: ClassVar[str | None] = None

    def bringing(self, make: Make, content: str) -> "Given":
        """This option with its network, which `make` gives; `content` tells it from any other."""
        given = replace(self)
        vars(given).update(make=make, content=content)
        return given

    def fingerprint(self) -> str | None:
        """What tells the network from any other; None where none was brought."""
        return self.content

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        """A module of its own, or a function in one, that takes any batch of such images."""
        if self.make is None:
            raise ValueError(
                f"name={self.name}: a network from elsewhere is opened only where it is named:"
                " evaluate=FILE, evaluate=package.module:factory, in Python sat.train(model=...)"
                " and sat.load(run, model=...)"
            )
        image = (channels, image_size, image_size)
        images = torch.full((3, *image), 0.5)
        net = adopt(self.make(image), images, images.device)
        return net.function if net.can_be_walked and not net.fixed else net


def content_of(network: Network) -> str:
    """Sixteen hex digits that tell a network from others: of a module its weights, its structure as
    printed, and of each part in it the class with its source and the plain values it keeps; of a
    function its source. What other code they call is not seen."""
    digest = hashlib.sha256()
    parts = network.modules() if isinstance(network, nn.Module) else (network,)
    for part in parts:
        cls = type(part) if isinstance(part, nn.Module) else part
        told = [getattr(cls, "__module__", ""), getattr(cls, "__qualname__", ""), _source(cls)]
        held = getattr(part, "__dict__", {})
        told += [f"{key}={value!r}" for key, value in sorted(held.items()) if _is_plain(value)]
        told += [part.extra_repr()] if isinstance(part, nn.Module) else []
        digest.update(repr(told).encode())
    if isinstance(network, nn.Module):
        for key, value in network.state_dict().items():
            digest.update(f"{key}:{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _source(cls: Any) -> str:
    """The source of a class or function, but for torch's own, which are told by their names."""
    if getattr(cls, "__module__", "").split(".")[0] == "torch":
        return ""
    with suppress(OSError, TypeError):
        return inspect.getsource(cls)
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
