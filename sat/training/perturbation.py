"""The weights around a weight attack: kept before, put back after the optimiser's step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat.objectives import Unperturbed, WeightAttack
from sat.training.skips import Statistics


class Perturbation:
    """What `attack` has changed of `model` in a step; it costs two copies of the weights, and
    nothing where there is no such attack."""

    def __init__(self, attack: WeightAttack, model: nn.Module):
        self.attack, self.model = attack, model
        self.parameters: list[Tensor] = []
        if not isinstance(attack, Unperturbed):
            self.parameters = [p for p in model.parameters() if p.requires_grad]
            self.kept, self.moved = ([p.detach().clone() for p in self.parameters] for _ in "ab")
            self.statistics = Statistics(model.buffers())
        self.standing = False  # the weights are perturbed

    @torch.no_grad()
    def begin(self, loss: Callable[[], None], epoch: Tensor) -> None:
        """Perturbs the weights where `loss` leaves its gradient; batch-norm statistics are as they
        were afterwards, and gradients gone."""
        if not self.parameters:
            return
        torch._foreach_copy_(self.kept, self.parameters)
        self.standing = True
        self.statistics.keep()
        self.attack.perturb(self.model, torch.enable_grad()(loss), epoch)
        self.statistics.put_back()
        self.model.zero_grad(set_to_none=True)
        torch._foreach_copy_(self.moved, self.parameters)

    @torch.no_grad()
    def end(self, broken: Tensor | None = None) -> None:
        """The weights from before and what the optimiser's step has added to the perturbed ones; to
        the bit those from before where the step was `broken`, a truth on the device, or never came
        (None). Subtracting the perturbation would not restore a bit, nor a number that is none."""
        if not self.standing:
            return
        if broken is None:
            torch._foreach_copy_(self.parameters, self.kept)
        else:
            torch._foreach_sub_(self.parameters, self.moved)
            torch._foreach_add_(self.parameters, self.kept)
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(torch.where(broken, kept, parameter))
        self.standing = False
