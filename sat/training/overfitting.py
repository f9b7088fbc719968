"""Is adversarial training still adversarial? Measured at each validation, at little cost."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.attacks import Attack
from sat.attacks.ball import Ball
from sat.attacks.base import frozen, input_gradient
from sat.attacks.outcomes import AttackOutcomes
from sat.distributed import World
from sat.objectives import Regulariser, Unregularised
from sat.rng import RowRng
from sat.rundir.result import Alarm
from sat.statistics import wilson

IMAGES = 256  # that are looked at, at most


class Probe:
    """The validation's attack, to be called in its place, that looks on while it works.

    Of the held-out images `indices` [N] it looks at each so many-th, 256 at most, beside what the
    attack does to them: two input gradients and a forward an image, and no attack of its own; all
    of the network that the attack searches (see `sat.acceleration.folding`), the single step's
    verdict as well.

    A single step is FGSM's, from the clean image, at the training attack's eps and norm; at the
    validation's where the training has none, or a smaller one of that norm: a training that was
    never asked for the validation's ball has not lost it.
    """

    def __init__(self, attack: Attack, training: Attack, indices: Tensor):
        self.attack, self.eps, self.norm = attack, attack.eps, attack.norm
        smaller = training.norm == attack.norm and training.eps < attack.eps
        source = attack if smaller or not training.eps else training
        self.ball = Ball(source.eps / 255, source.norm)
        self.every = -(-len(indices) // IMAGES)
        self.looked = indices[:: self.every]
        self.stands: list[Tensor] = []  # after the single step, of those it looked at
        self.cosines: list[Tensor] = []
        self.zeros: list[Tensor] = []

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng) -> Tensor:
        x_adv = self.attack(model, x, y, rng)
        seen = torch.isin(rng.rows, self.looked.to(rng.rows.device)).nonzero()[:, 0]
        if len(seen):
            with frozen(model, "eval"):
                self._look(model, x[seen], y[seen], x_adv[seen])
        return x_adv

    def _look(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> None:
        with torch.enable_grad():
            here, there = (input_gradient(model, point, y).flatten(1) for point in (x, x_adv))
        step = self.ball.eps * self.ball.steepest(here.view_as(x))
        with torch.no_grad():
            right = model(self.ball.project(x + step, x)).argmax(1) == y
        self.stands.append(right)
        self.zeros.append((here == 0).float().mean(1))
        # In float64 and with a tiny eps: a confident network's gradients are themselves tiny.
        cosines = F.cosine_similarity(here.double(), there.double(), eps=1e-150)
        self.cosines.append(cosines[(x_adv != x).flatten(1).any(1)])

    def join(self, world: World) -> None:
        """Adds what the other processes saw."""
        for seen in (self.stands, self.cosines, self.zeros):
            parts = world.gather([part.cpu() for part in seen]) if world.size > 1 else [seen]
            seen[:] = [part for parts in parts for part in parts]

    def counts(self, flags: AttackOutcomes) -> tuple[int, int, int]:
        """How many images stand after the validation's attack, after a single step, and of how
        many that it looked at; given what `measure` found with it."""
        looked = flags.robust[:: self.every]
        return int(looked.sum()), sum(int(part.sum()) for part in self.stands), len(looked)

    def numbers(self, flags: AttackOutcomes) -> dict[str, float]:
        """What it saw, by tag.

        `single_step`: the accuracy after the single step; `gap`: that, less the accuracy after the
        validation's attack, on the same images. `cosine`: of the gradients of the loss at the clean
        image and at the attack's result, mean over the images that it attacked (right when clean)
        and moved; 1 for a loss that is linear in the ball, near 0 after catastrophic overfitting,
        and 0 where a gradient is. It is Andriushchenko and Flammarion's gradient alignment (2020)
        with the adversarial image for the random one. `zero_gradients`: the share of exactly zero
        entries in the gradients at the clean images that it attacked. The last two are left out
        where there are no such images.
        """
        robust, single, images = self.counts(flags)
        found = {"single_step": single / images, "gap": (single - robust) / images}
        for name, parts in {"cosine": self.cosines, "zero_gradients": self.zeros}.items():
            if parts and len(values := torch.cat(parts)):
                found[name] = float(values.mean())
        return {f"diagnostics/{name}": value for name, value in found.items()}


class Overfitting:
    """Raises an alarm when single-step training defeats itself (Wong et al. 2020): the network
    learns to fool the step that it is trained on, and nothing is left against any other attack.

    The rule, at each validation, against the one with the highest robust accuracy so far:

    1. That one was real: its Wilson interval lies above `chance`, the share of the largest class,
       which a constant answer keeps under every attack.
    2. Robust accuracy has collapsed: the two Wilson intervals are disjoint, so that 100 images
       suffice and their noise does not, and no more than half of it is left. Robust overfitting
       costs far less than half; this collapse takes nearly all within an epoch.
    3. Accuracy after a single step has not gone with it: three quarters of it are left, or it is
       within its noise. A training that falls apart as a whole loses both.

    A collapse before the first validation has no best to be told by: robust accuracy below `chance`
    beside a single-step accuracy above a third, both beyond noise, is one as well.

    Once raised, it keeps silent until robust accuracy is level with the best again (the intervals
    touch).
    """

    def __init__(self, chance: float, remedy: str = ""):
        self.chance, self.remedy = chance, remedy
        self.best: list[int] | None = None  # images right after many steps, and after one
        self.collapsed = False

    def check(self, robust: int, single: int, images: int) -> Alarm | None:
        """Told of a validation: how many images are right after many steps, and after one; of
        always as many images."""
        if self.best is None or robust > self.best[0]:
            self.best = [robust, single]
        interval, now = wilson(self.best[0], images), wilson(robust, images)
        early = now[1] < self.chance and wilson(single, images)[0] > 1 / 3
        if now[1] >= interval[0] and not early:
            self.collapsed = False
            return None
        real, half = interval[0] > self.chance, robust <= self.best[0] / 2
        kept = min(0.75 * self.best[1] / images, wilson(self.best[1], images)[0])
        if self.collapsed or not (early or (real and half and single / images >= kept)):
            return None
        self.collapsed = True
        return self._alarm(robust / images, single / images, images)

    def _alarm(self, robust: float, single: float, images: int) -> Alarm:
        best_robust, best_single = (count / images for count in self.best or ())
        return Alarm(
            "catastrophic_overfitting",
            f"robust accuracy collapsed from {best_robust:.1%} to {robust:.1%}, accuracy after a"
            f" single step went from {best_single:.1%} to {single:.1%}: the network has learned to"
            " fool the step that it is trained on; the best checkpoint is from before"
            f"{self.remedy}",
            {"robust": robust, "single_step": single, "best_robust": best_robust,
             "best_single_step": best_single, "images": images},
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "collapsed": self.collapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.collapsed = state["best"], state["collapsed"]


def remedy_of(attack: Attack, regulariser: Regulariser) -> str:
    """What may keep a training by this attack, with this regulariser, from such a collapse, as the
    end of a sentence."""
    steps = attack.steps or 0
    ways = [f"attack.steps={steps + 1} or more" if steps else "attack=pgd attack.steps=2 or more"]
    if steps <= 1 and attack.reach <= attack.eps:
        ways.append("attack=n_fgsm")
    if attack.step_size is not None and attack.step_size > attack.eps:
        ways.append("attack.step=1*eps")
    if attack.norm == "linf" and isinstance(regulariser, Unregularised):
        ways.append("regulariser=gradalign")
    return f"; try {', or '.join(ways)}"


def chance_of(labels: Tensor, classes: int) -> float:
    """The accuracy of a constant answer: the share of the largest class, where labels are known."""
    known = labels[labels >= 0]
    return int(known.bincount().max()) / len(known) if len(known) else 1 / classes
