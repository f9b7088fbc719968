"""A search as a plain attack: a whole batch for the whole of its length, so that it can train."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat.attacks.outcomes import margins

SCALE = 2.0**10  # float16 would round small gradients of the input to 0


class Bare:
    """The model that an attack is given, as a search asks for it: see `sat.attacks.network`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        half = getattr(model, "autocast", None) is torch.float16
        self.scale = SCALE if half else 1.0

    def gradient(
        self, x: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K], loss(logits) [B] and the gradient of each loss by its image."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model(x)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum() * self.scale, x)
        return logits.detach(), losses.detach(), torch.nan_to_num_(gradient / self.scale)

    @torch.no_grad()
    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        return logits, logits

    def may_fall(self, logits: Tensor, y: Tensor) -> Tensor:
        return margins(logits, y) <= 0
