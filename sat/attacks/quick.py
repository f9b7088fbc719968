"""PGD as an evaluation searches it: the same ascent, which ends where an image has fallen.

By its letter PGD-k takes k steps with every image, in float32, and its last iterate decides. Here
the ascent, from the same start, looks at each of its iterates in the precision that is fast; what
may have fallen is put to the network itself, in float32, and so is the last iterate of all others.
An image that fell leaves, and the next takes its place. So no image stands but by the letter's own
question, on a point that differs by rounding. On a GPU that would wait for its launches a step is
one graph, while the batch is full.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from sat.acceleration.auto import GRAPH_PAYS_BELOW, GRAPH_PAYS_FROM, bf16_pays
from sat.acceleration.graph import Graph
from sat.attacks.ball import Ball
from sat.attacks.base import ball_of, frozen
from sat.attacks.determinism import check_repeats
from sat.attacks.losses import LOSSES, ce
from sat.attacks.network import Network
from sat.attacks.outcomes import AttackOutcomes, Ensemble, First
from sat.attacks.pgd import PGD
from sat.attacks.pool import Pool
from sat.identity import settings_of
from sat.rng import RowRng, StepKey

log = logging.getLogger("sat")

# The options of PGD that the search heeds; one that has another at work goes by the letter.
HEEDED = {"eps", "steps", "step", "norm", "start", "noise", "clean_start", "batch_norm", "loss"}


def is_quick(attack: Any) -> TypeGuard[PGD]:
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
    first: Tensor | None = field(default=None, compare=False)  # of the set; else those of each call

    def of_set(self, first: Callable[[], First]) -> "Quick":
        return replace(self, first=first()[0][:8])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"restart {k + 1}" for k in range(self.restarts))

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises."""
        few = x[:8] if self.first is None else self.first.to(x.device)
        check_repeats(model, few)
        with frozen(model, "eval"):
            precision = torch.bfloat16 if bf16_pays(x.device.type) else None
            network = Network(model, precision, few, ball_of(self.attack)).of_set(few)
            steps = len(x) * self.restarts * self.attack.steps / self.batch_size
            on = graph_pays(network, few, self.batch_size, steps)
            graph = Graph(on, StepKey(network.device), log.info, "a step of the search")
            search = PGDSearch(self.attack, graph)
            targets = torch.zeros(len(x), 1, dtype=torch.long)  # an ascent without a target
            for k in range(self.restarts):
                own = (rng.child("series", k) if k else rng).to("cpu")
                pool = Pool(
                    x, y, targets, own, outcomes.leave, self.batch_size, float("inf"), spread=1
                )
                with outcomes.attack(k) as images:
                    pool.run(search, network, images.tolist())


def graph_pays(network: Network, x: Tensor, batch: int, steps: float) -> bool:
    """Whether so many steps on images like x, a batch each, are faster as a graph: on a GPU that
    waits for their launches."""
    if network.device.type != "cuda" or steps < GRAPH_PAYS_FROM:
        return False
    return network.multiply_adds(x[:1]) * batch < GRAPH_PAYS_BELOW


@dataclass(frozen=True)
class PGDSearch:
    """PGD's ascent as a pool drives it; its steps go through `graph`."""

    attack: PGD
    graph: Graph
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
        given = (state[key] for key in ("point", "iteration", "x", "y"))
        moved = self.graph(partial(self._moved, network), *given)
        state["point"], state["iteration"], points, may_fall, last = moved
        return points, may_fall, last

    def _moved(
        self, network: Network, here: Tensor, iteration: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        """The next iterates and their numbers, and what `step` returns; asks the host nothing."""
        logits, _, gradient = network.gradient(here, self._loss(y))
        length, iteration = self.attack.step_size / 255, iteration + 1
        ahead = self.ball.project(here + length * self.ball.steepest(gradient), x)
        last = iteration == self.attack.steps
        points = torch.where(last.view(-1, 1, 1, 1), ahead, here)
        return ahead, iteration, points, network.may_fall(logits, y) | last, last

    def _loss(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        loss = LOSSES.get(self.attack.loss, ce)
        return lambda logits: loss(logits, y)

    def hopeless(self, state: dict[str, Tensor], patience: float) -> Tensor:
        return torch.zeros_like(state["y"], dtype=torch.bool)
