"""What can break a step of a training: numbers that are not finite, and memory that runs out."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sat.errors import Diverged, Fault

# A skipped step leaves the weights as they were. One bad batch passes; weights that have no finite
# gradient for this many batches, one after the other, are themselves at fault.
RUNNING = 10


class Relapse(Exception):
    """The trainer went back to where all was finite; the steps since are to be taken again."""


@dataclass
class Skips:
    """The steps that were not finite as they were first computed."""

    skipped: int = 0  # left out: nothing changed
    repeated: int = 0  # taken in float32 instead
    running: int = 0  # skipped one after the other, up to now
    batch: dict[str, Any] | None = None  # of the last skipped step
    news: list[str] = field(default_factory=list)  # not yet said

    def repeat(self, step: int, what: str) -> None:
        self.repeated, self.running = self.repeated + 1, 0
        self._tell(f"step {step}: {what} not finite; repeated in float32", self.repeated)

    def skip(self, step: int, what: str, x: Tensor, y: Tensor) -> None:
        self.skipped, self.running = self.skipped + 1, self.running + 1
        x, y = x.detach().cpu().clone(), y.cpu().clone()
        self.batch = {"step": step, "images": x, "labels": y, "not_finite": what}
        self._tell(f"step {step}: {what} not finite; skipped", self.skipped)

    def _tell(self, text: str, count: int) -> None:
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th: a fault that stays floods no log
            self.news.append(f"{text} ({count} so far)")

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"skipped": self.skipped, "repeated": self.repeated, "running": self.running}

    def load(self, state: dict[str, int]) -> None:
        for key, count in state.items():
            setattr(self, key, count)

    def result(self) -> dict[str, int]:
        """For `result.json`."""
        return {"skipped_steps": self.skipped, "repeated_steps": self.repeated}

    def metrics(self) -> dict[str, int]:
        """For the log: so far; nothing where there is nothing to tell."""
        return {f"train/{key}": count for key, count in self.result().items() if count}

    def check(self) -> None:
        """Raises Diverged after `RUNNING` skipped steps, one after the other."""
        if self.running >= RUNNING:
            raise Diverged(
                f"{self.batch['not_finite'] if self.batch else 'a gradient is'} not finite in"
                f" {self.running} steps, one after the other; {REMEDY}"
            )


REMEDY = "try a lower schedule.learning_rate, schedule.clip=1, or schedule.precision=fp32"


def not_finite(loss: Tensor, gradients: dict[str, Tensor | None]) -> str:
    """Says what of a step is not finite, verb and all: for people, after the fact."""
    names = [n for n, g in gradients.items() if g is not None and not torch.isfinite(g).all()]
    if not torch.isfinite(loss).all():
        return "the loss is"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the gradient of {names[0]}{more} is" if names else "a gradient is"


def copied(state: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of a trainer's state, in the memory of an earlier copy, which is lost; a few launches
    where `deepcopy` takes two for each tensor."""
    leaves, spec = tree_flatten(state)
    held, held_spec = tree_flatten(before)
    tensors = [isinstance(leaf, Tensor) for leaf in leaves]
    if spec != held_spec or tensors != [isinstance(leaf, Tensor) for leaf in held]:
        return copy.deepcopy(state)
    groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for own, new in zip(held, leaves, strict=True):
        if isinstance(new, Tensor):
            groups.setdefault((new.device, new.dtype), []).append((own, new))
    for pairs in groups.values():
        own, new = map(list, zip(*pairs, strict=True))
        torch._foreach_copy_(own, new)
    either = zip(held, leaves, tensors, strict=True)
    return tree_unflatten([own if tensor else new for own, new, tensor in either], spec)


def starved(batch: int, accumulate: int) -> Fault:
    """What to do when an update of `batch` images in `accumulate` parts finds no memory."""
    if batch < 4 * accumulate:  # batch norm needs two images a part
        advice = (
            f"schedule.accumulate={accumulate} leaves no smaller parts of {batch} images: try"
            " schedule.precision=bf16, a smaller model or smaller images"
        )
    else:
        parts = 2 * accumulate
        advice = (
            f"schedule.accumulate={parts} keeps the batch of {batch} images and computes"
            f" {-(-batch // parts)} at a time (a run of its own; double it until it fits, or write"
            " schedule.accumulate=auto)"
        )
    return Fault(f"out of memory in an update of {batch} images; {advice}")
