"""The identity of a run: what decides its trained weights, as eight hex digits and as a name."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sat.errors import Refused

SECTIONS = "dataset activation attack model schedule objective validation evaluation record".split()
# Keys that a dataset's option carries for other groups to follow, as ${dataset.eps}.
FOLLOWED = {"eps": float, "norm": Literal["linf", "l2"], "depth": int, "width": float}
# Keys of every model's option that say what it starts from: weights, and another normalisation.
START = {"weights": str | None, "mean": list[float] | None, "std": list[float] | None}
# What moves no number of a trained model is no part of its identity.
NOT_IDENTITY = {"dataset.root", "dataset.path", "dataset.workers", "dataset.download"}
NOT_IDENTITY |= {"dataset.skip_unreadable", "validation.batch_size", "schedule.shard"}
NOT_IDENTITY |= {"schedule.grad_checkpointing"}
# Keys that came later: left at these values they change no run's identity.
LATER = {"validation.limit": None, "schedule.sync_batch_norm": None}
LATER |= {f"model.{key}": None for key in START}
LATER |= dict.fromkeys(("schedule.fold", "schedule.fused", "schedule.tf32"), "auto")


def identity(config: Mapping[str, Any]) -> str:
    """Eight hex digits of everything that decides the trained weights, and of nothing else."""
    kept = {"seed": config["seed"], **trained_by(config)}
    if config["model"]["weights"]:
        kept["model"]["weights"] = _file_digest(config["model"]["weights"])
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def trained_by(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a config without what moves no number of a trained model, and without the
    seed; weights to start from by their place."""
    kept: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        if section in ("evaluation", "record"):
            continue
        kept[section] = {
            key: value
            for key, value in config[section].items()
            if f"{section}.{key}" not in NOT_IDENTITY
            and not ((name := f"{section}.{key}") in LATER and value == LATER[name])
            and not (section == "dataset" and key in FOLLOWED)
        }
    if config["schedule"]["decay"] != "step":
        kept["schedule"].pop("milestones", None)
    if (name := data_name(config["dataset"])) is not None:
        kept["dataset"]["name"] = name
    return kept


def weights_identity(config: Mapping[str, Any]) -> str:
    """The same for weights of a file: no training has a part in it."""
    untrained = {"attack": {}, "schedule": {"decay": "step"}, "objective": {}, "validation": {}}
    digest = _file_digest(config["evaluate"], "evaluate")
    return identity({**config, **untrained, "seed": digest})


def data_name(dataset: Mapping[str, Any]) -> str | None:
    """What a set of the user's own is called: its `name`, else the last part of its place."""
    if "name" not in dataset:
        return None
    if dataset["name"]:
        return dataset["name"]
    if path := dataset.get("path"):
        return Path(path).stem
    return Path(dataset.get("root") or "data").resolve().name


def _file_digest(weights: str, key: str = "model.weights") -> str:
    from sat.rundir.record import weights_file

    try:
        return hashlib.sha256(weights_file(weights).read_bytes()).hexdigest()
    except OSError as error:
        raise Refused(f"{key}={weights}: {error.strerror or error}") from error


def readable(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """The part of a run's name that people read: set, network, activation, attack, epochs, seed."""
    dataset = config["dataset"]
    name = data_name(dataset) or choices.get("dataset", "data")
    size = dataset.get("image_size")
    parts = [f"{name}-{size}px" if size else name, _network(config, choices)]
    parts.append(_activation(config["activation"], choices))
    if config.get("evaluate") is not None:
        parts += ["weights", Path(config["evaluate"]).stem]
    else:
        attack = choices.get("attack", "attack") + str(config["attack"].get("steps", ""))
        if (eps := config["attack"].get("eps")) not in (None, dataset["eps"]):
            attack += f"-eps{eps:g}"
        epochs, ema = f"{config['schedule']['epochs']:g}ep", config["schedule"]["ema"]
        parts += [attack, f"{epochs}-ema{ema:g}" if ema else epochs, f"s{config['seed']}"]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).lstrip("._-")[:120]


def _network(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """`resnet10`, `resnet50-32x4d`; a width where it is not the dataset's own."""
    model = config["model"]
    network = model.get("name") or choices.get("model", "model")
    network += str(model.get("depth") or model.get("variant") or "")
    if model.get("cardinality", 1) > 1:
        network += f"-{model['cardinality']}x{model['base_width']}d"
    if model.get("width") not in (None, config["dataset"]["width"]):
        network += f"-w{model['width']:g}"
    return network


def _activation(activation: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """`elu1.2`; a surrogate's name says whose gradient it takes, and where."""
    surrogate = "backward" in activation
    name = choices.get("activation", "activation")
    name = f"relu-{activation['backward']}" if surrogate else name
    if activation.get("alpha") is not None:
        name += f"{activation['alpha']:g}"
    if surrogate:
        phases = [phase for phase in ("inner", "outer") if activation[phase]]
        name += "-" + ("-".join(phases) or "nowhere")
    return name


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a verdict: of the batch size only AutoAttack's do."""
    free = () if settings.get("attack") == "AutoAttack" else ("batch_size",)
    return {key: value for key, value in settings.items() if key not in free}
