"""PGD as an evaluation searches it: the same ascent, which ends where an image has fallen.

By its letter PGD-k takes k steps with every image, in float32, and its last iterate decides. Here
the ascent, from the same start, looks at each of its iterates in the precision that is fast; what
may have fallen is put to the network itself, in float32, and so is the last iterate of all others.
An image that fell leaves, and the next takes its place. So no image stands but by the letter's own
question, on a point that differs by rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.auto import bf16_pays
from sat.attacks.ball import Ball
from sat.attacks.base import ball_of, frozen
from sat.attacks.losses import LOSSES, ce
from sat.attacks.network import Network
from sat.attacks.outcomes import AttackOutcomes, Ensemble, check_repeats
from sat.attacks.pgd import PGD
from sat.attacks.pool import Pool
from sat.identity import settings_of
from sat.rng import RowRng

# The options of PGD that the search heeds; one that has another at work goes by the letter.
HEEDED = {"eps", "steps", "step", "norm", "start", "noise", "clean_start", "batch_norm", "loss"}


def is_quick(attack: Any) -> bool:
    """Whether an attack is an ascent that can be searched so: its points are in the ball, and it
    compares with nothing that the network says of the clean images, as that of TRADES does."""
    if type(attack) is not PGD or attack.loss == "kl" or attack.start in ("uncut", "normal"):
        return False
    own = settings_of(attack)
    return own.keys() - own.usual <= HEEDED | {"_target_"}


@dataclass(frozen=True)
class Quick(Ensemble):
    """So many `restarts` of an attack that `is_quick`, each with random numbers of its own: those
    that `sat.attacks.series.Series` gives it."""

    attack: PGD
    restarts: int
    batch_size: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"restart {k + 1}" for k in range(self.restarts))

    def run(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes):
        """Decides as `sat.attacks.outcomes.Ensemble` promises."""
        few, search = x[:8], PGDSearch(self.attack)
        check_repeats(model, few)
        with frozen(model, "eval"):
            precision = torch.bfloat16 if bf16_pays(x.device.type) else None
            network = Network(model, precision, few, search.ball)
            targets = torch.zeros(len(x), 1, dtype=torch.long)  # an ascent without a target
            for k in range(self.restarts):
                own = (rng.child("series", k) if k else rng).to("cpu")
                pool = Pool(
                    x, y, targets, own, outcomes.leave, self.batch_size, float("inf"), spread=1
                )
                with outcomes.attack(k) as images:
                    pool.run(search, network, images.tolist())


@dataclass(frozen=True)
class PGDSearch:
    """PGD's ascent as a pool drives it."""

    attack: PGD
    rounds = 1

    @property
    def iterations(self) -> int:
        return self.attack.steps

    @property
    def ball(self) -> Ball:
        return ball_of(self.attack)

    def begin(self, x: Tensor, y: Tensor, target: Tensor, rng: RowRng) -> dict[str, Tensor]:
        short = torch.full(y.shape, torch.inf, device=x.device)  # no round ends early
        return {"point": self.attack.begin(x, rng), "iteration": torch.zeros_like(y),
                "short": short}  # fmt: skip

    def step(self, network: Network, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Advances `state`; the iterate before it may have fallen, the last one has to be asked."""
        here, y, length = state["point"], state["y"], self.attack.step_size / 255
        logits, _, gradient = network.gradient(here, self._loss(y))
        ahead = self.ball.project(here + length * self.ball.steepest(gradient), state["x"])
        state["point"], state["iteration"] = ahead, state["iteration"] + 1
        last = state["iteration"] == self.attack.steps
        points = torch.where(last.view(-1, 1, 1, 1), ahead, here)
        return points, network.may_fall(logits, y) | last, last

    def _loss(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        loss = LOSSES.get(self.attack.loss, ce)
        return lambda logits: loss(logits, y)

    def hopeless(self, state: dict[str, Tensor], patience: float) -> Tensor:
        return torch.zeros_like(state["y"], dtype=torch.bool)
