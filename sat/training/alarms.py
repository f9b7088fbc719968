"""Alarms of a training's set-up: what it will do may not be what was meant."""

from torch import nn

from sat.activations.surrogate import is_flat
from sat.rundir.result import Alarm
from sat.training.state import TrainState


def separate_batch_norm(state: TrainState) -> Alarm | None:
    """Several processes have batch norms of their own."""
    size = state.world.size
    if size == 1 or not state.local_statistics:
        return None
    message = (
        f"each of {size} processes normalises its own images of a batch: other weights than one"
        " process would train, under the same name"
    )
    return Alarm("separate_batch_norm", message, {"processes": size})


def no_curvature(state: TrainState, activation: nn.Module) -> Alarm | None:
    """A gradient is differentiated, in a network that bends nowhere."""
    if not (state.objective.second_order or state.regulariser.second_order):
        return None
    if not is_flat(activation):
        return None
    message = (
        f"{type(activation).__name__} has no second derivative: the gradient of the images moves"
        " the weights as if no activation ever switched; a smooth activation has one"
    )
    return Alarm("no_curvature", message, {"activation": type(activation).__name__})


def untrained_average(state: TrainState) -> Alarm | None:
    """The average that is measured is for the most part the weights of before the training."""
    averaging = state.plan.averaging
    if averaging is None or not averaging.decay or averaging.ramp:
        return None
    updates = state.plan.steps - max(averaging.start, 1)
    if (share := averaging.decay**updates) <= 0.5:
        return None
    begun = f"update {averaging.start}" if averaging.start else "the start"
    message = (
        f"schedule.ema={averaging.decay}: after the {updates} updates to come, {share:.0%} of the"
        f" average, which is what is measured, are still the weights of {begun}; write"
        f" {max(1 - 5 / max(updates, 1), 0):.3g} or less, schedule.ema_ramp=true, or train longer"
    )
    return Alarm("untrained_average", message, {"share": share, "updates": updates})
