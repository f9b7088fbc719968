"""Is a measured robustness to be believed? Asked of a few hundred test images, after the attack."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.attacks import PGD, Attack
from sat.attacks.ball import Ball
from sat.attacks.base import ball_of, frozen
from sat.attacks.coarse import ASTRAY, COARSE, leads_astray, repeated
from sat.attacks.determinism import RANDOM, moved, varies
from sat.attacks.network import Bare, Network
from sat.attacks.outcomes import is_right, of_logits
from sat.attacks.pool import Pool, State
from sat.attacks.square import SPARED, SquareSearch
from sat.evaluation.measure import accuracy
from sat.loggers.screen import Progress
from sat.models.foreign import has_gradient
from sat.rng import RowRng
from sat.rundir.result import CLEAN, Alarm, MaskingChecks
from sat.statistics import beyond, wilson

# What makes a point of the curve: a random start, and after how many steps of its ascent. One step
# is as long as eps, each of 4 and more a quarter of it.
EFFORTS = ((0, (1,)), (0, (5, 10, 20, 50, 100)), (1, (50,)))
FEW = 10  # images that tell nothing of chance
QUERIES = 300  # of Square
WORK = sum(1 + efforts[-1] for _, efforts in EFFORTS) + QUERIES
CLEAN_STEPS = 5  # enough to tell in which direction the attack pushes


def masking_checks(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None, rng: RowRng,
    robust: Tensor | None = None,
) -> MaskingChecks:  # fmt: skip
    """Looks for reasons not to believe what `attack` says of x [N, C, H, W] in [0, 1], y [N].

    The model must be in eval mode and in the precision of the verdict; it is left as it was.
    `robust` [N] are the flags that the attack gave on these images; without them it is run here.
    All images are asked at once, unless the model is `InParts`.
    With the draws of that attack the first steps of the curve are its own. At eps 0, or without
    one, only the network itself is looked at. An image that stands costs
    about 460 forwards and 160 backwards: 4 s for 128 digits and the default model on a CPU's core.
    """
    began = time.monotonic()
    with frozen(model, "eval"):
        with torch.no_grad():
            logits = model(x)
        if (broken := not_finite_alarm(logits)) is not None:
            return MaskingChecks(
                images=len(x),
                seconds=round(time.monotonic() - began, 3),
                curve=[{"attack": CLEAN, **accuracy(of_logits(logits, y).right)}],
                alarms=[broken],
            )
        right = of_logits(logits, y).right
        with torch.no_grad():
            moves = max(moved(logits, model(x)), varies(model, x[:FEW]))
        again = stochastic_alarm(moves, len(x))
        seen = has_gradient(model, x)
        blind = saturated_alarm(model, x, y, logits) if seen else no_gradient_alarm()
        alarms = [random_alarm(logits, y), blind, again]
        curve = [{"attack": CLEAN, **accuracy(right)}]
        if attack is not None and attack.eps and seen:
            short = PGD(attack.eps, CLEAN_STEPS, norm=attack.norm)
            bar = Progress("masking checks", WORK, unit="")
            effort = Effort(model, x, y, short, rng, bar.advance)
            bar.show()
            coarse = coarse_alarm(model, x, effort.ball, rng)
            alarms.append(coarse or wrong_gradient_alarm(model, x[:FEW], rng[:FEW]))
            alarms.append(effort.above_clean(right))
            if robust is None:
                robust = right.clone()
                robust[right] = effort.right(
                    attack(model, x[right], y[right], rng[right]), y[right]
                )
            steps, stands = effort.by_gradients(right)
            black_box, fallen = effort.by_square(stands, robust.to(stands.device))
            bar.close()
            curve += steps + black_box
            alarms.append(more_steps_alarm(robust.to(stands.device) & right, stands, steps))
            alarms.append(black_box_alarm(fallen, len(x)))
    return MaskingChecks(
        images=len(x),
        seconds=round(time.monotonic() - began, 3),
        curve=curve,
        alarms=[alarm for alarm in alarms if alarm is not None],
    )


class InParts(nn.Module):
    """A network asked at most `size` images at a time, or eight, for logits and for gradients."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size, self.training = model, max(size, 8), model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if len(x) <= self.size else _Parts.apply(x, self.model, self.size)


class _Parts(torch.autograd.Function):
    """Computes each part once more for its gradient, so that no two are held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module, size: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.size = model, size
        return torch.cat([model(part) for part in x.split(size)])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (x,), gradients = ctx.saved_tensors, []
        for part, rise in zip(x.split(ctx.size), slope.split(ctx.size), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                gradients += torch.autograd.grad(ctx.model(part), part, rise)
        return torch.cat(gradients), None, None


@dataclass(frozen=True)
class Counted(SquareSearch):
    """Square that tells of its queries."""

    told: Callable[[int], object] = int

    def step(self, network: Network | Bare, state: State) -> tuple[Tensor, Tensor, Tensor]:
        self.told(1)
        return super().step(network, state)


@dataclass
class Effort:
    """Attacks of ever more steps on the same images, inside `frozen`; `short` is a PGD. `told` is
    told of the steps and queries that are done, WORK in all."""

    model: nn.Module
    x: Tensor
    y: Tensor
    short: PGD
    rng: RowRng
    told: Callable[[int], object]

    @property
    def ball(self) -> Ball:
        return ball_of(self.short)

    def right(self, points: Tensor, y: Tensor) -> Tensor:
        return is_right(self.model, points, y)

    def above_clean(self, right: Tensor) -> Alarm | None:
        """Attacks the images that are wrong as well: ascent of the loss makes none of them right;
        1 % is left to the random start, which a gradient of 0 does not undo."""
        points = self.short(self.model, self.x, self.y, self.rng)
        attacked = int(self.right(points, self.y).sum())
        clean, images = int(right.sum()), len(right)
        if not beyond(attacked - clean, images, 0.01):
            return None
        return Alarm(
            "above_clean",
            f"{self.short.steps} steps of PGD raise the accuracy from {clean / images:.1%} to"
            f" {attacked / images:.1%}: the gradient points the wrong way. Look for a backward"
            " that is not the forward's; measure with Square",
            {"clean": clean / images, "attacked": attacked / images, "images": images},
        )

    def by_gradients(self, right: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
        """The curve over steps and one restart, and which images stand at its end [N].

        A PGD's first steps are those of a longer one, so that one ascent makes many points.
        An image falls at the first of its points that is misclassified, and leaves.
        """
        points, stands = [], right.clone()
        for restart, efforts in EFFORTS:
            fell = self._ascend(stands, efforts[-1], restart)
            for steps in efforts:
                point = {"attack": "pgd", "steps": steps, "restarts": 1 + restart}
                points.append(point | accuracy(stands & (fell > steps)))
            stands = stands & (fell > efforts[-1])
        return points, stands

    def _ascend(self, rows: Tensor, steps: int, restart: int) -> Tensor:
        """Counts after how many steps each image is misclassified first [N]; steps + 1: never."""
        attack = PGD(self.short.eps, steps, norm=self.short.norm)
        rng = self.rng
        if restart:
            rng = rng.child("restart", restart)
        fell = torch.full(rows.shape, steps + 1, device=rows.device)
        left = rows.nonzero()[:, 0]
        point, length = attack.begin(self.x[left], rng[left]), attack.step_size / 255
        for step in range(steps + 1):
            if len(left) == 0:
                break
            logits, gradient = _look(self.model, point, self.y[left])
            stays = of_logits(logits, self.y[left]).right
            self.told(1)
            fell[left[~stays]] = step
            point, left = point[stays], left[stays]
            point = self.ball.project(
                point + length * self.ball.steepest(gradient[stays]), self.x[left]
            )
        return fell

    def by_square(self, stands: Tensor, robust: Tensor) -> tuple[list[dict[str, Any]], int]:
        """The curve's last point, and how many of the images that stand Square fells; of those that
        the evaluated attack left `robust`, too."""
        fallen: list[int] = []
        rng = self.rng.child("square").to("cpu")
        search = Counted(self.ball, rng.key, iterations=QUERIES, told=self.told)

        def left(images: Tensor, points: Tensor | None = None, tied: Tensor | None = None) -> None:
            fallen.extend(images.tolist() if points is not None else ())

        targets = torch.zeros(len(self.y), 1, dtype=torch.long)
        pool = Pool(self.x, self.y, targets, rng, left, len(self.y), float("inf"))
        images = (stands & robust).nonzero()[:, 0].tolist()
        if images:
            pool.run(search, Network(self.model, None, self.x[:8], self.ball), images)
        left_over = stands.clone()
        left_over[fallen] = False
        return [{"attack": "square", "queries": QUERIES, **accuracy(left_over)}], len(fallen)


def _look(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K], and the gradient of each image's cross-entropy."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    return logits.detach(), gradient


def not_finite_alarm(logits: Tensor) -> Alarm | None:
    """Logits that are no numbers, or infinite: of such a network nothing else is asked. One of +inf
    may be right, and no gradient tells of it."""
    broken = int((logits.isnan() | (logits == torch.inf)).any(1).sum())
    if not broken:
        return None
    return Alarm(
        "not_finite",
        f"the network's logits of {broken} of {len(logits)} clean images are no numbers, which"
        " counts as wrong, or infinite, which hides an image from gradients; nothing else is asked."
        " Look for a division by 0 or an overflow in the network; train with a lower"
        " schedule.learning_rate, or schedule.clip=1",
        {"not_finite": broken, "images": len(logits)},
    )


def random_alarm(logits: Tensor, y: Tensor) -> Alarm | None:
    """A network that guesses: its clean accuracy's interval reaches down to one in `classes`, or
    it answers one class to images of several."""
    answers, (images, classes) = logits.argmax(1), logits.shape
    right = int((answers == y).sum())
    constant = bool((answers == answers[0]).all() and not (y == y[0]).all())
    if images < FEW or (wilson(right, images)[0] > 1 / classes and not constant):
        return None
    how = "answers one class to all" if constant else f"is right on {right / images:.1%}"
    return Alarm(
        "random",
        f"the network {how} of {images} clean images of {classes} classes, as by chance: no number"
        " of its robustness would mean anything. Look at the training, the weights and the labels",
        {"clean": right / images, "chance": 1 / classes, "constant": constant, "images": images},
    )


def stochastic_alarm(difference: float, images: int) -> Alarm | None:
    """A network that answers the same images otherwise from call to call (AutoAttack's check,
    relative to the logits that decide)."""
    if difference <= RANDOM:
        return None
    return Alarm(
        "stochastic",
        f"the network's logits change by {difference:.1%} from call to call: one fall of an image"
        " tells little. Look for dropout or noise; a randomised defence is measured with"
        " evaluation=autoattack evaluation.attacks.autoattack.version=rand",
        {"difference": difference, "images": images},
    )


def no_gradient_alarm() -> Alarm:
    """Logits that can't be differentiated by the images: nothing but queries has attacked them."""
    return Alarm(
        "no_gradient",
        "the logits have no gradient by the images: only queries were tried, and the true"
        " robustness may be far lower; put something smooth in the place of what has none",
    )


def saturated_alarm(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Alarm | None:
    """Nothing to climb: outputs that are probabilities (AutoAttack's check: within [0, 1], with
    sums of 1), or a gradient of exactly 0 for a tenth of the images that it gets right, and not by
    chance. float32 rounds the softmax's gradient to 0 at a margin of about 100."""
    rows = of_logits(logits, y).right
    probabilities = bool(
        logits.min() >= 0 and logits.max() <= 1 and ((logits.sum(1) - 1).abs() < 1e-5).all()
    )
    _, gradient = _look(model, x, y)
    gradient = gradient[rows].flatten(1)
    zero = int(((gradient == 0).all(1) | gradient.isnan().any(1)).sum())
    images = int(rows.sum())
    if not probabilities and not beyond(zero, images, 0.1):
        return None
    what = (
        "the network gives probabilities instead of logits; remove its softmax"
        if probabilities
        else f"the input gradient of {zero} of {images} images is 0 in every pixel, or NaN;"
        " only attacks by a rescaled margin (apgd-t) or without gradients (square) see anything"
    )
    return Alarm(
        "saturated",
        f"attacks by gradients may be blind: {what}",
        {"probabilities": probabilities, "zero_gradients": zero, "images": images},
    )


def coarse_alarm(model: nn.Module, x: Tensor, ball: Ball, rng: RowRng) -> Alarm | None:
    """Logits of few values: more than 5 % of those at random points of the balls repeat another
    exactly. In float32 none do, in float16 2 %."""
    share = repeated(model, x, ball, rng)
    if share <= COARSE:
        return None
    return Alarm(
        "coarse",
        f"{share:.0%} of the logits repeat another exactly: they are rounded, quantised or"
        " saturated, and hide from attacks what would fell an image. evaluation=strong goes by the"
        " last layer of real values, where there is one, and runs Square three times; measure the"
        " network without its rounding as well",
        {"repeated": share, "images": len(x)},
    )


def wrong_gradient_alarm(model: nn.Module, x: Tensor, rng: RowRng) -> Alarm | None:
    """A gradient that is not the slope of the logits: a backward pass of its own, or a surface of
    jumps."""
    share = leads_astray(model, x, rng)
    if share <= ASTRAY:
        return None
    return Alarm(
        "wrong_gradient",
        f"over short ways the logits change otherwise than their gradient tells, by {share:.0%} of"
        " the change: a backward pass of its own, or jumps (rounding, sorting) lead attacks by"
        " gradients astray. evaluation=strong gives nothing up where its first images say so too",
        {"beside": share, "images": len(x)},
    )


def more_steps_alarm(
    robust: Tensor, stands: Tensor, curve: Sequence[dict[str, Any]]
) -> Alarm | None:
    """Images that the evaluated attack left and more steps or a restart felled are more than 5 %
    of all, and not by chance. From PGD-20 to PGD-200, honest models lose about 1 %."""
    before, images = int(robust.sum()), len(robust)
    after = int((robust & stands).sum())
    if not beyond(before - after, images, 0.05):
        return None
    told = ", ".join(
        f"{p['steps']}{' and a restart' * (p['restarts'] > 1)}: {p['accuracy']:.1%}" for p in curve
    )
    return Alarm(
        "more_steps",
        f"more steps help much: {before / images:.1%} are robust to the attack that was evaluated,"
        f" {after / images:.1%} to more (PGD steps {told}). Evaluate with more steps, or with"
        " evaluation=strong",
        {"evaluated": before / images, "more": after / images, "images": images},
    )


def black_box_alarm(fallen: int, images: int, share: float = 0.01) -> Alarm | None:
    """Square, which sees no gradient, fells images that stand after attacks that do: more than 1 %
    of all, and not by chance. On honest models it finds next to none."""
    if not beyond(fallen, images, share):
        return None
    return Alarm(
        "black_box",
        f"of {images} images Square, an attack without gradients, fells {fallen} that attacks by"
        " gradients leave: these had too few starts, or the gradient is masked; the true robust"
        " accuracy may be lower still. Try restarts (evaluation.restarts=10 with PGD); where they"
        " fell no more, look for rounding, noise or saturation in the network",
        {"fallen": fallen, "share": fallen / images, "images": images},
    )


def square_alarm(names: Sequence[str], counts: Sequence[int], images: int) -> Alarm | None:
    """`black_box_alarm` of a finished ensemble: its attacks in their order, and how many of
    `images` each was the first to fell. The limit is AutoAttack's, 0.2 % of all, and not by
    chance."""
    if "square" not in names or (at := list(names).index("square")) == 0:
        return None
    return black_box_alarm(counts[at], images, SPARED)
