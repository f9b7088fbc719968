"""What a step keeps in memory, counted on tensors that have shapes and no content: nothing is
computed, so networks may be larger than this machine."""

import weakref
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from sat.acceleration.auto import DTYPES
from sat.acceleration.folding import Folded
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.attacks.pgd import frozen, input_gradient
from sat.bench.case import Case, case_of
from sat.bench.costs import build
from sat.bench.part import Measurements, Part, Row
from sat.bench.units import size

LARGE = {
    "ResNet-50 at 224": ("model=resnet", "model.depth=50", "dataset.image_size=224"),
    "ResNeXt-152-32x8d at 380": ("model=resnet", "model.depth=152", "model.cardinality=32",
                                 "model.base_width=8", "dataset.image_size=380"),
    "EfficientNet-B7 at 600": ("model=efficientnet", "model.variant=b7", "dataset.image_size=600"),
}  # fmt: skip
HEAD = ["network", "precision", "checkpointed", "attack, an image", "update, an image", "fixed",
        "largest batch"]  # fmt: skip
NOTE = """\
Counted on shapes: activations and intermediates that are alive at once; fixed: weights, gradients,
optimiser, casts and the copy that attacks search. A kernel's own scratch memory and what an
allocator wastes come on top. Largest batch: in how many GiB."""


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
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return made

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._part, storage.nbytes())

    def _part(self, count: int) -> None:
        self.now -= count


def update(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A training forward and backward. Gradients are there already, and belong to the state."""
    with phase(phased(model), "outer"):
        F.cross_entropy(model.train()(x), y).backward()


def attack(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """An attacker's step."""
    with frozen(model, "eval"), phase(phased(model), "inner"):
        input_gradient(model, x, y)


def live_bytes(step: Callable[..., None], model: nn.Module, x: Tensor, y: Tensor) -> int:
    """The most that is alive during a step, beside parameters, gradients, buffers and images."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with Live([*model.parameters(), *model.buffers(), *gradients, x, y]) as live:
        step(model, x, y)
    return live.most


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


def measurements(case: Case, own: Namespace) -> Measurements:
    """Rows of the large networks with the words' activation and schedule, on ImageNet's classes; in
    bf16 unless the words name a precision."""
    left = ("model", "dataset", "schedule.batch_size=")
    words = [word for word in case.words if not word.startswith(left)]
    for name, network in LARGE.items():
        large = case_of(["dataset=imagenet", *network, *words])
        for checkpointed in (False, True):
            key = f"{name}{', checkpointed' * checkpointed}"
            yield key, partial(measure, name, large, checkpointed, own.gib)


def measure(name: str, case: Case, checkpointed: bool, gib: Sequence[float]) -> list[Row]:
    """Bytes of the attack's step and of the update: of each image, and whatever the batch; from
    batches of two and four images."""
    precision = case.spec.schedule.precision
    precision = "bf16" if precision == "auto" else precision
    state = case.cost.fixed(case.spec.schedule, precision) or 0
    row: Row = {"network": name, "precision": precision, "checkpointed": checkpointed}
    fixed: list[float] = []
    most: dict[str, list[int]] = {f"{g:g}": [] for g in gib}
    for what, step in (("attack", attack), ("update", update)):
        two, four = (counted(case, step, count, precision, checkpointed) for count in (2, 4))
        row[f"{what}_bytes_an_image"] = image = (four - two) / 2
        fixed.append(state + 2 * two - four)
        for g in gib:
            most[f"{g:g}"].append(max(0, int((g * 2**30 - fixed[-1]) // image)))
    row["fixed_bytes"] = max(fixed)
    return [row | {"largest_batch": {g: min(images) for g, images in most.items()}}]


def cells(row: Row) -> list[str]:
    sizes = [size(row[f"{step}_bytes_an_image"]) for step in ("attack", "update")]
    largest = ", ".join(f"{g}: {images:,}" for g, images in row["largest_batch"].items())
    return [row["network"], row["precision"], "yes" if row["checkpointed"] else "no", *sizes,
            size(row["fixed_bytes"]), largest]  # fmt: skip


PART = Part("Memory", NOTE, HEAD, measurements, cells)
