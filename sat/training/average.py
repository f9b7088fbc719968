"""The average of the weights, which is what is measured where a run has one."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Local = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Averaging:
    """How weights are averaged: each update by `decay` of the average and the rest of the weights,
    or, where `decay` is 0, all updates alike (SWA, Izmailov et al. 2018, who take one an epoch).

    Before update `start`, and at least once, the average is a copy of the weights; SWA's first
    member is what update `start` makes. With `ramp` the
    decay is min(decay, (1 + t) / (10 + t)) in averaged update t, from 0, and batch norm's
    statistics are the model's own (Rebuffi et al. 2021); so they are for SWA, which estimates them
    anew when it is measured. Else they are averaged like weights.
    """

    decay: float
    ramp: bool = False
    start: int = 0

    @property
    def copies(self) -> int:
        """The updates whose weights are copied, whatever came before."""
        return self.start if self.decay else self.start + 1

    @property
    def copies_buffers(self) -> bool:
        return self.ramp or not self.decay

    def share(self, done: Tensor) -> Tensor:
        """What the new weights count in an update when `done` made the average, of which the first
        was a copy; 0-dim, on the device."""
        if not self.decay:
            return 1 / (done + 1)
        if self.ramp:  # 1 - (1 + t) / (10 + t), t = done - 1
            return (9 / (9 + done)).clamp(min=1 - self.decay)
        return torch.full_like(done, 1 - self.decay)


class Average:
    """The averaged model; nothing in it asks the host."""

    def __init__(self, model: nn.Module, averaging: Averaging):
        self.module, self.averaging = copy.deepcopy(model).eval(), averaging
        device = next(model.parameters()).device
        # Updates that the average is made of: 0 before the first one that is no skipped step.
        self.done = torch.zeros((), device=device)
        weights = dict(model.named_parameters(remove_duplicate=False))
        held = dict(model.named_buffers(remove_duplicate=False)) | weights
        known, state = set[int](), model.state_dict()
        # Of each tensor whether it is averaged, or copied; None of one that another name has, too.
        self._averaged: list[bool | None] = []
        for name, value in state.items():
            averaged = value.is_floating_point()
            averaged = averaged and not (averaging.copies_buffers and name not in weights)
            tied = id(held.get(name, name)) in known
            self._averaged.append(None if tied else averaged)
            known.add(id(held.get(name, name)))

    @torch.no_grad()
    def update(self, model: nn.Module, number: Tensor, broken: Tensor, local: Local) -> None:
        """Follows update `number`, from 0, a 0-dim tensor on the device; nothing where it was
        `broken`, a truth on the device. `local` gives what this process holds of tensors."""
        copied = (number < self.averaging.copies) | (self.done == 0)
        share = torch.where(copied, 1.0, self.averaging.share(self.done))
        share = torch.where(broken, 0.0, share)
        own, new = (local([*m.state_dict().values()]) for m in (self.module, model))
        pairs = [*zip(own, new, self._averaged, strict=True)]
        means, values = ([p[k] for p in pairs if p[2]] for k in (0, 1))
        torch._foreach_lerp_(means, values, [share] * len(means))
        for old, value, averaged in pairs:
            if averaged is False:
                old.copy_(value)
        self.done.copy_(torch.where(broken, self.done, torch.where(copied, 1.0, self.done + 1)))

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)


def estimate_statistics(
    net: nn.Module, batches: Iterable[Tensor], together: Callable[[Sequence[Tensor], Tensor], None]
) -> None:
    """Batch norm's statistics in `net` become their means over `batches` of images, each of which
    may be made with those of before; nothing else of it changes. `together(means, sums)` makes
    means over this process's images, counted in `sums`, means over those of all processes."""
    copied = copy.deepcopy(net).eval()
    norms, own = _tracking(copied), _tracking(net)
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # each batch counts alike
    seen = torch.zeros(1, device=next(net.parameters()).device)
    with torch.no_grad():
        for x in batches:
            copied(x)
            seen += len(x)
        together([s for norm in norms for s in (norm.running_mean, norm.running_var)], seen)
        for norm, new in zip(own, norms, strict=True):
            norm.running_mean.copy_(new.running_mean)
            norm.running_var.copy_(new.running_var)


def _tracking(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
