"""One step of adversarial training, from a batch to new weights."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from sat.acceleration.recomputation import counted_once
from sat.activations.surrogate import phase
from sat.rng import RowRng
from sat.training.state import TrainState

Part = tuple[Tensor, Tensor, Tensor, RowRng]  # images, adversarial ones, labels, random numbers


def update(state: TrainState, x: Tensor, y: Tensor) -> None:
    """Moves `state` by a batch x [B, C, H, W] in [0, 1], y [B]: this process's rows, as
    `world.rows` gives them, less those that can't be read; with several views of an image one
    after the other.

    A step whose loss or gradient is not finite changes nothing and is counted.
    """
    state.begin(x)
    for _ in range(state.replays):
        state.graph(partial(advance, state), x, y)
    state.step += 1
    state.applying = False


def advance(state: TrainState, x: Tensor, y: Tensor) -> None:
    """The device's part of the step: what depends on the step's number it reads from memory, and
    nothing of it asks the host, unless attack or optimiser do, or it can't be told to skip."""
    state.statistics.keep()
    batch = []
    for images, labels, rng in state.parts.of(x, y, state.key):
        with phase(state.phased, "inner"):
            x_adv = state.attack(state.attack_model(images), images, labels, rng, state.progress)
        batch.append((images, x_adv.requires_grad_(bool(state.replayed)), labels, rng))

    state.perturbation.begin(partial(differentiate, state, batch), state.epoch)
    differentiate(state, batch)
    state.scaler.unscale_(state.optimizer)
    broken = state.broken()
    figures = state.metrics(state)
    if clip := state.plan.schedule.clip:
        nn.utils.clip_grad_norm_(state.parameters, clip)

    state.applying = True  # from here on a step is not begun again
    state.totals.add(figures, broken)
    state.apply(broken)
    state.perturbation.end(broken)
    state.statistics.put_back(broken)
    state.learners.learn(state.sums, broken)
    if state.average:
        state.average.update(state.model, state.number, broken, state.replicas.local)
    state.skips.count(broken)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def differentiate(state: TrainState, batch: Sequence[Part]) -> None:
    """Leaves the gradient of the whole loss, and its sums, of the batch of all processes."""
    state.sums.zero_()
    total = sum(len(images) for images, *_ in batch)
    for images, x_adv, labels, rng in batch:
        with phase(state.phased, "outer"):
            loss, logits = state.objective(state.net, images, x_adv, labels, state.epoch)
            error = state.regulariser(state.net, images, x_adv, labels, rng, state.epoch)
            loss = loss + state.regulariser.strength * error
            with counted_once(state.recomputed):
                state.scaler.scale(loss * state.weight(len(images), total)).backward()
        if state.replayed:
            state.replayed.ascend(images, x_adv.grad, rng)
        state.count(loss, error, logits, labels)
    state.replicas.reduce_(state.gradients, state.local_statistics, state.sums)
