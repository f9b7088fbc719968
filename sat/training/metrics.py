"""Training figures: summed on the device, read once a log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Figures = Mapping[str, tuple[Tensor, Tensor]]  # of a step, by tag: a sum, and how many it counts


class Stepped(Protocol):
    """What a step has computed, before its gradients are clipped."""

    sums: Tensor  # [4]: loss, right answers, a regulariser's error, images; of all processes

    def gradient_norm(self) -> Tensor: ...


@dataclass(frozen=True)
class Metrics:
    """The usual figures. Another one is a line, in a class that extends this one; it is called in
    every step, and may ask nothing of the host. A log tells the sums over the counts since the log
    before, of the steps that changed the weights."""

    def __call__(self, state: Stepped) -> Figures:
        loss, right, _, images = state.sums.unbind()
        return {"train/loss": (loss, images), "train/adversarial_accuracy": (right, images)}


@dataclass(frozen=True)
class GradientNorm(Metrics):
    """The L2 norm of a step's gradient as well, before it is clipped."""

    def __call__(self, state: Stepped) -> Figures:
        norm = state.gradient_norm()
        return {**super().__call__(state), "train/gradient_norm": (norm, torch.ones_like(norm))}


class Totals:
    """The figures since the last log, summed up on `device`."""

    def __init__(self, device: torch.device):
        self.tags: list[str] = []
        self.values = torch.zeros(0, device=device)  # a sum and a count for each

    def add(self, figures: Figures, broken: Tensor) -> None:
        """A step's; nothing where it was `broken`."""
        new = torch.stack([value for pair in figures.values() for value in pair])
        if self.tags != [*figures]:  # at first, or where a run goes on with others
            self.tags, self.values = [*figures], torch.zeros_like(new)
        self.values += torch.where(broken, 0.0, new)

    def means(self, values: list[float]) -> dict[str, float]:
        """Means by tag of what `values` held on the device; nothing where nothing was counted."""
        pairs = zip(self.tags, values[::2], values[1::2], strict=True)
        return {tag: total / count for tag, total, count in pairs if count}

    def state_dict(self) -> dict[str, Any]:
        return {"tags": self.tags, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tags = [*state["tags"]]
        self.values = state["values"].to(self.values.device, copy=True)
