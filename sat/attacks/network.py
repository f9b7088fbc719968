"""The attacked network as a search asks it: fast copies to search with and the model itself to
confirm; or, of a plain attack, the model alone."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from sat.acceleration.folding import fold
from sat.acceleration.precision import gradient_scale, lay_out
from sat.attacks.ball import Ball
from sat.attacks.base import input_gradient
from sat.attacks.coarse import Tap
from sat.attacks.outcomes import Verdicts, at_stake, margins, of_logits, under_attack

# How near to a fall a search in bfloat16 has to come, as a share of the logits at stake, for
# float32 to be asked: three steps of its 8 bits.
NEAR = 3 * 2.0**-8


class Network:
    """What a search asks of a model: logits, gradients of the input, and a verdict in float32.

    `precision` is what the search runs in (None: float32); it needs a model with an `autocast`
    attribute. The model must be in eval mode, with parameters that ask for no gradient; `x` are
    a few images that it takes. Verdicts are of points in `ball`. Where logits are `coarse`, the
    search goes by what they are made of (see `sat.attacks.coarse`), if that is in sight.
    """

    def __init__(
        self, model: nn.Module, precision: torch.dtype | None, x: Tensor, ball: Ball,
        coarse: bool = False,
    ) -> None:  # fmt: skip
        self.exact, self.ball = model, ball
        self.precision = precision if hasattr(model, "autocast") else None
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.fast = self.low = fold(model, x.to(self.device)).net
        self.near, self.usual = 0.0, 0.0
        if self.precision and self.fast is not model and (low := self._lower(model, x)):
            self.near, self.low = NEAR, low
        self.taps = {net: Tap.of(net, x.to(self.device)) if coarse else None
                     for net in (self.fast, self.low)}  # fmt: skip

    def _lower(self, model: nn.Module, x: Tensor) -> nn.Module | None:
        """A copy that computes in `precision`, with weights in it unless the model has a part that
        autocast leaves alone; None for a network that takes no fewer bits, or no such layout."""
        for dtype in (self.precision, None):
            net = fold(model, x.to(self.device), dtype).net
            net.autocast = self.precision
            lay_out(net, channels_last=True)
            try:
                with torch.enable_grad():
                    input_gradient(net, x.to(self.device), net(x.to(self.device)).argmax(1))
            except Exception:  # of any kind: the code is the user's
                continue
            return net
        return None

    def in_float32(self) -> "Network":
        """This network for a search that takes no fewer bits."""
        other = copy.copy(self)
        other.low, other.near = self.fast, 0.0
        return other

    @torch.no_grad()
    def of_set(self, first: Tensor) -> "Network":
        """This network, told how large the logits of a set usually are, by its first images [B, C,
        H, W]: between two classes both may be near 0, where the layers before round as they do."""
        if len(first):
            self.usual = float(at_stake(self.fast(first), 3).median())
        return self

    def gradient(
        self, x: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K], loss(logits) [B] and the gradient of each loss by its image, 0 where it is
        NaN: the search goes on with the other pixels."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits, basis = self._both(self.low, x)
            losses = loss(basis)
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        return logits.detach(), losses.detach(), gradient.nan_to_num_(0.0)

    @torch.no_grad()
    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and those to go by, where they differ from these. In float32: a search
        without gradients lives on differences that bfloat16 rounds off."""
        return self._both(self.fast, x)

    def _both(self, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        tap = self.taps[net]
        return tap(net, x) if tap else (logits := net(x), logits)

    @torch.no_grad()
    def multiply_adds(self, x: Tensor) -> int:
        """Multiply-adds of the forward of x: convolutions and matrix products, by torch's count."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.fast(x.to(self.device))
        return counter.get_total_flops() // 2

    def may_fall(self, logits: Tensor, y: Tensor) -> Tensor:
        """Which images [B] are wrong by these logits of a search, or nearly."""
        wrong = ~of_logits(logits, y).right
        if not self.near:
            return wrong
        return wrong | (margins(logits, y) <= self.near * at_stake(logits, 3).clamp(min=self.usual))

    def falls(self, points: Tensor, x: Tensor, y: Tensor) -> Verdicts:
        """What the model itself says, in float32, of points [B, C, H, W] around images x."""
        return under_attack(self.exact, points, x, y, self.ball)


class Bare:
    """The face of `Network` where a search is a plain attack, of a whole batch and for its whole
    length, as in a training: the model as it is, without fast copies or taps."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.scale = model, gradient_scale(model)

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


@cache
def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """What each step looks up; made once, since a GPU is waited for to make it."""
    return torch.tensor(numbers, device=device)
