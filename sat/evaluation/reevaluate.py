"""`evaluate=<run directory or file>`: a trained model, measured by another evaluation."""

import os
from pathlib import Path
from typing import Any

from sat import config
from sat.config import SCALARS, Spec, key_of
from sat.errors import Refused
from sat.evaluation import external
from sat.identity import NEUTRAL, SECTIONS, class_name, data_name, silent
from sat.models.files import read_tensors
from sat.models.weights import without_weights
from sat.rundir.record import CHECKPOINTS
from sat.rundir.result import RunResult
from sat.rundir.untrusted import read_sections

CHANGEABLE = {"evaluate", "device", "evaluation", "record.keep", "record.root"}


def reevaluated(cfg: Any, choices: dict[str, str], overrides: list[str]) -> Spec:
    """The spec of what `cfg.evaluate` names, with the evaluation that the command line asks for.

    A run directory, or a checkpoint in it, brings its own config: of the command line it takes the
    evaluation, and where the images are. Any other file holds weights of the model and for the
    dataset that the command line describes, or a whole network (see `sat.evaluation.external`).
    """
    if external.is_network(str(cfg.evaluate)):
        return external.of_network(cfg, choices, overrides)
    place = Path(os.path.expanduser(str(cfg.evaluate)))
    directory, which = place, None
    if place.suffix == ".pt" and place.parent.name == "checkpoints":
        directory, which = place.parent.parent, place.stem
    if not (directory / "config.yaml").is_file():
        if place.is_file():
            return of_file(cfg, choices, overrides)
        what = "holds no config.yaml, so it is no run" if place.is_dir() else "no such file or run"
        what = "no pattern is followed (-m evaluate=A,B)" if "*" in str(place) else what
        raise Refused(f"evaluate={place}: {what}; name a run directory or a file of weights")
    own = read_config(directory)
    if own is None:
        if which is not None and place.is_file():
            return of_file(cfg, choices, overrides)
        raise Refused(f"{directory / 'config.yaml'}: is no config of a run of this program")
    if class_name(str(own["model"].get("_target_"))) == "Given":
        before = own.get("evaluate")
        again = f"evaluate={before}" if before else "sat.train with the same words and network"
        raise Refused(
            f"evaluate={place}: does not hold its network, which came from elsewhere; begin as"
            f" before, and what you ask for is added to this run: {again}"
        )
    places = places_of(own)
    result = RunResult.read(directory)
    if result is None or result.status != "finished":
        if which is None:
            raise Refused(
                f"evaluate={place}: the run is not finished; the command that began it goes on"
                f" with it, or name a checkpoint: evaluate={place}/checkpoints/last.pt"
            )
        refuse_changes(overrides, place, {"record.root", *places})
        return config.check(composed(cfg, own, choices, overrides))
    refuse_changes(overrides, place, places)
    root = directory.resolve().parent
    if (
        any(key_of(o) == "record.root" for o in overrides)
        and Path(cfg.record.root).resolve() != root
    ):
        raise Refused(
            f"record.root={cfg.record.root}: the run to evaluate lives in {root}; drop it"
        )
    plain = composed(cfg, own, choices, overrides)
    plain["evaluate"] = None
    plain["record"]["root"] = str(directory.parent)
    if which is not None:
        if which not in CHECKPOINTS or not place.is_file():
            raise Refused(f"evaluate={place}: no such checkpoint; a run has last.pt and best.pt")
        if "evaluation.checkpoints" in map(key_of, overrides):
            raise Refused(f"evaluate={place}: names a checkpoint; drop evaluation.checkpoints")
        plain["evaluation"]["checkpoints"] = [which]
    return config.check(plain).called(directory.name, result.hash)


def of_file(cfg: Any, choices: dict[str, str], overrides: list[str]) -> Spec:
    """The spec of weights that say nothing of their network. Raises Refused where the command line
    leaves open what can't be seen in the weights."""
    external.refuse_training(overrides, cfg.evaluate)
    try:
        read_tensors(os.path.expanduser(str(cfg.evaluate)))
    except ValueError as error:
        raise Refused(f"evaluate={cfg.evaluate}: {error}") from None
    if "activation" not in map(key_of, overrides):
        raise Refused(
            f"evaluate={cfg.evaluate}: no weights tell the activation they were trained with; write"
            " activation=relu, or another (and model=..., dataset=...)"
        )
    return config.check({**config.resolve(cfg), "choices": choices})


def read_config(directory: Path) -> dict[str, Any] | None:
    """The config.yaml of a run; None where it is none of this program's."""
    own = read_sections(directory / "config.yaml", [*SECTIONS, "choices"])
    return own if own.keys() >= {*SECTIONS, "seed"} - NEUTRAL.keys() else None


def places_of(own: dict[str, Any]) -> set[str]:
    """The keys of a run's dataset that move no number: where the images are, and who reads them."""
    told = silent(config.target(own["dataset"].get("_target_"), "dataset"))
    return {f"dataset.{key}" for key, moves in told.items() if moves is False}


def composed(cfg: Any, own: dict[str, Any], choices: dict[str, str], overrides: list[str]):
    """The run's config with the command line's evaluation, which follows the run's dataset."""
    under = {key: own[key] for key in [*SECTIONS, *SCALARS] if key in own}
    under |= {"published": own.get("published")}  # of the recipe that it follows
    under |= {"model": without_weights(own["model"])}  # they are in the run's checkpoints
    for key in ("evaluation", "record", "device", "evaluate"):
        under.pop(key, None)
    for key in map(key_of, overrides):
        section, _, name = key.partition(".")
        if key in places_of(own):
            under[section] = {**under[section], name: cfg[section][name]}
    if "name" in under["dataset"]:  # it may be that of the folder where the images were
        under["dataset"] = {**under["dataset"], "name": data_name(own["dataset"])}
    chosen = {**NEUTRAL, **own.get("choices", {}), "evaluation": choices["evaluation"]}
    return {**config.resolve(cfg, under), "choices": chosen}


def refuse_changes(overrides: list[str], place: Path, more: set[str]) -> None:
    """What the run itself says can't be said anew."""
    for override in overrides:
        key = key_of(override)
        if key in CHANGEABLE | more or key.startswith("evaluation.") or "@evaluation." in key:
            continue
        hint = ""
        if key in ("dataset.eps", "attack.eps", "dataset.norm", "attack.norm"):
            hint = "; for another eps or norm write evaluation.attacks.<name>.eps=..."
        raise Refused(
            f"{override}: can't be changed with evaluate={place}, a run of its own config{hint}"
        )
