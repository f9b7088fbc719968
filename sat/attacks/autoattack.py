"""AutoAttack (Croce and Hein 2020) as its authors publish it, in the package `pyautoattack`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sat.arguments import Size, check_ball, check_choices
from sat.attacks.ball import Norm
from sat.attacks.base import Attack, ball_of, frozen
from sat.attacks.determinism import check_repeats
from sat.attacks.outcomes import AttackOutcomes, Ensemble
from sat.rng import RowRng

log = logging.getLogger("sat")
COST = 1190  # input gradients an image, as measured
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),  # with the gradient averaged over 20 draws of the model
}


@dataclass(frozen=True)
class AutoAttack(Ensemble, Attack):
    """The ensemble `version`, worst case per image; `custom` runs the package's `attacks` with its
    default restarts.

    Batches are those of one call of the package for all images (of each GiB of images, where they
    are more), so the verdicts are its own; the package seeds torch for each of them. What its
    checks warn of is logged once. `eps` is in 1/255.
    """

    eps: Size = 8.0
    norm: Norm = "linf"
    version: Literal["standard", "plus", "rand", "custom"] = "standard"
    attacks: tuple[str, ...] | None = None
    batch_size: int = 250

    by_batch = True  # its random numbers are those of a batch, so that one process takes all

    batch_norm: ClassVar[str] = "eval"
    loss: ClassVar[str] = "ce"

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        if (self.version == "custom") != (self.attacks is not None):
            raise ValueError(
                f"version={self.version}: "
                + (
                    "needs the names of attacks, attacks=[apgd-ce,square]"
                    if self.version == "custom"
                    else f"has its own attacks; drop attacks={list(self.attacks or ())}, or write"
                    " version=custom"
                )
            )
        if self.attacks is not None:
            object.__setattr__(self, "attacks", tuple(self.attacks))
            known = VERSIONS["plus"]
            if not self.attacks or set(self.attacks) - set(known):
                raise ValueError(f"attacks={list(self.attacks)}: choose from {', '.join(known)}")

    @property
    def names(self) -> tuple[str, ...]:
        return self.attacks or VERSIONS[self.version]

    def gradients(self, classes: int) -> int:
        return COST

    @property
    def fewest_classes(self) -> int:
        """How many logits its losses look at."""
        return 4 if "apgd-t" in self.names else 3 if "apgd-dlr" in self.names else 2

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError where the package's Square can't begin: its tiles in L2 and L1 are of a
        fifth of the height, may be none or leave the image; those of one pixel are cut."""
        tile = height // 5
        if self.norm == "linf" or "square" not in self.names or tile == 1 or tile > width:
            return
        first = (height - 5 * tile) // 2
        if not tile or any(first + n // tile * tile > n for n in (height, width)):
            raise ValueError(
                f"norm={self.norm}: Square of the package pyautoattack can't begin on images of"
                f" {height}x{width} pixels; take attack='strong' (evaluation=strong)"
            )

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises. A batch is decided as a whole: one
        that was begun and not ended is begun again."""
        ball = ball_of(self)
        with frozen(model, "eval"), torch.random.fork_rng(_gpus()), _warnings_logged():
            if self.version != "rand":
                check_repeats(model, x[:8])
            package = self._package(model, x, rng.number)
            for k, name in enumerate(self.names):
                package.attacks_to_run = [name]
                with outcomes.attack(k) as left:
                    undecided = set(left.tolist())
                    for images in outcomes.entered(k).split(self.batch_size):
                        if undecided.isdisjoint(images.tolist()):
                            continue
                        rows = images.to(x.device)
                        points, found = package.run_standard_evaluation(
                            x[rows], y[rows], batch_size=self.batch_size
                        )
                        # the package takes a point of NaN for a fall
                        stand = (found == y[rows]) | ~ball.holds(points, x[rows])
                        outcomes.decide(images, stand, points)

    def _package(self, model: nn.Module, x: Tensor, seed: int) -> Any:
        from pyautoattack import AutoAttack as Package

        self.check_size(*x.shape[2:])
        package = Package(
            model, attacks=list(self.attacks) if self.attacks else None, device=x.device,
            eps=self.eps / 255, norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[self.norm],
            seed=seed, version=self.version,
        )  # fmt: skip
        package.verbose = False
        with torch.no_grad():
            others = model(x[:1]).shape[1] - 1
        for part in (package.apgd_targeted, package.fab):
            part.n_target_classes = min(part.n_target_classes, others)
        return package

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [N, C, H, W] in [0, 1] and y [N] -> adversarial images where the model is fooled."""
        with frozen(model, "eval"), torch.random.fork_rng(_gpus()), _warnings_logged():
            package = self._package(model, x, rng.number if rng else 0)
            return package.run_standard_evaluation(x, y, batch_size=self.batch_size)[0]


def _gpus() -> list[int]:
    """All of them: the package seeds all."""
    return list(range(torch.cuda.device_count()))


class _Once(logging.Handler):
    """Passes each message on to this program's log once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.said:
            self.said.add(text)
            log.warning("autoattack: %s", text)


@contextmanager
def _warnings_logged() -> Iterator[None]:
    theirs, handler = logging.getLogger("auto-attack"), _Once()
    before, theirs.propagate = theirs.propagate, False
    theirs.addHandler(handler)
    try:
        yield
    finally:
        theirs.removeHandler(handler)
        theirs.propagate = before
