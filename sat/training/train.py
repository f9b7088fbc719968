"""One training as a run has it: its parts set up, its last checkpoint found, its loop run."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat.acceleration.auto import THREADS, choose, depthwise, multiply_adds, settle
from sat.acceleration.compilation import forget
from sat.acceleration.recomputation import recompute
from sat.config import Spec
from sat.data import Data, Loader, some_images
from sat.data.fingerprint import same_facts
from sat.data.samplers import Epochs
from sat.distributed import World, shared
from sat.errors import Diverged, refusing
from sat.loggers import screen
from sat.models import Classifier, weights
from sat.models.classifier import check_sight
from sat.models.memory import room
from sat.objectives import Method
from sat.rundir import checkpoint
from sat.rundir.record import Run
from sat.rundir.result import RunResult
from sat.training import outcome, preflight
from sat.training.callbacks import Callbacks
from sat.training.loop import fit
from sat.training.optimizer import build_optimizer
from sat.training.plan import Plan
from sat.training.resume import check_memories, check_state, facts_for, facts_in
from sat.training.state import TrainState
from sat.training.summary import summary

log = logging.getLogger("sat")


def set_up(spec: Spec, device: torch.device, world: World) -> tuple[Data, Classifier]:
    """The images and the network, with everything that would refuse them later."""
    attack = spec.attack
    if spec.evaluate is None:
        attack = preflight.check_training(spec).attack
        preflight.check_processes(spec, device.type == "cuda", world.size)
    preflight.check_packages(spec.evaluation)
    screen.stage("reading the images")
    with refusing("dataset."), world.in_turn():
        data = spec.dataset(device, spec.seed)
    preflight.check_sizes(spec, len(data.held_out), len(data.classes), data.image_size)
    if spec.evaluate is None:
        preflight.check_apart(spec.dataset)
        preflight.check_batch(spec.schedule, data, room(device) * world.size)
        loader = loader_of(spec, data)
        preflight.check_sampler(loader)
        loader.check(world.size)
        preflight.check_augment(loader, spec.choices)
    screen.stage("loading timm and building the network")
    with refusing("model."):
        copies = 1 if spec.evaluate or spec.schedule.shard else 3  # weights, gradients, momentum
        model = weights.build_model(spec, weights.shape_of(data), device, copies)
        check_sight(model, data.image_size, trains=spec.evaluate is None)
    own = spec.evaluate is not None and spec.brought is not None
    if spec.evaluate is not None and not own:
        weights.load_evaluated(model, spec, data.image_size)
    with refusing("schedule."):
        build_optimizer(model, spec.schedule)
        if spec.schedule.grad_checkpointing:
            recompute(model)
    checkpoints = Path(spec.record.root) / spec.name / "checkpoints"
    begun = checkpoints.exists() and not spec.record.fresh
    if world.first and own:
        preflight.check_network(model, spec.evaluation, *some_images(data.test, 32))
    elif world.first and not begun:
        preflight.check_corruptions(spec.evaluation, data)
        screen.stage("trying network and attack on 32 images")
        images, labels = some_images(data.train, 32)
        preflight.preflight(model, attack, images, labels)
        if spec.evaluate is None:
            preflight.check_memory(spec.schedule, model, images[:1], room(device) * world.size)
        measured = {"validation": spec.validation.attack, **spec.evaluation.attacks}
        preflight.warn_of_threat_models(spec.attack, measured)
        preflight.warn_of_short_steps(spec.attack)
    return data, model


def train(spec: Spec, run: Run, model: Classifier, data: Data, world: World) -> dict[str, Any]:
    """Trains from the last checkpoint, or from the start, to the end of the schedule."""

    screen.stage("preparing the training")
    callbacks = Callbacks(spec, run, data, world)
    kept = last_checkpoint(spec, run, model, callbacks.facts, world)
    plan = plan_of(spec, model, data, kept, world)
    model = shared(model, spec.schedule.sync_batch_norm, spec.attack, world)
    state = TrainState(model, Method.of(spec), plan, world, spec.metrics)
    callbacks.resume(state, kept)
    rows, loader = torch.cat(state.parts.rows).cpu(), loader_of(spec, data)

    def stream(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return loader.stream(rows, step, plan.steps, state.graph_of_batches())

    text = summary(spec, callbacks.facts, state)
    screen.stage("compiling the step" if plan.choices["compile"] else "taking the first step")
    log.info("%s\n%s", run.directory, text, extra=screen.ONCE)
    try:
        with callbacks.open(state, text, stream):
            fit(state, stream, callbacks)
            callbacks.check_taken(state)
    except Diverged as error:
        failed = outcome.trained(callbacks, state, "failed", error=str(error))
        run.write_result(RunResult.from_json(failed))
        raise
    finally:
        state.graph.forget()  # with the memory of its step, which nothing else could take
    return outcome.trained(callbacks, state, "trained")


def loader_of(spec: Spec, data: Data) -> Loader:
    """What gives the training its batches. A sampler of one set makes room for a mixture of two."""
    sampler = spec.sampler
    if data.mixture is not None and isinstance(sampler, Epochs):
        sampler = data.mixture
    size, views = spec.schedule.batch_size, spec.objective.views
    return Loader(data, spec.augment, sampler, size, spec.seed, views)


def last_checkpoint(
    spec: Spec, run: Run, model: Classifier, facts: dict[str, Any], world: World
) -> dict[str, Any] | None:
    """Where this training stood when it was stopped; None where it has not begun."""
    method = Method.of(spec)

    def check(state: dict[str, Any]) -> None:
        check_state(state, facts, model, spec.schedule)
        check_memories(state, method)

    return world.on_rank0(lambda: checkpoint.newest(run.checkpoints, check))


def plan_of(
    spec: Spec, model: Classifier, data: Data, kept: dict[str, Any] | None, world: World
) -> Plan:
    """How the training unfolds, with what `auto` stands for: as its checkpoint has it, or chosen
    now; of which this process takes on what holds for all of it."""

    schedule, device, images = spec.schedule, next(model.parameters()).device, len(data.train)
    cost = multiply_adds(model, (data.channels, data.image_size, data.image_size))
    chosen = replace(schedule, compile=False) if Method.of(spec).second_order else schedule
    new = lambda: choose(chosen, device, images, cost, depthwise(model))  # noqa: E731
    choices = world.on_rank0(lambda: kept["choices"] if kept else new())
    if kept and len(kept["generators"]) != world.size:
        choices = {**choices, "threads": THREADS}  # these have another share of the cores
    if kept and (device.type != "cuda" or world.size > 1 or schedule.graph is False):
        choices = {**choices, "graph": False}  # begun by one process on a GPU, which this is not
    if schedule.shard:
        choices = {**choices, "fold": False, "fused": False}  # begun with whole weights
    settle(choices)
    if choices["compile"]:
        forget()
    every = spec.validation.every if len(data.held_out) else None
    return Plan(schedule, images, spec.seed, choices, every, cost)


def take_over(spec: Spec, run: Run, model: Classifier, data: Data, world: World) -> dict[str, Any]:
    """Makes a run of no steps, whose checkpoint holds the weights of a file."""
    facts, last = facts_for(spec, data), run.checkpoints / "last.pt"
    if world.first and (before := facts_in(last)) is not None:  # of a measurement that was killed
        same_facts(before, facts)
    state = {"step": 0, "model": model.state_dict(), "facts": facts}
    if world.first:
        checkpoint.save(last, state)
    run.rewind({})
    return outcome.untrained(spec, data, facts, model)
