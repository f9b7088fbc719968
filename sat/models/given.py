"""A network that is no option here: a user's own, brought from Python, a package or a file."""

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sat.errors import Refused
from sat.identity import START
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

    brought: ClassVar[tuple[Make, str] | None] = None

    def bringing(self, make: Make, content: str) -> "Given":
        """This option with its network, which `make` gives; `content` tells it from any other."""
        given = replace(self)
        vars(given)["brought"] = (make, content)
        return given

    def fingerprint(self) -> str | None:
        """What tells the network from any other; None where none was brought."""
        return self.brought and self.brought[1]

    def __call__(self, channels: int, classes: int, image_size: int) -> nn.Module:
        """A module of its own, or a function in one, that takes any batch of such images."""
        if self.brought is None:
            raise ValueError(
                f"name={self.name}: a network from elsewhere is opened only where it is named:"
                " evaluate=FILE, evaluate=package.module:factory, in Python sat.train(model=...)"
                " and sat.load(run, model=...)"
            )
        image = (channels, image_size, image_size)
        images = torch.full((3, *image), 0.5)
        make, _ = self.brought
        net = adopt(make(image), images, images.device)
        return net.function if net.can_be_walked and not net.fixed else net


def described(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of a network of that name, with what that of `model` says of its start."""
    return {"_target_": "sat.models.Given", "name": name, **{key: model.get(key) for key in START}}


def refuse_other_words(overrides: Iterable[str], groups: Collection[str], whose: str) -> None:
    """Raises Refused for a word of one of these groups: the network of `whose` is what it is."""
    for word in overrides:
        key = word.split("=", 1)[0].lstrip("+~")
        if key.split(".")[0] in groups and key not in (left := [f"model.{k}" for k in START]):
            raise Refused(f"{word}: {whose} is what it is; of model there are {', '.join(left)}")


def content_of(network: Network) -> str:
    """Sixteen hex digits that tell a network from others: of a module its weights and, of each part
    in it, its name, its class with the source, what it prints and the plain values it keeps; of a
    function its source and all this of the modules it closes over. What other code they call is not
    seen."""
    digest = hashlib.sha256()
    for root in [network] if isinstance(network, nn.Module) else _closed_over(network):
        if not isinstance(root, nn.Module):
            digest.update(repr([_kind(root), root if _is_plain(root) else ""]).encode())
            continue
        for name, part in root.named_modules():
            held = sorted((k, v) for k, v in vars(part).items() if _is_plain(v) and k != "training")
            digest.update(repr([name, _kind(type(part)), part.extra_repr(), held]).encode())
        for key, value in root.state_dict().items():
            digest.update(f"{key}:{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _closed_over(function: Any) -> list[Any]:
    """A function, and what it holds: the object of a method, the arguments of a partial, the
    variables around it."""
    if isinstance(function, partial):
        return [*_closed_over(function.func), *function.args, *function.keywords.values()]
    cells = getattr(function, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells]
    return [function, *filter(None, [getattr(function, "__self__", None)]), *held]


def _kind(cls: Any) -> list[str]:
    return [getattr(cls, "__module__", ""), getattr(cls, "__qualname__", ""), _source(cls)]


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
