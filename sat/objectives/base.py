"""What a training minimises, what it adds to that, and what moves its weights meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sat.acceleration.precision import gradient_scale
from sat.arguments import check_range
from sat.attacks.base import Attack, check_fields, resolved
from sat.config import Spec
from sat.errors import refusing
from sat.rng import RowRng


class Objective(Protocol):
    """What is minimised: the batch's mean loss, and the logits that accuracy is counted on.

    Whoever derives from it need only say what differs from the values below.
    """

    views: ClassVar[int] = 1  # augmentations of an image in a batch, first views first
    attack_loss: ClassVar[str] = "ce"  # what the attack ascends under `attack.loss=auto`
    attacked: ClassVar[bool | None] = None  # True: goes with no attack=none; False: with that alone
    one_label: ClassVar[bool] = False  # is about one label an image: goes with none that is mixed
    second_order: ClassVar[bool] = False  # differentiates a gradient, which no compiled network can

    def __call__(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, epoch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images x and x_adv [B, C, H, W], y [B] or soft [B, K] -> loss [], logits [B, K]. `epoch`
        [], on the device, is how far the training is; None: at its end."""
        ...


class Regulariser(Protocol):
    """A term that is added to the objective's loss: an error, times its `strength`."""

    second_order: ClassVar[bool] = False  # as an objective's
    norm: ClassVar[str | None] = None  # of the ball that it looks at, where the attack's must be

    @property
    def strength(self) -> float | Tensor:
        """How much the error counts in this step; a tensor [] where it is not always the same."""
        return 1.0

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        rng: RowRng,
        epoch: Tensor | None = None,
    ) -> Tensor:
        """Images x and x_adv [B, C, H, W], y [B] or soft [B, K], the rows' random numbers, `epoch`
        as an objective's -> the error [], a mean over the batch."""
        ...


class WeightAttack(Protocol):
    """Moves the weights for the time of an update: its gradient and the optimiser's step are taken
    where they then are. The training puts them back, to the bit, and adds what the step has added;
    it also keeps batch-norm statistics at rest meanwhile."""

    def perturb(self, model: nn.Module, loss: Callable[[], None], epoch: Tensor) -> None:
        """Changes parameters of `model` in place, without a gradient. `loss()` leaves in their
        `grad` that of the whole loss, of the batch of all processes (under fp16 times a positive
        number); `epoch` [] is how far the training is."""
        ...


@dataclass(frozen=True)
class Unregularised(Regulariser):
    """Adds nothing."""

    @property
    def strength(self) -> float:
        return 0.0

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        rng: RowRng,
        epoch: Tensor | None = None,
    ) -> Tensor:
        """0, of no gradient."""
        return x_adv.new_zeros(())


@dataclass(frozen=True)
class Unperturbed:
    """Leaves the weights alone."""

    def perturb(self, model: nn.Module, loss: Callable[[], None], epoch: Tensor) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Method:
    """How a network is trained: who attacks images and weights, and what is minimised."""

    attack: Attack
    objective: Objective
    regulariser: Regulariser = Unregularised()
    weight_attack: WeightAttack = Unperturbed()

    @classmethod
    def of(cls, spec: Spec, attack: Attack | None = None) -> Self:
        """The method of a checked config; `attack` takes the place of the config's."""
        parts = spec.objective, spec.regulariser, spec.weight_attack
        return cls(training_attack(attack or spec.attack, spec.objective), *parts)

    @property
    def second_order(self) -> bool:
        """Whether a gradient is differentiated."""
        return self.objective.second_order or self.regulariser.second_order


def training_attack(attack: Attack, objective: Objective) -> Attack:
    """The attack of a training for this objective: `loss=auto` is the objective's. Validation and
    evaluation keep the attack that they were given, for which `auto` is cross-entropy."""
    with refusing("attack: "):
        check_fields(attack)
    with refusing("attack."):
        return resolved(attack, objective.attack_loss)


def input_gradient(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The logits of images x [B, C, H, W], and the gradient of the summed loss(logits) with respect
    to x, in the shape of x; both can be differentiated. In training mode images share batch norm's
    statistics, and an image's gradient is that of all their losses. Attention is written out: its
    fused kernels have no second derivative."""
    x = x.detach().requires_grad_()
    scale = gradient_scale(model)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        logits = model(x)
        (gradient,) = torch.autograd.grad(scale * loss(logits).sum(), x, create_graph=True)
    return logits, gradient / scale


def check_beta(beta: float) -> None:
    check_term("beta", beta)


def check_term(name: str, weight: float) -> None:
    """Refuses what a term of a loss is multiplied with where one of the two would be lost."""
    if weight:
        check_range(name, weight, 1e-6, 1e6, "float32 keeps seven digits of a sum (0 is none)")


def check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: from 0 to below 1")
