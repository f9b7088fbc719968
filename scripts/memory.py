"""What a step keeps in memory, counted on tensors that have shapes and no content: nothing is
computed, so networks may be larger than this machine."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case, case_of
from costs import build
from pages import grid
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from units import size

from sat.acceleration.auto import DTYPES
from sat.acceleration.folding import Folded
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.attacks.base import frozen, input_gradient

LARGE = {
    "ResNet-50 at 224": ("model=resnet", "model.depth=50", "dataset.image_size=224"),
    "ResNeXt-152-32x8d at 380": ("model=resnet", "model.depth=152", "model.cardinality=32",
                                 "model.base_width=8", "dataset.image_size=380"),
    "EfficientNet-B7 at 600": ("model=efficientnet", "model.variant=b7", "dataset.image_size=600"),
}  # fmt: skip


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

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return made

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
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
    live = Live([*model.parameters(), *model.buffers(), *gradients, x, y])
    with live:
        step(model, x, y)
    return live.most


@dataclass(frozen=True)
class Need:
    """Bytes of a training: `fixed` whatever the batch, and more for each image of a batch."""

    fixed: float
    image: float

    def largest(self, memory: float) -> int:
        return max(0, int((memory - self.fixed) // self.image))


def need_of(case: Case, precision: str, checkpointed: bool) -> dict[str, Need]:
    """Of the attack's step and of the update, from batches of two and four images."""
    fixed = case.cost.fixed(case.spec.schedule, precision) or 0
    needs = {}
    for name, step in (("attack", attack), ("update", update)):
        two, four = (_counted(case, step, count, precision, checkpointed) for count in (2, 4))
        needs[name] = Need(fixed + 2 * two - four, (four - two) / 2)
    return needs


def _counted(
    case: Case, step: Callable[..., None], count: int, precision: str, checkpointed: bool
) -> int:
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
        y = torch.zeros(count, dtype=torch.long)
        return live_bytes(step, model, x, y)


def measure_memory(
    words: Sequence[str], gigabytes: Sequence[float], progress: Callable[[str], object]
) -> dict[str, Any]:
    """Of the large networks with the words' activation and schedule, on ImageNet's classes; in bf16
    unless the words name a precision."""
    rows = []
    for name, network in LARGE.items():
        given = [w for w in words if not w.startswith(("model", "dataset"))]
        case = case_of(["dataset=imagenet", *network, *given])
        precision = case.spec.schedule.precision
        precision = "bf16" if precision == "auto" else precision
        for checkpointed in (False, True):
            needs = need_of(case, precision, checkpointed)
            progress(f"memory: {name}{', checkpointed' * checkpointed}")
            most = {f"{g:g}": min(need.largest(g * 2**30) for need in needs.values())
                    for g in gigabytes}  # fmt: skip
            rows.append({
                "network": name, "precision": precision, "checkpointed": checkpointed,
                **{f"{step}_bytes_an_image": need.image for step, need in needs.items()},
                "fixed_bytes": max(need.fixed for need in needs.values()), "largest_batch": most,
            })  # fmt: skip
    return {"rows": rows}


def memory_text(found: dict[str, Any]) -> str:
    rows, sizes = [], [*found["rows"][0]["largest_batch"]]
    for row in found["rows"]:
        rows.append([
            row["network"], row["precision"], "yes" if row["checkpointed"] else "no",
            size(row["attack_bytes_an_image"]), size(row["update_bytes_an_image"]),
            size(row["fixed_bytes"]), *(f"{row['largest_batch'][g]:,}" for g in sizes),
        ])  # fmt: skip
    head = ["network", "precision", "checkpointed", "attack, an image", "update, an image", "fixed",
            *(f"batch in {g} GiB" for g in sizes)]  # fmt: skip
    note = (
        "Counted on shapes: activations and intermediates that are alive at once; fixed: weights,"
        " gradients, optimiser, casts and the copy that attacks search. A kernel's own scratch"
        " memory and what an allocator wastes come on top."
    )
    return "\n".join(["## Memory", "", note, "", grid(head, rows)])
