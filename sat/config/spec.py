"""A run as its config describes it: its parts as objects, its name, and what of it counts."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sat.arguments import check_unit, complete
from sat.config.groups import CONF, SCALARS, class_of, short, unknown
from sat.config.plugins import blaming
from sat.config.schema import build, convert, written
from sat.errors import Refused, refusing
from sat.identity import (
    FOLLOWED,
    NEUTRAL,
    SECTIONS,
    START,
    Settings,
    digest,
    identity,
    readable,
    refuse_moved,
)
from sat.loggers.base import Logger
from sat.rundir.files import regular

BESIDE = ("sizes", "report")  # of experiments: what a sweep varies, and what is told of it
PATHS = "dataset.root dataset.path dataset.extra record.root model.weights model.pretrained".split()
PARTIAL = ("activation",)  # built once a layer, by the model


class ModelOption:
    """What goes without saying of an option of `model`."""

    def fingerprint(self) -> str | None:
        """What tells a network of the user's own, which no option here makes, from any other."""
        return None


@dataclass(frozen=True)
class Spec:
    """A checked run: its parts as objects, the plain config they came from, and what of it counts.

    Its name and hash are made when they are first asked for, of the images and the weights that it
    names; reading those may raise Refused.
    """

    seed: int
    device: str
    parts: Mapping[str, Any]
    choices: Mapping[str, str]
    config: Mapping[str, Any]
    settings: Mapping[str, Settings]
    given: tuple[str, str] | None = None

    def __getattr__(self, part: str) -> Any:
        if part in (*SECTIONS, "logger"):
            return self.parts[part]
        raise AttributeError(part)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the trained weights, by difference from the defaults."""
        told = identity(self.settings, _names(self.settings, self.choices))
        if (images := self.fingerprint) is not None:
            told["dataset"]["fingerprint"] = images
        if self.evaluate is not None:  # no training has a part in them; attacks draw by the seed
            told = {key: told[key] for key in ("dataset", "activation", "model")}
            told |= {"seed": self.seed} if self.seed else {}  # at 0 names are as they were
        if (brought := self.brought) is not None:
            told["model"]["fingerprint"] = brought
        elif self.evaluate is not None:
            return {"weights": _file_digest(self.evaluate, "evaluate"), **told}
        if self.weights:
            told["model"]["weights"] = _file_digest(self.weights)
        if self.evaluate is not None:
            return told
        if isinstance(pretrained := self.config["model"].get("pretrained"), str):
            told["model"]["pretrained"] = _file_digest(pretrained, "model.pretrained")
        if self.config["dataset"].get("extra"):
            with refusing("dataset."):
                told["dataset"]["extra"] = self.parts["dataset"].extra_fingerprint()
        return {"seed": self.seed, **told}

    @cached_property
    def fingerprint(self) -> str | None:
        """The checksum of the images, where they are read from a place."""
        with refusing("dataset."):
            return self.parts["dataset"].fingerprint()

    @property
    def brought(self) -> str | None:
        """What tells a network of the user's own, which no option here makes, from any other."""
        return self.parts["model"].fingerprint()

    def bringing(self, **parts: Any) -> "Spec":
        """This run with parts that a config can't hold: a network, images."""
        return replace(self, parts={**self.parts, **parts})

    @property
    def hash(self) -> str:
        return self.given[1] if self.given else digest(self.identity)

    @property
    def name(self) -> str:
        if self.given:
            return self.given[0]
        return f"{self.title}-{self.hash}"

    @property
    def title(self) -> str:
        """The part of the name that people read; to know it, nothing is read."""
        return readable(self.config, self.choices)

    def called(self, name: str, hash: str) -> "Spec":
        """The parts, for the run that was begun under this name."""
        return replace(self, given=(name, hash))

    @property
    def weights(self) -> str | None:
        """Where the model starts from: a run directory or a file of weights."""
        return self.config["model"].get("weights")

    @property
    def evaluate(self) -> str | None:
        """A file of weights that are measured as they are; a run directory has become a spec."""
        return self.config["evaluate"]

    @property
    def recipe(self) -> str | None:
        """The recipe that the run follows."""
        return self.choices.get("recipe")

    @property
    def experiment(self) -> str | None:
        """The experiment under which the run is asked for."""
        return self.choices.get("experiment")

    @property
    def configuration(self) -> str:
        """A name that runs share which differ in the seed alone."""
        title = readable({**self.config, "seed": 0}, self.choices).removesuffix("-s0")
        seedless = {key: value for key, value in self.identity.items() if key != "seed"}
        return f"{title}-{digest(seedless)}"

    @property
    def compared(self) -> dict[str, Any]:
        """The config without the keys that move no number."""
        told = {
            section: {k: v for k, v in self.config[section].items() if k in self.settings[section]}
            for section in SECTIONS
        }
        told["model"]["weights"] = self.weights
        told = {**self.config, **told}
        told.pop("published", None)
        return told

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """The `mean` and `std` given for the model, one value a channel; without, the dataset's."""
        given = {key: self.config["model"].get(key) for key in ("mean", "std")}
        return {key: values for key, values in given.items() if values is not None}

    def asked_again(self) -> "Spec":
        """This run, not to be begun afresh a second time."""
        record = replace(self.parts["record"], fresh=False)
        return replace(self, parts={**self.parts, "record": record})

    def refuse_moved(self, stored: Mapping[str, Any], directory: Path) -> None:
        """Raises Refused where the run in `directory`, of this hash, was begun with another value
        of some key, as its config.yaml tells: a default has moved since. Of weights that are
        measured as they are no training's keys are asked."""
        if self.given is None:
            asked = self.settings if self.evaluate is None else self.settings.keys() & self.identity
            refuse_moved({key: self.settings[key] for key in asked}, stored, directory)

    def yaml(self) -> str:
        """The resolved config as text, which `check` accepts again."""
        return yaml.safe_dump(dict(self.config), sort_keys=False)


def _names(settings: Mapping[str, Settings], choices: Mapping[str, str]) -> dict[str, str]:
    """What stands for each section's class in a run's identity: its option, of a user's own class
    with its package; and the class as well where no file of ours says that this option is it."""
    names = {}
    for group in settings.keys() & {key for key, option in choices.items() if option is not None}:
        option, name = choices[group], settings[group]["_target_"]
        package, colon, _ = name.rpartition(":")
        known = colon or class_of(group, option) == name
        names[group] = f"{package}{colon}{option}" if known else f"{option}={name}"
    return names


def _file_digest(weights: str, key: str = "model.weights") -> str:
    from sat.rundir.record import weights_file

    try:
        with open(weights_file(weights), "rb", opener=regular) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"{key}={weights}: {error.strerror or error}") from error


@blaming()
def check(plain: Mapping[str, Any]) -> Spec:
    """Builds every part of a resolved config and names the run; raises Refused, and Fault for what
    fails in a class of the user's."""
    plain = dict(plain)
    choices = dict(plain.pop("choices", {}))
    for group in NEUTRAL.keys() - plain.keys():  # a run from before there was the group
        choices[group] = NEUTRAL[group]
        plain[group] = yaml.safe_load((CONF / group / f"{NEUTRAL[group]}.yaml").read_text())
    unknown(plain, [*SECTIONS, *SCALARS, *BESIDE, "logger", "published"], "")
    config: dict[str, Any] = {"choices": choices}
    for key, hint in SCALARS.items():
        config[key] = convert(plain.get(key), hint, key)
    _check_named(plain)
    config["evaluate"] = config["evaluate"] and os.path.expanduser(config["evaluate"])
    if not 0 <= config["seed"] < 2**31:
        raise Refused(f"seed={config['seed']}: must be from 0 to {2**31 - 1}")
    parts, settings = {}, {}
    for section in SECTIONS:
        if not isinstance(plain.get(section), Mapping):
            raise Refused(f"{section}={plain.get(section)}: is a group; name one of its options")
        node, beside = dict(plain[section]), {}
        for key in node.keys() & {path.split(".")[1] for path in PATHS if path.startswith(section)}:
            node[key] = os.path.expanduser(node[key]) if isinstance(node[key], str) else node[key]
        if section == "dataset":
            beside = {k: convert(node.pop(k, None), FOLLOWED[k], f"dataset.{k}") for k in FOLLOWED}
            with refusing("dataset."):
                beside["eps"] = written(check_unit("eps", beside["eps"], beside["norm"]))
        if section == "model":
            beside = {k: convert(node.pop(k, None), START[k], f"model.{k}") for k in START}
            _check_normalisation(beside)
        parts[section], typed, told = build(node, section, partial_=section in PARTIAL)
        config[section] = {**typed, **beside}
        if section == "model":  # the weights count by their content, wherever they lie
            scale = {key: beside[key] for key in ("mean", "std")}
            told = Settings({**told, **scale}, {*told.usual, *(k for k in scale if not scale[k])})
        settings[section] = told
    _check_dataset(parts["dataset"])
    complete(parts["model"], ModelOption)
    parts["logger"], config["logger"] = _loggers(plain.get("logger"))
    if plain.get("published") is not None:  # a recipe's, for the end of the run
        config["published"] = plain["published"]
    return Spec(config["seed"], config["device"], parts, choices, config, settings)


def _check_named(plain: Mapping[str, Any]) -> None:
    """Refuses a place or a name that is empty, as a variable of the shell is that nobody set."""
    for key in (*PATHS, "model.name", "device", "evaluate"):
        section, _, name = key.partition(".")
        node = plain.get(section)
        if (node.get(name) if name and isinstance(node, Mapping) else node) == "":
            raise Refused(f"{key}=: is empty; name one, or leave it out")


def _check_dataset(dataset: Any) -> None:
    if not callable(getattr(dataset, "fingerprint", None)):
        name = type(dataset).__name__
        raise Refused(
            f"dataset._target_={name}: does not tell its images from others; give it a method"
            " fingerprint() that returns a checksum of them, or None where they are always the same"
        )


def _loggers(nodes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trackers by name, each a node of its own."""
    if not isinstance(nodes, Mapping | None):
        raise Refused(f"logger={short(nodes)}: is a list of options, 'logger=[tensorboard]'")
    parts, typed = {}, {}
    for name, node in (nodes or {}).items():
        if not isinstance(node, Mapping):
            raise Refused(f"logger.{name}={short(node)}: is no option; write 'logger=[{name}]'")
        tracker, typed[name], _ = build(node, f"logger.{name}")
        complete(tracker, Logger)
        if not isinstance(own := tracker.files, tuple | list) or not all(map(_is_pattern, own)):
            text = "must be a tuple of patterns, such as ('points-*.txt',), of the run directory"
            raise Refused(f"logger.{name}: files={short(own)}: {text}")
        parts[name] = tracker
    return parts, typed


def _is_pattern(text: Any) -> bool:
    return isinstance(text, str) and text[:1] not in ("", "/")


def _check_normalisation(model: Mapping[str, Any]) -> None:
    for key, least, lowest in (("mean", 0, "from 0"), ("std", 1e-4, "above 0 (from 1e-4)")):
        if (values := model[key]) is None:
            continue
        if not values or not all(least <= v <= 1 for v in values):
            text = f"model.{key}={short(values)}: must be one value a channel, {lowest} to 1"
            raise Refused(f"{text}, as the images are; divide values for 0 to 255 by 255")
