"""Whether a checkpoint is one that this training can go on from: anybody may have written it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.auto import DTYPES
from sat.config import Spec
from sat.data import Data
from sat.data.fingerprint import facts_of, same_facts
from sat.models.weights import shape_of
from sat.objectives import Method
from sat.rundir import checkpoint
from sat.rundir.untrusted import misfit
from sat.training.learning import Stateful
from sat.training.optimizer import build_optimizer, load_optimizer
from sat.training.schedule import Schedule

_NUMBER, _NONE = int | float, type(None)
FACTS = {"hash": str, "dataset": {"name": str, "*": str | int}, "shape?": dict}
_BEST = {
    "step": int, "epoch": _NUMBER, "clean": "share", "robust": "share",
    "score": ["share", "share"], "model": {"*": Tensor}, "of?": str,
}  # fmt: skip
_CALLBACKS = {
    "best": (_NONE, _BEST), "overfitting": {"best": (_NONE, [int, int]), "collapsed": bool},
    "alarms": [{"name": str, "message": str, "epoch": _NUMBER}],
    "seconds": [_NUMBER, _NUMBER], "lengths": {"*": "count"}, "owed?": bool,
}  # fmt: skip
STATE = {
    "facts": FACTS, "step": int, "generators": [{"rng": Tensor, "rng_cuda?": Tensor}],
    "model": {"*": Tensor}, "average?": {"*": Tensor}, "averaged?": Tensor,
    "scaler": {"*": _NUMBER},
    "optimizer": {"state": {"*": dict}, "param_groups": [dict]},
    "metrics": {"tags": [str], "values": Tensor}, "skips": {"counts": Tensor},
    "attack?": dict, "objective?": dict, "regulariser?": dict, "weight_attack?": dict,
    "choices": {"precision": str, "channels_last": bool, "compile": (bool, str), "tf32": bool,
                "threads": "threads", "accumulate": int, "fold": bool, "fused": bool,
                "graph?": bool},
    "callbacks": _CALLBACKS,
}  # fmt: skip
# What timm's optimisers of these names keep of each parameter, in its shape.
_KEPT = {
    "sgd": {"momentum_buffer"}, "momentum": {"momentum_buffer"}, "adam": {"exp_avg", "exp_avg_sq"},
    "adamw": {"exp_avg", "exp_avg_sq"},
}  # fmt: skip


def facts_for(spec: Spec, data: Data) -> dict[str, Any]:
    """What a checkpoint says of the run that it is of."""
    return {"hash": spec.hash, "dataset": facts_of(data), "shape": shape_of(data)}


def check_state(
    state: Mapping[str, Any], facts: dict[str, Any], model: nn.Module, schedule: Schedule
) -> None:
    """Raises ValueError, which says why, for what a training of `model` can't go on from, and
    Refused for a state of another config or of other images."""
    wrong = misfit(state, {"facts": FACTS}, "")
    if wrong is None:
        same_facts(state["facts"], facts)
        wrong = misfit(state, STATE, "")
        wrong = wrong or _out_of_range(state, schedule, facts["dataset"]["train"])
    if wrong:
        raise ValueError(wrong)
    if ("average" in state) != schedule.averages or ("averaged" in state) != schedule.averages:
        raise ValueError("average is not as schedule.ema and schedule.swa_start have it")
    best = state["callbacks"]["best"] or {}
    kept = {"model": state["model"], "average": state.get("average"), "best": best.get("model")}
    for name, weights in kept.items():
        if weights is not None:
            _check_weights(name, weights, model)
    _check_optimizer(state["optimizer"], model, schedule)
    try:
        for each in state["generators"]:
            torch.Generator().set_state(each["rng"])
    except (RuntimeError, TypeError):
        raise ValueError("generators are no states of generators") from None


def check_memories(state: Mapping[str, Any], method: Method) -> None:
    """Raises ValueError for what attack, objective and the rest can't remember."""
    for name in ("attack", "objective", "regulariser", "weight_attack"):
        if not isinstance(part := getattr(method, name), Stateful):
            continue
        try:
            copy.deepcopy(part).load_state_dict(state[name])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{name} is not what this one remembers ({error!r:.80})") from None


def facts_in(path: Path) -> dict[str, Any] | None:
    """The facts of the run that wrote a checkpoint; None where there is none to be read."""
    try:
        state = checkpoint.read(path)
    except (OSError, ValueError):
        return None
    return None if misfit(state, {"facts": FACTS}, "") else state["facts"]


def _out_of_range(state: Mapping[str, Any], schedule: Schedule, images: int) -> str | None:
    steps = schedule.steps(images)
    if not 0 <= state["step"] <= steps:
        return f"step is {state['step']} of {steps}"
    if state["choices"]["precision"] not in DTYPES:
        return f"choices.precision is {state['choices']['precision']!r:.40}"
    if state["choices"]["compile"] not in (True, False, "reduce-overhead"):
        return f"choices.compile is {state['choices']['compile']!r:.40}"
    if not 1 <= (parts := state["choices"]["accumulate"]) <= schedule.batch_size // 2:
        return f"choices.accumulate is {parts}"
    counts, values = state["skips"]["counts"], state["metrics"]["values"]
    if counts.shape != (5,) or counts.dtype != torch.int64:
        return "skips are no five counts"
    if (done := state.get("averaged")) is not None and (done.ndim or not 0 <= done < torch.inf):
        return "averaged is no count of updates"
    if values.shape != (2 * len(state["metrics"]["tags"]),):
        return "metrics are no sums and counts"
    return None


def _check_weights(name: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    if weights.keys() != own.keys():
        raise ValueError(f"{name} has the weights of another network")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise ValueError(f"{name}.{key} has the shape {list(value.shape)}")
        if value.is_floating_point() != own[key].is_floating_point():
            raise ValueError(f"{name}.{key} is of {value.dtype}")
    for key, _ in model.named_parameters():
        if not weights[key].isfinite().all():
            raise ValueError(f"{name}.{key} is not finite")


def _check_optimizer(state: Mapping[str, Any], model: nn.Module, schedule: Schedule) -> None:
    """What an optimiser would take and stumble over in its next step."""
    own, kept = build_optimizer(model, schedule), _KEPT.get(schedule.optimizer, set())
    # others count in them; what is set before each step, and what is chosen anew
    free = {"lr", "fused", "capturable", *["momentum"] * schedule.cycles_momentum}
    fixed = {"params"} | ({*own.defaults} - free if kept else set())
    groups = own.state_dict()["param_groups"]
    try:
        pairs = [*zip(state["param_groups"], groups, strict=True)]
        same = all(there[key] == here[key] for there, here in pairs for key in fixed)
        load_optimizer(own, dict(state))
    except Exception as error:  # each has checks of its own, or none
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"optimizer does not fit ({reason})") from None
    if not same:
        raise ValueError("optimizer has other settings or parameters")
    for parameter, held in own.state.items() if kept else ():
        shapes = [getattr(held.get(key), "shape", None) for key in kept]
        if shapes != [parameter.shape] * len(kept):
            raise ValueError("optimizer does not fit the weights")
