"""What a network costs, counted on a model without weights: nothing is computed."""

import json
from dataclasses import dataclass
from typing import Any

import torch

from sat.acceleration.auto import depthwise, multiply_adds
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.activations.swap import swap_activations
from sat.bench.counting import Counted, size_of
from sat.config import Spec, check
from sat.data.sizes import Sizes
from sat.errors import Refused, refusing
from sat.models import Classifier
from sat.models.weights import without_weights
from sat.training.optimizer import build_optimizer

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
IMAGES = 64  # of the batch whose memory is counted


@dataclass(frozen=True)
class Cost:
    """One network on such images: what counting tells of it."""

    parameters: int
    multiply_adds: int  # of one image's forward
    depthwise: bool  # whether it has such convolutions
    state: int | None  # bytes of weights, gradients, optimiser and average
    saved: float  # bytes an image that autograd keeps for an update, in float32
    most: float  # bytes an image that are alive at once in an update, in float32

    def fixed(self, schedule: Any, precision: str) -> int | None:
        """Bytes whatever the batch: of the state, and of the copy that attacks search."""
        copy = (schedule.fold is not False) * self.parameters * BYTES[precision]
        return None if self.state is None else self.state + copy

    def beside(self, images: int, precision: str) -> float:
        """Bytes of activations and intermediates of so many images."""
        return self.most * images * BYTES[precision] / 4


def build(spec: Spec, sizes: Sizes, device: str) -> Classifier:
    """The spec's network, its activations swapped without the proof, and no given weights loaded.
    On `meta` it has shapes and no memory."""
    family = check({**spec.config, "model": without_weights(spec.config["model"])}).model
    with refusing("model."), torch.device(device):
        backbone = family(sizes.channels, sizes.classes, sizes.pixels)
        swap_activations(backbone, spec.activation)
        net = Classifier(backbone, [0.5] * sizes.channels, [0.25] * sizes.channels)
    if spec.schedule.grad_checkpointing:
        with refusing("schedule."):
            recompute(net)
    return net


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
        parameters = sum(p.numel() for p in model.parameters())
        try:
            multiplied = multiply_adds(model, sizes.shape)
            parts = memory(model, optimizer, schedule, sizes.shape)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Refused(
                f"dataset.image_size={sizes.pixels}: the network fails on such images ({reason});"
                " choose another size or another model"
            ) from error
        _COSTS[key] = Cost(parameters, multiplied, depthwise(model), *parts)
    return _COSTS[key]


def memory(
    model: Classifier, optimizer: torch.optim.Optimizer, schedule: Any, shape: tuple[int, int, int]
) -> tuple[int | None, float, float]:
    """`state`, `saved` and `most` of Cost, of a model on `meta`: of an update of a large batch,
    beside which weights count little. No state of optimisers that look at numbers before they make
    theirs."""
    x = torch.zeros(IMAGES, *shape, device="meta")
    weights = [*model.parameters(), *model.buffers()]
    with Counted([*weights, x]) as live, phase(phased(model), "outer"):
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
    state += size_of(weights) * (2 if schedule.averages else 1)
    if schedule.optimizer.startswith("lookahead_"):
        state += size_of([*model.parameters()])  # the slow weights, made later
    return state, saved / IMAGES, most / IMAGES
