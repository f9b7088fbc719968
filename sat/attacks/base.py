"""What an attack is, and the network it asks.

A new attack is a frozen dataclass with the fields and the call of `Attack`, and a YAML file in
`conf/attack` (see docs/extend.md).
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat.acceleration.precision import gradient_scale
from sat.arguments import complete
from sat.attacks.ball import Ball, Norm
from sat.attacks.losses import LOSSES, Loss, ce, reference
from sat.errors import Refused
from sat.rng import RowRng

log = logging.getLogger("sat")
Mode = Literal["eval", "train"]


class Attack(Protocol):
    """Moves images x [B, C, H, W] in [0, 1] so that the model gets their labels y wrong.

    `eps` in 1/255, and `norm`, say how far; `batch_norm` whether the attacked network normalises
    with its running statistics (`eval`) or with the batch's own; `loss` what is ascended, `auto`
    being what the training's objective says. The result is detached, float32, in [0, 1] and in the
    eps-ball around x; modes, statistics, `requires_grad` and gradients of the model are left as
    they were.

    Whoever derives from it need only say what differs from the values below. A class that has the
    four and the call alone is given those values where it is checked first (`check_fields`).
    """

    if TYPE_CHECKING:  # else dataclasses would take them for the defaults of their fields

        @property
        def eps(self) -> float: ...
        @property
        def norm(self) -> Norm: ...
        @property
        def batch_norm(self) -> str: ...
        @property
        def loss(self) -> str: ...

    steps: int | None = None  # of its ascent, as `attack.steps=` sets them
    target: int | None = None  # the rank of the wrong class that it leads to
    eps_warmup: float = 0.0  # the share of a training in which eps rises from 0
    steps_warmup: float = 0.0  # or the number of steps from 1
    update_statistics: bool = False  # its forwards move batch-norm statistics, on purpose

    @property
    def step_size(self) -> float | None:
        """The size of its steps in 1/255, where they are all of one."""
        return None

    @property
    def crosses(self) -> bool:
        """Whether its steps are long enough to reach the edge of the ball."""
        return True

    @property
    def reach(self) -> float:
        """How far it moves an image at most, in 1/255, on purpose."""
        return float(self.eps)

    @property
    def balls(self) -> Sequence[Ball]:
        """The balls to one of which it takes a batch."""
        return [replace(ball_of(self), eps=self.reach / 255)]

    @property
    def random(self) -> bool:
        """Whether it goes elsewhere with other random numbers."""
        return True

    @property
    def asks_gradients(self) -> bool:
        """Whether a network without a gradient withstands it."""
        return True

    @property
    def fewest_classes(self) -> int:
        """How many classes a network must tell apart."""
        return 1

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError, in one line, for images of a size that it can't take."""
        return None

    def gradients(self, classes: int) -> int | None:
        """Input gradients for an image that stands, or what costs as much (a query is half of one),
        of so many classes; None where they have to be counted."""
        return self.steps

    @property
    def replays(self) -> int:
        """How often a step trains on its batch, where the gradients of these updates are the
        attack's own, told to `ascend`; 0 for an attack that asks for its own."""
        return 0

    def ascend(self, x: Tensor, gradient: Tensor, rng: RowRng) -> None:
        """Told of rows x [B, C, H, W] and the gradient of their loss at what it made of them."""
        return None

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """y is [B], or soft [B, K]. `rng` has the rows' random numbers; `progress`, a tensor of no
        dimensions on the device, is the share of the training that is done."""
        ...


def row_rng(rng: RowRng | None, x: Tensor) -> RowRng:
    """The rows' random numbers; whoever calls an attack by hand gives none, and may have normalised
    the images, which would be cut to [0, 1]: ValueError."""
    if rng is not None:
        return rng
    if not x.is_floating_point() or (x.numel() and not (-1e-6 <= x.min() and x.max() <= 1 + 1e-6)):
        raise ValueError(
            f"x: is {x.dtype} from {x.min():.3g} to {x.max():.3g}; an attack takes float images in"
            " [0, 1], and the model normalises them (that of sat.load does)"
        )
    return RowRng(0, torch.arange(len(x), device=x.device))


FIELDS = ("eps", "norm", "batch_norm", "loss")
A = TypeVar("A", bound=Attack)


def resolved(attack: A, loss: str) -> A:
    """The attack with `loss` in the place of `auto`. Raises ValueError where the two don't fit."""
    return replace(attack, loss=loss) if attack.loss == "auto" else attack  # type: ignore[type-var]


def check_fields(attack: Any) -> None:
    """Raises ValueError, in one line, where something of `Attack` is missing that goes not without
    saying; what does, its class is given. It is here alone that an attack is asked what it has."""
    name = type(attack).__name__
    if not callable(attack):
        raise ValueError(f"{name}: is no attack; name one of the options of attack")
    if missing := [field for field in FIELDS if not hasattr(attack, field)]:
        raise ValueError(
            f"{name}: lacks {' and '.join(missing)}; an attack has the fields {', '.join(FIELDS)}"
        )
    if not is_dataclass(attack):
        raise ValueError(f"{name}: must be a dataclass, whose fields are the attack's settings")
    own: Any = attack
    try:
        inspect.signature(own).bind(None, None, None, None, progress=None)
    except TypeError:
        raise ValueError(
            f"{name}: must be called as attack(model, x, y, rng=None, progress=None)"
        ) from None
    complete(attack, Attack)
    for key, usual in vars(Attack).items():
        if inspect.isfunction(usual) and not callable(getattr(own, key)):
            raise ValueError(
                f"{name}: {key} is what an attack is asked for (docs/extend.md); call it otherwise"
            )
    if own.replays and type(own).ascend is Attack.ascend:
        raise ValueError(
            f"{name}: replays={own.replays} are updates of the training, told to ascend, which"
            " it lacks (docs/extend.md); call it otherwise"
        )


def is_setting(attack: Any, key: str) -> bool:
    """Whether an attack can be had with another value of that field."""
    return any(field.name == key for field in fields(attack) if field.init)


def check_attack(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Tries the attack on a batch x [B, C, H, W], y [B], with the model in training mode.

    Raises Refused, in one line, for what `Attack` does not allow; warns of a loss that does not
    rise. Leaves modes and statistics as they were, whatever the attack did to them.
    """
    try:
        check_fields(attack)
    except ValueError as error:
        raise Refused(f"attack: {error}") from error
    rng = RowRng(0, torch.arange(len(x), device=x.device))
    training, modes = model.training, [(module, module.training) for module in model.modules()]
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    try:
        model.train()
        x_adv = attack(model, x, y, rng)
        _check_images(attack, x, x_adv)
        moved = any(not torch.equal(buffer, state[name]) for name, buffer in model.named_buffers())
        if moved and not attack.update_statistics:
            raise Refused(
                "attack: moves the model's batch-norm statistics; ask it inside of"
                " sat.attacks.base.frozen(model, self.batch_norm)"
            )
        if attack.loss == "kl" and attack.eps and torch.equal(x_adv, x):
            raise Refused(
                "attack: moves no image; the loss kl has no gradient at the clean images: begin"
                " elsewhere (attack=pgd with start=normal)"
            )
        if [parameter.requires_grad for parameter in model.parameters()] != trained:
            raise Refused("attack: leaves parameters with another requires_grad than they had")
        if not _projects(attack, model, x, y, rng):
            raise Refused("attack: changes the images at eps=0; the perturbation is not projected")
        _warn_of_no_effect(attack, model.eval(), x, x_adv, y)
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(state[name])
        for parameter, was in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(was)
        model.train(training)  # some networks drop what they cached for eval here
        for module, mode in modes:
            module.training = mode


def _projects(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng) -> bool:
    """Whether the attack leaves images alone at eps=0, which one that leaves the ball on purpose,
    or whose eps is no field of its own, is not asked."""
    if not attack.eps or attack.reach > attack.eps or not is_setting(attack, "eps"):
        return True
    still = replace(attack, eps=0)(model, x, y, rng)  # type: ignore[type-var]
    return torch.allclose(still, x, 0, 1e-6)


def _check_images(attack: Attack, x: Tensor, x_adv: Tensor) -> None:
    if x_adv.shape != x.shape or x_adv.dtype != torch.float32 or x_adv.requires_grad:
        raise Refused(
            f"attack: gives {x_adv.dtype} of shape {list(x_adv.shape)}"
            f"{', with a gradient' * x_adv.requires_grad}; it must give detached float32 of the"
            f" images' shape {list(x.shape)}"
        )
    balls = attack.balls
    sizes = [ball.size(x_adv - x).max().item() for ball in balls]
    if all(size > ball.eps * (1 + 1e-5) + 1e-5 for size, ball in zip(sizes, balls, strict=True)):
        raise Refused(
            f"attack.eps={attack.eps:g}: the attack moves an image by {255 * sizes[0]:.4g}/255"
        )
    if not (0 <= x_adv.min() and x_adv.max() <= 1):
        raise Refused("attack: leaves the range [0, 1] of the images; it must clamp to it")


@torch.no_grad()
def _warn_of_no_effect(
    attack: Attack, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
) -> None:
    loss = LOSSES.get(attack.loss, ce)  # its own: what raises one loss may lower another
    target = reference(loss, model, x, y)
    before, after = (loss(model(image), target).mean().item() for image in (x, x_adv))
    if attack.eps and after <= before:
        log.warning(
            "preflight: the attack does not raise the loss of the first batch (%.4f to %.4f): its"
            " gradient may be masked, or the network's last layer begins at 0", before, after,
        )  # fmt: skip


def ball_of(attack: Attack) -> Ball:
    """The ball that an attack promises to stay in."""
    return Ball(float(attack.eps) / 255, attack.norm)


def risen(progress: Tensor | None, warmup: float) -> float | Tensor:
    """How much of a size is reached that rises from 0 during the first `warmup` of a training, a
    share of it; all of it outside of a training."""
    return 1.0 if progress is None or not warmup else (progress / warmup).clamp(max=1)


def check_warmup(key: str, warmup: float) -> None:
    """Raises ValueError for a warm-up that is no share of the training."""
    if not 0 <= warmup <= 1:
        raise ValueError(
            f"{key}={warmup}: is a share of the training, from 0 to 1; of 100 epochs 10 are 0.1"
        )


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = ce) -> Tensor:
    """The gradient of the summed loss(model(x), y) with respect to x, and of nothing else.

    The sum makes an image's gradient independent of its batch. float16 would round small
    gradients to 0, so there the loss is scaled up; only the direction is used. Entries that are no
    number are 0: the ascent goes on with the other pixels.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model(x), y).sum() * gradient_scale(model), x)
    return gradient.nan_to_num_(0.0)


@contextmanager
def frozen(model: nn.Module, batch_norm: str, update_statistics: bool = False) -> Iterator[None]:
    """Parameters without gradients and batch-norm statistics at rest, unless they are to be
    updated, for the time of an attack.

    Frozen parameters save the work of weight gradients, and a compiled model
    gets a graph of input gradients alone. On leaving, also by an exception, all is as before.
    """
    if getattr(model, "at_rest", False) and batch_norm == "eval":  # see sat.acceleration.folding
        yield
        return
    before = model.training
    modules = [(module, module.training) for module in model.modules()]
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = [m for m, _ in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        if batch_norm == "eval":
            model.eval()
        else:
            for norm in norms:
                norm.train().track_running_stats = update_statistics
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
        model.train(before)  # some networks drop what they cached for eval here
        for module, training in modules:
            module.training = training
