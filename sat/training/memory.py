"""Memory that runs out in a step: more parts of its batch, or what to do about it."""

import torch
from torch import Tensor

from sat.errors import Fault, is_out_of_memory
from sat.training.state import TrainState
from sat.training.step import update


def attempt(state: TrainState, x: Tensor, y: Tensor) -> None:
    """One step, in twice as many parts from here on where memory runs out and may. An exception
    before its update leaves `state` as the step before has left it."""
    generators, state.updating = state.generators(), True
    while True:
        try:
            update(state, x, y)
            break
        except (Exception, SystemExit) as error:
            if state.applying:
                raise
            state.put_back(generators)
            if not (is_out_of_memory(error) and may_split(state)):
                raise
        state.split(2 * state.parts.count)
        said = f"step {state.step}: out of memory; batches come in {state.parts.count} parts from"
        state.news.append(f"{said} here on (schedule.accumulate=auto)")
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
    state.updating = False


def may_split(state: TrainState) -> bool:
    """Whether memory that runs out splits batches further; a part has two images at least. Of
    several processes the others would not know."""
    schedule, alone = state.plan.schedule, state.world.size == 1
    return alone and schedule.accumulate == "auto" and schedule.batch_size >= 4 * state.parts.count


def starved(batch: int, accumulate: int) -> Fault:
    """What to do when an update of `batch` images in `accumulate` parts finds no memory."""
    if batch < 4 * accumulate:  # batch norm needs two images a part
        advice = (
            f"schedule.accumulate={accumulate} leaves no smaller parts of {batch} images: try"
            " schedule.precision=bf16, a smaller model or smaller images"
        )
    else:
        parts = 2 * accumulate
        advice = (
            f"schedule.accumulate={parts} keeps the batch of {batch} images and computes"
            f" {-(-batch // parts)} at a time (a run of its own; double it until it fits, or write"
            " schedule.accumulate=auto)"
        )
    return Fault(f"out of memory in an update of {batch} images; {advice}")
