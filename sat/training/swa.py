"""Statistics of the weights' average before it is measured, where they are estimated anew (SWA)."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from sat.activations.surrogate import phase, phased
from sat.data import indexed
from sat.data.sets import Split
from sat.rng import RowRng, seed_of
from sat.training.average import estimate_statistics
from sat.training.state import TrainState


def estimate(state: TrainState, train: Split) -> None:
    """Batch norm's statistics of the average become their means over one pass through the training
    images, not augmented, under the training's attack on it. Does nothing for another average than
    SWA, and before that begins; draws from no generator of the training."""
    average, world, plan = state.average, state.world, state.plan
    if average is None or average.averaging.decay or state.step <= average.averaging.copies:
        return
    own = len(train) // world.size
    size = min(own, max(2, plan.schedule.batch_size // (state.parts.count * world.size)))
    chosen = torch.arange(len(train))[world.own][: own // size * size]  # whole batches, of all
    net, attack = average.module, copy.deepcopy(state.attack)  # it may have a memory
    for buffer, now in zip(net.buffers(), state.model.buffers(), strict=True):
        buffer.copy_(now)  # after a fault in the validation there are those of its estimate

    def batches() -> Iterator[Tensor]:
        for number, (indices, x, y) in enumerate(indexed(train, chosen, size)):
            key = seed_of(plan.seed, "statistics", state.step, number)
            indices = indices.to(x.device)
            if y.ndim == 1:  # images that can't be read have no label
                x, y, indices = (rows[y >= 0] for rows in (x, y, indices))
            if len(x) > 1:
                with phase(phased(net), "inner"):
                    x_adv = attack(net, x, y, RowRng(key, indices), state.progress)
                yield x_adv

    estimate_statistics(net, batches(), world.mean_)
