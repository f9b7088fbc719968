"""The average of the weights, which is what is measured where a run has one."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Local = Callable[[list[Tensor]], list[Tensor]]


class Average:
    """An exponential moving average: `decay` of itself and the rest of the weights, in each step.
    It begins as the weights after the first step; what is no floating number is copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(model).eval(), decay

    def update(self, model: nn.Module, step: Tensor, broken: Tensor, local: Local) -> None:
        """Follows update `step` [], from 0; nothing where it was `broken`, a truth on the device.
        `local` gives what this process holds of tensors."""
        own, new = (local([*m.state_dict().values()]) for m in (self.module, model))
        pairs = [*zip(own, new, strict=True)]
        weight = torch.where(broken, 0.0, torch.where(step > 0, 1 - self.decay, 1.0))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        with torch.no_grad():
            means, values = map(list, zip(*floating, strict=True))
            torch._foreach_lerp_(means, values, [weight] * len(means))
            for old, value in counters:
                old.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)
