"""A network that is no option here: a user's own, brought from Python, a package or a file."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sat.config import key_of
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
        images = torch.linspace(0, 1, 3 * math.prod(image)).view(3, *image)
        make, _ = self.brought
        try:
            net = adopt(make(image), images, images.device)
        except ValueError as error:
            raise Refused(str(error)) from error  # of the network, no key of a config
        own = net.function
        bare = isinstance(own, nn.Module) and any(True for _ in own.parameters())
        return own if bare and net.can_be_walked and not (net.fixed or net.copies) else net


def described(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of a network of that name, with what that of `model` says of its start."""
    return {"_target_": "sat.models.Given", "name": name, **{key: model.get(key) for key in START}}


def refuse_other_words(overrides: Iterable[str], groups: Collection[str], whose: str) -> None:
    """Raises Refused for a word of one of these groups: the network of `whose` is what it is."""
    for word in overrides:
        key = key_of(word)
        if key.split(".")[0] in groups and key not in (left := [f"model.{k}" for k in START]):
            raise Refused(f"{word}: {whose} is what it is; of model there are {', '.join(left)}")
