"""What is counted and timed: the network and the method of a command line, on images of random
pixels."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sat.acceleration.auto import choose, depthwise, multiply_adds
from sat.acceleration.device import find_device
from sat.acceleration.processor import leave_onednn
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.activations.swap import swap_activations
from sat.attacks import Attack, Clean
from sat.bench.counting import Counted, size_of
from sat.config import Spec, check, composed
from sat.data.sizes import Sizes, is_known, sizes_of
from sat.errors import Refused, refusing
from sat.models import Classifier
from sat.models.weights import without_weights
from sat.objectives import Method
from sat.training.optimizer import build_optimizer
from sat.training.plan import Plan
from sat.training.preflight import check_sizes, check_training
from sat.training.state import TrainState

# Labels here mean nothing, and thousands of steps towards them may end in weights that are not
# finite, which cost other times.
RATE = 1e-6
IMAGES = 64  # of the batch whose memory is counted: beside it weights count little


@dataclass(frozen=True)
class Cost:
    """One network on such images: what counting tells of it."""

    parameters: int
    multiply_adds: int  # of one image's forward
    depthwise: bool  # whether it has such convolutions
    state: int | None  # bytes of weights, gradients, optimiser and average
    saved: float  # bytes an image that autograd keeps for an update, in float32
    most: float  # bytes an image that are alive at once in an update, in float32


_COSTS: dict[str, Cost] = {}


@dataclass(frozen=True)
class Case:
    """A training that is counted or timed; no image is read.

    Raises Refused for what `sat.run` refuses before it reads an image; its properties for a set or
    a network that can't be had, and for a device that isn't there.
    """

    spec: Spec
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.spec.evaluate is not None:
            raise Refused(f"evaluate={self.spec.evaluate}: trains nothing that could be timed")
        if is_known(self.spec.dataset):  # its folder is not here: the hash is not of its images
            own = replace(self.spec)
            vars(own)["fingerprint"] = None
            object.__setattr__(self, "spec", own)
        check_training(self.spec)

    @cached_property
    def sizes(self) -> Sizes:
        found = sizes_of(self.spec.dataset)
        check_sizes(self.spec, found.held_out, found.classes, found.pixels)
        return found

    @cached_property
    def cost(self) -> Cost:
        """Counted once for all runs of a sweep that share network, activation, images and
        optimiser."""
        config, schedule, sizes = self.spec.config, self.spec.schedule, self.sizes
        rest = config["model"], config["activation"], schedule.optimizer, schedule.averages
        key = str((*rest, schedule.grad_checkpointing, sizes.classes, sizes.shape))
        if key not in _COSTS:
            model = self.network("meta")
            with refusing("schedule."):
                optimizer = build_optimizer(model, schedule)
            try:
                _COSTS[key] = cost_of(model, optimizer, schedule, sizes.shape)
            except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise Refused(
                    f"dataset.image_size={sizes.pixels}: the network fails on such images"
                    f" ({reason}); choose another size or another model"
                ) from error
        return _COSTS[key]

    @cached_property
    def device(self) -> torch.device:
        with refusing("device"):
            return find_device(self.spec.device)

    @property
    def batch(self) -> int:
        return self.spec.schedule.batch_size

    @property
    def unit(self) -> int:
        """FLOP of a forward of the batch."""
        return 2 * self.cost.multiply_adds * self.batch

    @property
    def choices(self) -> dict[str, Any]:
        """What `auto` stands for in such a run, uncompiled, and of several parts of a batch one."""
        schedule = replace(self.spec.schedule, compile=False, accumulate=1)
        cost, images = self.cost, self.sizes.train
        return choose(schedule, self.device, images, cost.multiply_adds, cost.depthwise)

    def network(self, device: str) -> Classifier:
        """The network, its activations swapped without the proof, and no given weights loaded; on
        `meta` it has shapes and no memory."""
        spec, sizes = self.spec, self.sizes
        family = check({**spec.config, "model": without_weights(spec.config["model"])}).model
        with refusing("model."), torch.device(device):
            backbone = family(sizes.channels, sizes.classes, sizes.pixels)
            swap_activations(backbone, spec.activation)
            net = Classifier(backbone, [0.5] * sizes.channels, [0.25] * sizes.channels)
        if spec.schedule.grad_checkpointing:
            with refusing("schedule."):
                recompute(net)
        return net

    def model(self) -> Classifier:
        """The network on the device, with the same weights each time."""
        torch.manual_seed(self.spec.seed)
        net = self.network("cpu").to(self.device)
        leave_onednn(net)
        return net

    def images(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """A batch x [B, C, H, W] in [0, 1] and y [B], on the device, the same each time."""
        generator, count = torch.Generator().manual_seed(0), count or self.batch
        x = torch.rand(count, *self.sizes.shape, generator=generator)
        y = torch.randint(self.sizes.classes, (count,), generator=generator)
        return x.to(self.device), y.to(self.device)

    def pgd(self, k: int) -> Any:
        """The command line's PGD, of k steps."""
        return replace(self.spec.attack, steps=k) if k else Clean()

    def state(self, attack: Attack, **choices: Any) -> TrainState:
        """A training of the program's own, eager unless `compile` or `graph` is chosen."""
        given = {**self.choices, "graph": False, **choices}
        slow = {"learning_rate": RATE, "decay": "constant", "warmup_epochs": 0.0}
        # asked for, not by itself: a compilation that fails must not pass for one
        schedule = replace(self.spec.schedule, **slow, compile=given["compile"], accumulate=1)
        plan = Plan(schedule, self.sizes.train, self.spec.seed, given)
        return TrainState(self.model(), Method.of(self.spec, attack), plan)

    def without(self, *groups: str) -> list[str]:
        """The words of the command line that say nothing of these groups."""
        return [word for word in self.words if re.split("[=.]", word.lstrip("+"))[0] not in groups]


def units(k: int) -> int:
    """A forward, an input gradient and a weight gradient are one unit each: k forwards and input
    gradients, and an update of three."""
    return 2 * k + 3


def case_of(words: Sequence[str]) -> Case:
    """The case of a command line of `sat.run`; without a data set it has CIFAR-10's sizes. Raises
    Refused, in one line, for what `sat.run` would refuse."""
    if not any(word.startswith("dataset=") for word in words):
        words = ["dataset=cifar10", *words]
    return Case(composed(words), tuple(words))


def cost_of(
    model: Classifier, optimizer: torch.optim.Optimizer, schedule: Any, shape: tuple[int, int, int]
) -> Cost:
    """The cost of a model on `meta`, its memory that of an update of a large batch. No state of
    optimisers that look at numbers before they make theirs."""
    multiplied, x = multiply_adds(model, shape), torch.zeros(IMAGES, *shape, device="meta")
    parameters, state = [*model.parameters()], None
    weights = [*parameters, *model.buffers()]
    with Counted([*weights, x]) as live, phase(phased(model), "outer"):
        loss = model.train()(x).sum()
        saved = live.now
        loss.backward()
        most = live.most
        del loss
        with suppress(RuntimeError):
            optimizer.step()
            state = live.now + size_of(weights) * (2 if schedule.averages else 1)
    if state and schedule.optimizer.startswith("lookahead_"):
        state += size_of(parameters)  # the slow weights, made later
    count = sum(p.numel() for p in parameters)
    return Cost(count, multiplied, depthwise(model), state, saved / IMAGES, most / IMAGES)
