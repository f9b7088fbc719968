"""What a step keeps in memory, counted on tensors that have shapes and no content: networks may be
larger than this machine.

Activations and intermediates that are alive at once; fixed: weights, gradients, optimiser, casts
and the copy that attacks search. A kernel's own scratch memory and what an allocator wastes come on
top.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sat.acceleration.auto import DTYPES
from sat.acceleration.folding import Folded
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.attacks.pgd import frozen, input_gradient
from sat.bench.book import Measurements, Row
from sat.bench.case import Case, case_of
from sat.bench.costs import Live, build

LARGE = {
    "ResNet-50 at 224": ("model=resnet", "model.depth=50", "dataset.image_size=224"),
    "ResNeXt-152-32x8d at 380": ("model=resnet", "model.depth=152", "model.cardinality=32",
                                 "model.base_width=8", "dataset.image_size=380"),
    "EfficientNet-B7 at 600": ("model=efficientnet", "model.variant=b7", "dataset.image_size=600"),
}  # fmt: skip
GIB = (24, 80, 141)  # of a GPU


def measurements(case: Case, own: Namespace) -> Measurements:
    """Rows of the large networks with the words' activation and schedule, on ImageNet's classes; in
    bf16 unless the words name a precision."""
    left = ("model", "dataset", "schedule.batch_size=")
    words = [word for word in case.words if not word.startswith(left)]
    for name, network in LARGE.items():
        large = case_of(["dataset=imagenet", *network, *words])
        for checkpointed in (False, True):
            key = f"{name}{', checkpointed' * checkpointed}"
            yield key, partial(measure, key, large, checkpointed)


def measure(key: str, case: Case, checkpointed: bool) -> list[Row]:
    """Bytes of the attack's step and of the update: of each image, and whatever the batch; from
    batches of two and four images."""
    precision = case.spec.schedule.precision
    precision = "bf16" if precision == "auto" else precision
    state = case.cost.fixed(case.spec.schedule, precision) or 0
    each: dict[str, float] = {}
    fixed: dict[str, float] = {}
    for what, step in (("attack", attack), ("update", update)):
        two, four = (counted(case, step, count, precision, checkpointed) for count in (2, 4))
        each[what], fixed[what] = (four - two) / 2, state + 2 * two - four
    row: Row = {"name": key, "precision": precision}
    row |= {f"{what}, MiB an image": image / 2**20 for what, image in each.items()}
    row["fixed MiB"] = max(fixed.values()) / 2**20
    for gib in GIB:
        room = min((gib * 2**30 - fixed[what]) // each[what] for what in each)
        row[f"batch in {gib} GiB"] = max(0, int(room))
    return [row]


def counted(
    case: Case, step: Callable[..., None], count: int, precision: str, checkpointed: bool
) -> int:
    """Live bytes of a step on `count` images."""
    with FakeTensorMode():
        model = build(case.spec, case.sizes, "cpu")
        model.autocast = DTYPES[precision]
        if checkpointed:
            recompute(model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if step is attack and case.spec.schedule.fold is not False:
            model = Folded(model, [], DTYPES[precision]).net
        x = torch.zeros(count, *case.sizes.shape)
        return live_bytes(step, model, x, torch.zeros(count, dtype=torch.long))


def live_bytes(step: Callable[..., None], model: nn.Module, x: Tensor, y: Tensor) -> int:
    """The most that is alive during a step, beside parameters, gradients, buffers and images."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with Live([*model.parameters(), *model.buffers(), *gradients, x, y]) as live:
        step(model, x, y)
    return live.most


def update(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A training forward and backward. Gradients are there already, and belong to the state."""
    with phase(phased(model), "outer"):
        F.cross_entropy(model.train()(x), y).backward()


def attack(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """An attacker's step."""
    with frozen(model, "eval"), phase(phased(model), "inner"):
        input_gradient(model, x, y)
