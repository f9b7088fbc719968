"""Puts images through attacks: one verdict for each, whatever its batch and its process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sat.attacks.outcomes import AttackOutcomes, Ensemble, First
from sat.data import indexed
from sat.distributed import World
from sat.rng import RowRng, seed_of
from sat.rundir.result import ClassSpread
from sat.statistics import wilson


def measure(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor, Tensor]], ensemble: Ensemble,
            seed: int, outcomes: AttackOutcomes) -> AttackOutcomes:  # fmt: skip
    """Puts every image of `batches`, which yields (indices [B], x [B, C, H, W], y [B]), through the
    ensemble's attacks; `outcomes` has a place for each, and says what is known already.

    An image that is wrong when clean is not attacked. An image's noise depends on its index alone,
    not on its batch. The model's mode is kept.
    """
    training, done = model.training, 0
    model.eval()
    try:
        for indices, x, y in batches:
            part = outcomes.part(slice(done, done + len(x)))
            done += len(x)
            part.survey(model, x, y)
            ensemble.run(model, x, y, draws_of(seed, indices, x), part)
    finally:
        model.train(training)
    return outcomes


Batches = Iterator[tuple[Tensor, Tensor, Tensor]]


def measure_together(
    world: World, model: nn.Module, images: Callable[[slice], Batches], ensemble: Ensemble,
    seed: int, outcomes: AttackOutcomes,
) -> AttackOutcomes:  # fmt: skip
    """`measure`, where each process takes its share of the `images` at some places: each pass of
    the ensemble by all of them, before the next begins."""
    own = share(world, ensemble)
    for each in ensemble.passes(outcomes):
        if not world.first:
            outcomes.seconds.zero_()  # they are added up
        measure(model, images(own), each, seed, outcomes.part(own))
        joined(world, outcomes, own)
    return outcomes


def draws_of(seed: int, indices: Tensor, x: Tensor) -> RowRng:
    """The random numbers of images x [B, C, H, W], which have these indices [B]."""
    return RowRng(seed_of(seed, "evaluation", 0), indices.to(x.device))


def for_all(attack: Any, split: Any, chosen: Tensor, seed: int) -> Any:
    """The attack for parts of the images `chosen` [N] of a split, in whatever process."""

    def first() -> First:
        ((indices, x, _),) = indexed(split, chosen[:8], 8)
        return x, draws_of(seed, indices, x)

    return attack.of_set(first) if isinstance(attack, Ensemble) else attack


def share(world: World, ensemble: Ensemble) -> slice:
    """The places of the images that this process measures; the first one takes all where a verdict
    depends on the batch."""
    if ensemble.by_batch:
        return slice(None) if world.first else slice(0)
    return world.own


def joined(world: World, outcomes: AttackOutcomes, own: slice) -> AttackOutcomes:
    """A measurement of several processes, each with its `own` places decided in its `outcomes`;
    their seconds add up."""
    kept = (outcomes.fell[own], outcomes.passed[own], outcomes.tied[own], outcomes.seconds)
    parts = world.gather((own, *kept))
    for places, fell, passed, tied, _ in parts:
        outcomes.fell[places], outcomes.passed[places] = fell, passed
        outcomes.tied[places] = tied
    outcomes.seconds = sum(seconds for *_, seconds in parts)
    return outcomes


def accuracy(flags: Tensor) -> dict[str, Any]:
    """`{"accuracy", "ci95", "images"}` of one flag per image: see `sat.rundir.result.Accuracy`."""
    right, images = int(flags.sum()), len(flags)
    return {
        "accuracy": right / max(1, images),
        "ci95": list(wilson(right, images)),
        "images": images,
    }


def by_class(flags: Tensor, labels: Tensor, names: Sequence[str]) -> ClassSpread | None:
    """How unequal the accuracies of the classes are, of one flag and one label per image [N]; None
    where a label is unknown (-1), or there are no images."""
    if not len(labels) or labels.min() < 0:
        return None
    images = torch.bincount(labels, minlength=len(names))
    right = torch.bincount(labels[flags], minlength=len(names))
    among = images.nonzero()[:, 0]
    shares = right[among].double() / images[among]
    worst, best = int(shares.argmin()), int(shares.argmax())
    return ClassSpread(
        worst=names[among[worst]], lowest=float(shares[worst]),
        best=names[among[best]], highest=float(shares[best]),
        deviation=float(shares.std(correction=0)),
    )  # fmt: skip
