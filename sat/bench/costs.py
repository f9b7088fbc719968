"""What a run costs, counted on a model without weights: nothing is computed, nothing is read but
the folder or file of a set of the user's own."""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sat.acceleration.auto import depthwise, multiply_adds
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.activations.swap import swap_activations
from sat.attacks import FGSM, AutoAttack, Curve, FastAutoAttack, Square
from sat.attacks.outcomes import Ensemble
from sat.attacks.targets import LOOKED_AT, by_malt
from sat.bench.counting import Live
from sat.bench.step_cost import StepCost, step_cost
from sat.config import Spec, check
from sat.data import SVHN, Cifar10, Cifar100, Digits, FashionMNIST, ImageNet, TinyImageNet
from sat.data.choice import split_training
from sat.data.folders import FolderSet
from sat.data.memory import MemorySet
from sat.errors import Refused, refusing
from sat.models import Classifier
from sat.models.weights import without_weights
from sat.objectives import Method
from sat.training.optimizer import build_optimizer
from sat.training.overfitting import IMAGES as PROBED
from sat.training.plan import Plan

# Training and test images, classes, channels, pixels as stored (of folders: as they are cropped).
PUBLISHED: dict[type, tuple[int, int, int, int, int]] = {
    Digits: (1_438, 359, 10, 1, 8),
    Cifar10: (50_000, 10_000, 10, 3, 32),
    Cifar100: (50_000, 10_000, 100, 3, 32),
    SVHN: (73_257, 26_032, 10, 3, 32),
    FashionMNIST: (60_000, 10_000, 10, 1, 28),
    TinyImageNet: (100_000, 10_000, 200, 3, 64),
    ImageNet: (1_281_167, 50_000, 1_000, 3, 224),
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
IMAGES = 64  # of the batch whose memory is counted
STRONG = 170  # input gradients that an ensemble costs an image: 8.5 times PGD-20, as measured
CHECKED = 310  # what 460 forwards and 160 backwards of the masking checks cost


@dataclass(frozen=True)
class Sizes:
    """How many images a set has in each part, and what they are to a network."""

    train: int
    held_out: int
    test: int
    classes: int
    channels: int
    pixels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.pixels, self.pixels


@cache
def sizes_of(dataset: Any) -> Sizes:
    """Published sets are known by heart, unless their folder is there; others are looked at, and no
    image is decoded.

    Raises Refused for a `limit` or `holdout` that the set can't give, and where a set of the user's
    own is not there; nothing is downloaded.
    """
    known = PUBLISHED.get(type(dataset))
    with refusing("dataset."):
        if known and not is_there(dataset):
            train, test, classes, channels, stored = known
            labels = torch.arange(train) % classes  # of no account but to the stratified choice
        elif isinstance(dataset, MemorySet):
            arrays = dataset.load()
            labels, test = arrays.train_labels, len(arrays.test)
            classes, (channels, stored) = len(arrays.classes), arrays.train.shape[1:3]
        else:
            if hasattr(dataset, "download"):
                dataset = replace(dataset, download=False)
            data = dataset(torch.device("cpu"), 0)
            train, held_out, test = len(data.train), len(data.held_out), len(data.test)
            found = len(data.classes), data.channels, data.image_size
            return Sizes(train, held_out, test, *found)
        parts = split_training(labels, dataset.limit, dataset.holdout, seed=0)
    train, held_out = map(len, parts)
    return Sizes(train, held_out, test, classes, channels, dataset.image_size or stored)


def is_there(dataset: Any) -> bool:
    return isinstance(dataset, FolderSet) and (Path(dataset.root) / "train").is_dir()


def without_images(spec: Spec) -> Spec:
    """The spec itself; where a published set's folder is not here, one whose hash is not of its
    images."""
    dataset = spec.parts["dataset"]
    if type(dataset) in PUBLISHED and isinstance(dataset, FolderSet) and not is_there(dataset):
        spec = replace(spec)
        vars(spec)["fingerprint"] = None
    return spec


def build(spec: Spec, sizes: Sizes, device: str) -> Classifier:
    """The spec's network, its activations swapped without the proof, and no given weights loaded.
    On `meta` it has shapes and no memory."""
    if spec.brought is not None:
        raise Refused(f"evaluate={spec.evaluate}: no forecast is made of networks from elsewhere")
    model = without_weights(spec.config["model"])
    family = check({**spec.config, "model": model, "evaluate": None}).model
    with refusing("model."), torch.device(device):
        backbone = family(sizes.channels, sizes.classes, sizes.pixels)
        swap_activations(backbone, spec.activation)
        net = Classifier(backbone, [0.5] * sizes.channels, [0.25] * sizes.channels)
    if spec.schedule.grad_checkpointing:
        with refusing("schedule."):
            recompute(net)
    return net


# gradient computations ------------------------------------------------------------------------


def gradients_of(attack: Any, classes: int) -> int:
    """Input gradients for an image that stands, or what costs as much: a query is half of one."""
    if isinstance(attack, Curve):
        return sum(point.steps for point in attack.attacks if point.eps)
    if isinstance(attack, Ensemble):
        if isinstance(attack, AutoAttack):
            return 7 * STRONG
        malt = isinstance(attack, FastAutoAttack) and by_malt(attack.targets, classes)
        return STRONG + min(classes - 1, LOOKED_AT) * malt
    if isinstance(attack, Square):
        return attack.queries // 2
    return 1 if isinstance(attack, FGSM) else asdict(attack).get("steps", 0)


@dataclass(frozen=True)
class Work:
    """What there is to do, an image counted as often as it is looked at."""

    updates: int
    images: int  # that updates see
    step: StepCost  # units an image of these
    statistics: int  # images on which those of SWA are estimated
    validation: int  # input gradients, at most
    validated: int  # images, each time anew
    evaluation: int  # input gradients, at most
    evaluated: int  # images under an attack or a curve, for each checkpoint
    checked: int  # images on which a measurement is doubted, for each checkpoint

    @property
    def attack(self) -> float:
        """What the training's attacks cost, and a forward beside each in SWA's passes, in input
        gradients with their forwards."""
        return (self.step.attack * (self.images + self.statistics) + self.statistics) / 2

    @property
    def training(self) -> float:
        """Units: a forward, an input gradient or a weight gradient of an image; PGD-k has 2k + 3 an
        image."""
        return self.step.update * self.images + 2 * self.attack


@cache
def validations(schedule: Any, images: int, every: float) -> int:
    plan = Plan(schedule, images, 0, {}, every)
    return sum(plan.validates(step) for step in range(1, plan.steps + 1))


def work_of(spec: Spec, sizes: Sizes, trains: bool = True) -> Work:
    """Counted as if every image were right when clean and stood under every attack but the last;
    of a run that is there, and of a file, the evaluation alone."""
    evaluation, one = spec.evaluation, spec.evaluate is not None
    step, updates, images, estimated, times, asked, each = StepCost(0.0, 0.0), 0, 0, 0, 0, 0, 0
    if trains and not one:
        updates, step = spec.schedule.steps(sizes.train), step_cost(Method.of(spec))
        images = updates * spec.schedule.batch_size
        times = validations(spec.schedule, sizes.train, spec.validation.every)
        if start := spec.schedule.swa_start:
            estimated = sizes.train * math.ceil(times * (1 - start))
        asked = min(spec.validation.limit or sizes.held_out, sizes.held_out)
        nets = 2 if spec.validation.weights == "either" else 1
        each = nets * asked * gradients_of(spec.validation.attack, sizes.classes)
        if asked and spec.validation.attack.eps:  # the probe: two gradients
            each += 2 * -(-asked // -(-asked // PROBED))
    checkpoints = 1 if one else len(set(evaluation.checkpoints))
    tested, attacks = min(evaluation.limit or sizes.test, sizes.test), evaluation.measured_by
    steps = evaluation.restarts * sum(gradients_of(a, sizes.classes) for a in attacks.values())
    checked = min(evaluation.masking_checks, tested) if evaluation.attacks else 0
    return Work(updates, images, step, estimated, times * each, times * asked,
                checkpoints * tested * steps, checkpoints * tested * max(1, len(attacks)),
                checkpoints * checked)  # fmt: skip


# memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """One network on such images: what counting tells of it."""

    parameters: int
    multiply_adds: int  # of one image's forward
    state: int | None  # bytes of weights, gradients, optimiser and average
    saved: float  # bytes an image that autograd keeps for an update, in float32
    most: float  # bytes an image that are alive at once in an update, in float32
    depthwise: bool  # whether it has such convolutions

    def fixed(self, schedule: Any, precision: str) -> int | None:
        """Bytes whatever the batch: of the state, and of the copy that attacks search."""
        if self.state is None:
            return None
        return self.state + (schedule.fold is not False) * self.parameters * BYTES[precision]

    def beside(self, images: int, precision: str) -> float:
        """Bytes of activations and intermediates of so many images."""
        return self.most * images * BYTES[precision] / 4


def memory(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, shape: tuple[int, int, int]
) -> tuple[int | None, float, float]:
    """`state`, `saved` and `most` of Cost, of a model on `meta`: of an update of a large batch,
    beside which weights count little. No state of optimisers that look at numbers before they make
    theirs."""
    x = torch.zeros(IMAGES, *shape, device="meta")
    weights = [*model.parameters(), *model.buffers()]
    with Live([*weights, x]) as live, phase(phased(model), "outer"):
        loss = model.train()(x).sum()
        saved = live.now
        loss.backward()
        most = live.most
        del loss
        try:
            optimizer.step()
        except RuntimeError:
            return None, saved / IMAGES, most / IMAGES
        state = live.now  # of gradients and optimiser
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    state += size(weights) * (2 if schedule.averages else 1)
    if schedule.optimizer.startswith("lookahead_"):
        state += size(model.parameters())  # the slow weights, made later
    return state, saved / IMAGES, most / IMAGES


_COSTS: dict[str, Cost] = {}


def cost_of(spec: Spec, sizes: Sizes) -> Cost:
    """Counted once for all runs of a sweep that share network, activation, images and optimiser."""
    config, schedule = spec.config, spec.schedule
    rest = [config["model"], config["activation"], schedule.optimizer, schedule.averages]
    key = json.dumps([*rest, schedule.grad_checkpointing, sizes.classes, *sizes.shape])
    if key not in _COSTS:
        model = build(spec, sizes, "meta")
        with refusing("schedule."):
            optimizer = build_optimizer(model, schedule)
        try:
            multiplied = multiply_adds(model, sizes.shape)
            parts = memory(model, optimizer, schedule, sizes.shape)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Refused(
                f"dataset.image_size={sizes.pixels}: the network fails on such images ({reason});"
                " choose another size or another model"
            ) from error
        parameters = sum(p.numel() for p in model.parameters())
        _COSTS[key] = Cost(parameters, multiplied, *parts, depthwise(model))
    return _COSTS[key]
