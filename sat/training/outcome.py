"""All of `result.json` that is known before the test set is touched."""

from typing import Any

from sat.acceleration.auto import THREADS
from sat.config import Spec
from sat.data import Data
from sat.rundir.environment import environment
from sat.training.callbacks import Callbacks
from sat.training.state import TrainState

GROUPS = ("attack", "objective", "regulariser", "weight_attack")


def untrained(spec: Spec, data: Data, facts: dict[str, Any], model: Any) -> dict[str, Any]:
    """For weights of a file, of whose training nothing is known."""
    config = spec.config
    return {
        "name": spec.name,
        "hash": spec.hash,
        "identity": spec.identity,
        "configuration": spec.configuration,
        "status": "trained",
        "seed": spec.seed,
        "environment": environment(model.mean.device),
        "dataset": facts["dataset"],
        "test_images": len(data.test),
        "parameters": sum(p.numel() for p in model.parameters()) or None,  # None: out of sight
        "activation": {"option": config["choices"].get("activation"), **config["activation"],
                       "swapped": model.swap.swapped, "gates": list(model.swap.gates)},
        **dict.fromkeys(GROUPS),
        "choices": {"threads": THREADS},
        "steps": 0,
        "images": 0,
        "wall_seconds": 0.0,
        "images_per_second": None,
        "best": None,
        "last": {"step": 0, "epoch": 0.0},
        "alarms": [],
    }  # fmt: skip


def trained(callbacks: Callbacks, state: TrainState, status: str, **more: Any) -> dict[str, Any]:
    """For a training that has come to its end, or failed."""
    spec, config = callbacks.spec, callbacks.spec.config
    images = state.step * state.plan.schedule.batch_size
    options = {g: {"option": config["choices"].get(g), **config[g]} for g in GROUPS}
    return {
        **untrained(spec, callbacks.data, callbacks.facts, state.model),
        "status": status,
        **more,
        **options,
        "choices": state.plan.choices,
        "steps": state.step,
        "skipped_steps": state.skips.skipped,
        "multiply_adds": state.plan.image_cost,
        "images": images,
        "wall_seconds": round(callbacks.seconds, 3),
        "images_per_second": round(images / max(callbacks.training_seconds, 1e-9), 1),
        "best": callbacks.best.as_json(),
        "last": {"step": state.step, "epoch": state.plan.told_epoch(state.step)},
        "alarms": callbacks.alarms,
    }
