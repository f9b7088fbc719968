"""Where batch norm's running statistics begin."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat.training.skips import Skips


class NormStart:
    """Batch norms that take the statistics of the first update (`schedule.norm_start=batch`), which
    is the first step that was not skipped; of `model` none where they begin at 0 and 1."""

    def __init__(self, model: nn.Module, start: str):
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and start == "batch"]
        self._momenta = [(norm, norm.momentum) for norm in norms]
        self.waits = bool(norms)  # no update has moved them yet

    def look(self, skips: Skips) -> bool:
        """Gives them the momentum of the step to come; whether it is no longer the first. The host
        looks at each step until then."""
        self.waits = skips.all_skipped()
        for norm, momentum in self._momenta:
            norm.momentum = 1.0 if self.waits else momentum
        return not self.waits
