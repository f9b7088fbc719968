"""How `best` is chosen: clean and robust accuracy of the held-out images."""

from contextlib import nullcontext
from dataclasses import dataclass

from torch import nn

from sat.acceleration.precision import float32
from sat.attacks.base import Attack
from sat.attacks.outcomes import AttackOutcomes, Ensemble
from sat.attacks.series import ensemble_of
from sat.data import chunks
from sat.data.choice import split_part
from sat.data.sets import Split
from sat.distributed import World
from sat.evaluation.measure import for_all, measure_together
from sat.evaluation.settings import Validation
from sat.rng import seed_of
from sat.training.overfitting import Probe


@dataclass(frozen=True)
class Validated:
    """What a validation has found."""

    clean: float
    robust: float
    diagnostics: dict[str, float]  # by tag, see Probe
    counts: tuple[int, int, int] | None  # right after many steps and after one; of how many


def validate(
    model: nn.Module,
    split: Split,
    given: Validation,
    training_attack: Attack,
    seed: int,
    world: World,
) -> Validated:
    """Measures `model` on the held-out images, of which each process takes its share. Changes
    nothing of it, and draws from no generator of the training."""
    chosen = split.readable(split_part(split, given.limit))
    seed = seed_of(seed, "validation")
    attack, probe = for_all(given.attack, split, chosen, seed), None
    if attack.eps:
        attack = probe = Probe(attack, training_attack, chosen)
    ensemble = ensemble_of(attack, 1, given.batch_size)
    images = lambda own: chunks(split, chosen[own], given.batch_size)  # noqa: E731
    outcomes = AttackOutcomes.new(ensemble.names, len(chosen))
    # An ensemble decides in float32, and its points are decided in it too.
    exact = isinstance(given.attack, Ensemble)
    with float32(model) if exact else nullcontext():
        flags = measure_together(world, model, images, ensemble, seed, outcomes)
    if probe:
        probe.join(world)
    clean, robust = (float(f.float().mean()) for f in (flags.clean, flags.robust))
    numbers = probe.numbers(flags) if probe else {}
    return Validated(clean, robust, numbers, probe.counts(flags) if probe else None)
