"""One step of adversarial training, from a batch to new weights."""

from torch import Tensor, nn

from sat.acceleration.recomputation import counted_once
from sat.activations.surrogate import phase
from sat.rng import RowRng
from sat.training.state import TrainState


def update(state: TrainState, x: Tensor, y: Tensor) -> None:
    """Moves `state` by a batch x [B, C, H, W] in [0, 1], y [B]: this process's rows, as
    `world.rows` gives them, less those that can't be read.

    A step whose loss or gradient is not finite changes nothing and is counted.
    """
    state.begin()
    advance(state, x, y)
    state.step += 1
    state.applying = False


def advance(state: TrainState, x: Tensor, y: Tensor) -> None:
    """The device's part of the step: what depends on the step's number it reads from memory, and
    nothing of it asks the host, unless attack or optimiser do, or it can't be told to skip."""
    state.sums.zero_()
    state.statistics.keep()
    for rows, part in state.parts(len(x)):
        images, labels, rng = x[part], y[part], RowRng(state.key, rows)

        with phase(state.phased, "inner"):
            x_adv = state.attack(state.attack_model(x), images, labels, rng, state.progress)

        with phase(state.phased, "outer"):
            loss, logits = state.objective(state.net, images, x_adv, labels)
            with counted_once(state.recomputed):
                state.scaler.scale(loss * state.weight(len(rows), len(x))).backward()
        state.count(loss, logits, labels)

    state.replicas.reduce_(state.gradients, state.local_statistics, state.sums)
    state.scaler.unscale_(state.optimizer)
    broken = state.broken()
    figures = state.metrics(state)
    if clip := state.plan.schedule.clip:
        nn.utils.clip_grad_norm_(state.parameters, clip)

    state.applying = True  # from here on a step is not begun again
    state.totals.add(figures, broken)
    state.apply(broken)
    state.statistics.put_back(broken)
    if state.average:
        state.average.update(state.model, state.number, broken, state.replicas.local)
    state.skips.count(broken)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
