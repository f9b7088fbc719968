"""What is measured: the network and the schedule of a command line, on images of random pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sat.acceleration.auto import choose
from sat.acceleration.device import find_device
from sat.attacks import PGD, Clean
from sat.bench.costs import Cost, Sizes, build, cost_of, sizes_of, without_images
from sat.config import Spec, composed
from sat.errors import Refused, refusing
from sat.models import Classifier
from sat.objectives import Method
from sat.training.plan import Plan
from sat.training.state import TrainState

# Labels here mean nothing, and thousands of steps towards them may end in weights that are not
# finite, which cost other times.
RATE = 1e-6


@dataclass(frozen=True)
class Case:
    """A training that is timed; no image is read."""

    words: tuple[str, ...]
    spec: Spec
    sizes: Sizes
    device: torch.device

    @property
    def cost(self) -> Cost:
        return cost_of(self.spec, self.sizes)

    @property
    def batch(self) -> int:
        return self.spec.schedule.batch_size

    @property
    def choices(self) -> dict[str, Any]:
        """What `auto` stands for in such a run, uncompiled, and of several parts of a batch one."""
        schedule, cost = replace(self.spec.schedule, compile=False), self.cost
        images = self.sizes.train
        return choose(schedule, self.device, images, cost.multiply_adds, cost.depthwise)

    @property
    def unit(self) -> int:
        """FLOP of a forward of the batch."""
        return 2 * self.cost.multiply_adds * self.batch

    def model(self) -> Classifier:
        """The network, with the same weights each time."""
        torch.manual_seed(self.spec.seed)
        return build(self.spec, self.sizes, "cpu").to(self.device)

    def images(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """A batch x [B, C, H, W] in [0, 1] and y [B], on the device, the same each time."""
        generator, count = torch.Generator().manual_seed(0), count or self.batch
        x = torch.rand(count, *self.sizes.shape, generator=generator)
        y = torch.randint(self.sizes.classes, (count,), generator=generator)
        return x.to(self.device), y.to(self.device)

    def attack(self, k: int | None) -> Any:
        """PGD-k; None: the command line's own attack."""
        if k is None:
            return self.spec.attack
        return replace(self.spec.attack, steps=k) if k else Clean()

    def state(self, k: int | None = 0, **choices: Any) -> TrainState:
        """A training of the program's own, eager unless `compile` or `graph` is chosen."""
        given = {**self.choices, "compile": False, "graph": False, **choices}
        slow = {"learning_rate": RATE, "decay": "constant", "warmup_epochs": 0.0}
        # asked for, not by itself: a compilation that fails must not pass for one
        schedule = replace(self.spec.schedule, **slow, compile=given["compile"], accumulate=1)
        plan = Plan(schedule, self.sizes.train, self.spec.seed, given)
        return TrainState(self.model(), Method.of(self.spec, self.attack(k)), plan)

    def varied(self, *words: str) -> "Case":
        """This case but for what these words say."""
        names = {word.split("=", 1)[0] for word in words}
        return case_of([*(w for w in self.words if w.split("=", 1)[0] not in names), *words])


def units(k: int) -> int:
    """A forward, an input gradient and a weight gradient are one unit each: k forwards and input
    gradients, and an update of three."""
    return 2 * k + 3


def case_of(words: Sequence[str]) -> Case:
    """The case of a command line of `sat.run`; without a data set it has CIFAR-10's sizes.

    Raises Refused, in one line, for what `sat.run` would refuse and for other attacks than PGD in
    the l-infinity norm.
    """
    if not any(word.startswith("dataset=") for word in words):
        words = ["dataset=cifar10", *words]
    spec = without_images(composed(words))
    if not isinstance(spec.attack, PGD) or spec.attack.norm != "linf":
        raise Refused("attack: only PGD in the l-infinity norm is compared; --steps says how long")
    if spec.evaluate is not None:
        raise Refused(f"evaluate={spec.evaluate}: trains nothing that could be timed")
    with refusing("device"):
        device = find_device(spec.device)
    return Case(tuple(words), spec, sizes_of(spec.dataset), device)
