"""Checked objects from a composed config, and from the objects' arguments to a run's identity.

Every group's option names a class of this package (`_target_`) and its arguments. The class's
signature is the schema: `build` converts each value to its annotated type, refuses what does not
fit in one line, and constructs. Constructors check ranges and do no work.
"""

import hashlib
import importlib
import inspect
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sat import plugins
from sat.arguments import Written, check_unit
from sat.errors import Refused, printable, refusing
from sat.identity import (
    FOLLOWED,
    NEUTRAL,
    SECTIONS,
    START,
    Settings,
    class_name,
    defaults,
    digest,
    identity,
    readable,
    refuse_moved,
    settle,
)
from sat.rundir.files import regular

_PACKAGE = Path(__file__).resolve().parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
SCALARS = {"seed": int, "device": str, "evaluate": str | None}
BESIDE = ("sizes", "report")  # of experiments: what a sweep varies, and what is told of it
PATHS = "dataset.root dataset.path dataset.extra record.root model.weights model.pretrained".split()
PARTIAL = ("activation",)  # built once a layer, by the model


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
        if self.evaluate is not None:  # no training has a part in them
            told = {key: told[key] for key in ("dataset", "activation", "model")}
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
        content = getattr(self.parts["model"], "fingerprint", None)
        return content() if content else None

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
        """These parts, for the run that was begun under this name."""
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


@contextmanager
def followed() -> Iterator[None]:
    """Raises Refused, in one line, for a value of a composed config that follows what is none."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise Refused(one_line(error)) from error


@followed()
def resolve(cfg: DictConfig, under: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The composed config as plain data, interpolations resolved; what stands in `under` takes the
    place of what was composed, and interpolations follow it."""
    if under is not None:
        cfg = OmegaConf.create({**OmegaConf.to_container(cfg, resolve=False), **under})
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return {key: value for key, value in plain.items() if key not in BESIDE}


def check(plain: Mapping[str, Any]) -> Spec:
    """Builds every part of a resolved config and names the run; raises `Refused`."""
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
                beside["eps"] = _written(check_unit("eps", beside["eps"], beside["norm"]))
        if section == "model":
            beside = {k: convert(node.pop(k, None), START[k], f"model.{k}") for k in START}
            _check_normalisation(beside)
        parts[section], typed, told = _build(node, section, partial_=section in PARTIAL)
        config[section] = {**typed, **beside}
        if section == "model":  # the weights count by their content, wherever they lie
            scale = {key: beside[key] for key in ("mean", "std")}
            told = Settings({**told, **scale}, {*told.usual, *(k for k in scale if not scale[k])})
        settings[section] = told
    _check_dataset(parts["dataset"])
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


def _file_digest(weights: str, key: str = "model.weights") -> str:
    from sat.rundir.record import weights_file

    try:
        with open(weights_file(weights), "rb", opener=regular) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"{key}={weights}: {error.strerror or error}") from error


def _loggers(nodes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trackers by name, each a node of its own."""
    if not isinstance(nodes, Mapping | None):
        raise Refused(f"logger={_short(nodes)}: is a list of options, 'logger=[tensorboard]'")
    parts, typed = {}, {}
    for name, node in (nodes or {}).items():
        if not isinstance(node, Mapping):
            raise Refused(f"logger.{name}={_short(node)}: is no option; write 'logger=[{name}]'")
        parts[name], typed[name] = build(node, f"logger.{name}")
    return parts, typed


def _check_normalisation(model: Mapping[str, Any]) -> None:
    for key, least, lowest in (("mean", 0, "from 0"), ("std", 1e-4, "above 0 (from 1e-4)")):
        if (values := model[key]) is None:
            continue
        if not values or not all(least <= v <= 1 for v in values):
            text = f"model.{key}={_short(values)}: must be one value a channel, {lowest} to 1"
            raise Refused(f"{text}, as the images are; divide values for 0 to 255 by 255")


class Built(NamedTuple):
    """A part as an object, as config.yaml has it, and what of it decides numbers."""

    part: Any
    typed: Any
    settings: Any


def build(node: Any, path: str, partial_: bool = False) -> tuple[Any, dict[str, Any]]:
    """The object that a config node describes, and the node with every value in its type."""
    part, typed, _ = _build(node, path, partial_)
    return part, typed


def _build(node: Any, path: str, partial_: bool = False) -> Built:
    node = dict(node)
    cls: Any = target(node.pop("_target_", None), path)
    hints = get_type_hints(cls.__init__)
    allowed = [name for name in inspect.signature(cls).parameters if name != "inplace"]
    unknown(node, allowed, path + ".", cls)
    if inspect.isabstract(cls):
        raise Refused(
            f"{path}._target_={cls.__name__}: is what several options share, and no option"
        )
    usual, values = defaults(cls), {}
    for key in allowed:
        if key not in node and key not in usual:
            raise Refused(f"{path}.{key}: is missing; write {path}.{key}=...")
        values[key] = _value(node.get(key, usual.get(key)), hints[key], f"{path}.{key}")
    given = {key: value.part for key, value in values.items()}
    with refusing(f"{path}."):
        built = cls(**given)
    typed: dict[str, Any] = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
    told: dict[str, Any] = {}
    for key, value in values.items():
        typed[key], told[key] = value.typed, value.settings
        kept, size = getattr(built, key, None), float in get_args(hints[key])
        if isinstance(value.part, str) and isinstance(kept, float | str if size else float):
            typed[key] = told[key] = _written(kept)  # 8 is 8/255
    return Built(partial(cls, **given) if partial_ else built, typed, settle(cls, told))


def _written(size: float | str) -> float | str:
    """A number in 1/255, or a multiple, as it can be written down and read again."""
    return str(size) if isinstance(size, Written) else size


def _value(given: Any, hint: Any, where: str) -> Built:
    """A value in its type: a nested node is built, too."""
    part = _part(hint)
    if isinstance(given, Mapping) and "_target_" in given and part is not None:
        built = _build(given, where)
        if not isinstance(built.part, part):
            raise Refused(f"{where}._target_={given['_target_']}: must be {part.__name__}")
        word = _word(built.part, built.settings) if str in get_args(hint) else None
        return built if word is None else Built(word, word, word)
    if isinstance(given, Mapping) and get_origin(hint) is dict:
        pairs = {str(key): _value(value, get_args(hint)[1], f"{where}.{key}") for key, value in
                 given.items() if value is not None}  # fmt: skip
        return Built(*({key: value[k] for key, value in pairs.items()} for k in range(3)))
    typed = convert(given, hint, where)
    plain = list(typed) if isinstance(typed, tuple) else typed
    return Built(typed, plain, plain)


def _part(hint: Any) -> type | None:
    """The class of a node at a place of this type, if there may be one."""
    if hint is Any:
        return object
    classes = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((c for c in classes if inspect.isclass(c) and c not in _SCALARS), None)


def _word(built: Any, settings: Settings) -> str | None:
    """The word for a class of ours as it comes, where a word may stand for a node."""
    ours = type(built).__module__.startswith("sat.") and not settings.keys() - settings.usual - {
        "_target_"
    }
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(built).__name__).lower() if ours else None


def target(name: Any, path: str) -> Callable[..., Any]:
    """The class that `_target_` names: of this package, or of a package that the user allows (see
    `sat.plugins`); nothing else is ever imported."""
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise Refused(f"{path}._target_={_short(name)}: must name a class, package.module.Class")
    if not name.startswith("sat."):
        with refusing(f"{path}._target_={_short(name)}: "):
            return plugins.load(name)
    if not re.fullmatch(r"sat(\.[a-z_]+)+\.[A-Z]\w*", name):
        raise Refused(f"{path}._target_={_short(name)}: must name a class of this package, sat.*")
    place = targets(path).get(name.rpartition(".")[2])
    if place is None:
        group = path if _is_group(path) else "attack" if "." in path else path
        group = group.replace(".", "/")
        raise Refused(
            f"{path}._target_={_short(name)}: no option of {group} is this class; add a file with"
            f" it to conf/{group}"
        )
    module, _, attribute = place.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Refused(f"{path}._target_={_short(name)}: no such class ({error})") from error
    if not inspect.isclass(found) or not found.__module__.startswith("sat."):
        raise Refused(f"{path}._target_={_short(name)}: is not a class of this package")
    return found


def targets(path: str) -> dict[str, str]:
    """The classes that may stand at a place of the config, and where each is now: those that the
    files of its group name; within a group, attacks and whatever else its files have there. The
    config of a run may have been written when they were elsewhere."""
    group, _, nested = path.partition(".")
    if not nested or _is_group(path):
        return _named(path.replace(".", "/"), r"^_target_: *(\S+)")
    within = _named(group, r"^ +_target_: *(\S+)")
    return within if group == "logger" else within | _named("attack", r"^_target_: *(\S+)")


def _is_group(path: str) -> bool:
    """Whether options of their own may stand at a place: `schedule.decay`."""
    return (CONF / path.replace(".", "/")).is_dir()


def _names(settings: Mapping[str, Settings], choices: Mapping[str, str]) -> dict[str, str]:
    """What stands for each section's class in a run's identity: its option, of a user's own class
    with its package; and the class as well where no file of ours says that this option is it."""
    names = {}
    for group in settings.keys() & {key for key, option in choices.items() if option is not None}:
        option, name = choices[group], settings[group]["_target_"]
        package, colon, _ = name.rpartition(":")
        known = colon or _class_of(group, option) == name
        names[group] = f"{package}{colon}{option}" if known else f"{option}={name}"
    return names


@cache
def _class_of(group: str, option: str) -> str | None:
    """The class that an option's file names, or one of the options that it builds on."""
    if option not in options().get(group, ()):
        return None
    text = (CONF / group / f"{option}.yaml").read_text()
    if own := re.search(r"^_target_: *(\S+)", text, re.M):
        return class_name(own[1])
    bases = [base for base in yaml.safe_load(text)["defaults"] if isinstance(base, str)]
    return next(filter(None, (_class_of(group, base) for base in bases)), None)


@cache
def _named(group: str, pattern: str) -> dict[str, str]:
    texts = [file.read_text() for file in (CONF / group).glob("*.yaml")]
    names = [name for text in texts for name in re.findall(pattern, text, re.M)]
    return {name.rpartition(".")[2]: name for name in names}


def unknown(given: Mapping[str, Any], allowed: list[str], prefix: str, cls: Any = None) -> None:
    """Refuses a key that nothing reads, naming the nearest one."""
    for key in given:
        if key not in allowed:
            who = f" of {cls.__name__}" if cls else ""
            line = f"{prefix}{key}={_short(given[key])}: no such key{who}"
            raise Refused(f"{line}; {_instead(prefix + str(key), str(key), allowed)}")


# Keys of before, and where what they said is said now.
MOVED = {
    "attack.random_start": "attack.start",
    "schedule.label_smoothing": "objective.label_smoothing",
    "evaluation.doubts": "evaluation.masking_checks",
}


# What others call a key.
SYNONYMS = {
    "bs": "batch_size", "epoch": "epochs", "epsilon": "eps", "lr": "learning_rate",
    "n_epochs": "epochs", "num_epochs": "epochs", "num_steps": "steps", "opt": "optimizer",
    "step_size": "step", "wd": "weight_decay",
}  # fmt: skip


def meant(word: str) -> str | None:
    """The whole key that a word stands for: `schedule.epochs` of `epochs`, `attack.eps` of
    `epsilon` or `attack.epsilon`; two where two groups have it; None of a word that none has."""
    group, _, name = word.rpartition(".")
    name = SYNONYMS.get(name, name)
    if not group and name in (*options(), *SCALARS):
        return name
    places = [g for g in options() if g in SECTIONS and name in _keys(g) and group in ("", g)]
    places.sort(key=("schedule attack model activation".split() + places).index)
    return " or ".join(f"{place}.{name}" for place in places[:2]) or None


@cache
def _keys(group: str) -> frozenset[str]:
    """Every key that some option of a group has."""
    texts = [file.read_text() for file in (CONF / group).glob("*.yaml")]
    return frozenset(key for text in texts for key in re.findall(r"^(\w+):", text, re.M))


def _instead(key: str, word: str, allowed: list[str]) -> str:
    """Ends a line about a key that is not there: its new name, the key that was meant, or names
    like the word that nobody knows, and the options that have it."""
    if key in MOVED:
        return f"it is {MOVED[key]} now"
    if (whole := meant(key)) not in (None, key):
        return f"it is {whole}"
    group, _, name = key.partition(".")
    pattern = rf"^{re.escape(name)}:"
    files = sorted((CONF / group).glob("*.yaml")) if name and group in options() else []
    having = [file.stem for file in files if re.search(pattern, file.read_text(), re.M)]
    there = f"; options of {group} with {name}: {', '.join(having)}" if having else ""
    return nearest(word, allowed) + there


def nearest(word: str, allowed: list[str]) -> str:
    """`did you mean x? allowed: x, y, z`, for the end of a line."""
    close = get_close_matches(word, allowed, 1, 0.5)
    listed = "allowed: " + (", ".join(allowed) or "none")
    if close and len(listed) > 300:
        return f"did you mean {close[0]}? {len(allowed)} are allowed, see --help"
    return f"did you mean {close[0]}? {listed}" if close else listed


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` in the annotated type; 1 and 1.0 become the same; raises `Refused`."""
    converted = _convert(value, hint)
    if converted is _MISFIT:
        raise Refused(f"{where}={_short(value)}: must be {_describe(hint)}")
    for number in converted if isinstance(converted, list | tuple) else [converted]:
        if isinstance(number, int | float) and not _is_computed_with(number):
            raise Refused(
                f"{where}={_short(value)}: no device computes with it: whole numbers end at 9.2e18,"
                " others go from 1.2e-38 to 3.4e38"
            )
    return converted


def _is_computed_with(number: float) -> bool:
    """Whether int64 or float32 has the number, and not as a 0 or an infinity."""
    if isinstance(number, int):
        return abs(number) < 2**63
    return number == 0 or 1.2e-38 <= abs(number) <= 3.4e38


_MISFIT = object()


def _convert(value: Any, hint: Any) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        tried = (_convert(value, option) for option in options)
        return next((fit for fit in tried if fit is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if any(value == o and type(value) is type(o) for o in options) else _MISFIT
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return _MISFIT
        items = [_convert(item, options[0]) for item in value]
        return _MISFIT if _MISFIT in items else origin(items)
    return _SCALARS.get(hint, lambda _: _MISFIT)(value)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    bool: lambda v: v if isinstance(v, bool) else _MISFIT,
    int: lambda v: int(v) if _number(v) and math.isfinite(v) and v == int(v) else _MISFIT,
    float: lambda v: float(v) if _number(v) else _MISFIT,
    str: lambda v: v if isinstance(v, str) else _MISFIT,
    type(None): lambda v: None if v is None else _MISFIT,
}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word",
          type(None): "null"}  # fmt: skip


def _describe(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if float in options:  # a word would be one with its unit
            options = tuple(option for option in options if option is not str)
        return " or ".join(_describe(option) for option in options)
    if origin is Literal:
        return " or ".join(map(str, options))
    if origin in (list, tuple):
        return f"a list, each {_describe(options[0])}"
    return _NAMES.get(hint, "a group of options")


def _short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def refuse_lists(words: Sequence[str]) -> None:
    """Raises Refused for several options of a group where a run has one: Hydra would lay the last
    over those before, whose keys stay."""
    for word in words:
        key, _, value = word.partition("=")
        group = re.split("[/@]", key.lstrip("+~"))[0]
        if group in options() and group != "logger" and value.lstrip().startswith("["):
            if group == "experiment":
                raise Refused(f"{word}: are several; name one experiment a command line")
            several = ",".join(re.findall(r"[\w.-]+", value)) or "one,another"
            raise Refused(
                f"{word}: a run has one option of {group}; several are a sweep: -m {key}={several}"
            )


def composed(words: Sequence[str]) -> Spec:
    """The checked run of a command line, as a single job; raises `Refused`."""
    return check(resolve(compose(words)[0]))


def compose(words: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of a command line, as a single job, and the option of each group; raises
    `Refused`."""
    import hydra
    from hydra.errors import HydraException

    refuse_lists(words)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise Refused(one_line(error)) from error
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg, choices


@cache
def options() -> dict[str, list[str]]:
    """The groups of the config folder and the names of their options."""
    groups: dict[str, list[str]] = {}
    for file in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, []).append(file.stem)
    return groups


def is_hydras(error: BaseException) -> bool:
    """Whether Hydra, or a package of its own, raised it: the command line or a file of the user's
    is wrong, and not this program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    raised = {place.partition(".")[0], type(error).__module__.partition(".")[0]}
    return bool(raised & {"hydra", "hydra_plugins", "omegaconf", "antlr4", "yaml"})


def one_line(error: BaseException) -> str:
    """What Hydra or OmegaConf say over many lines, as one that names the nearest valid name."""
    text = str(error).strip() or str(error.__cause__ or "").strip()
    if isinstance(error, RecursionError):
        return "a value, or a file of --config-dir, is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"a file of --config-dir is no UTF-8 ({text})"
    if type(error) in (AssertionError, AttributeError, KeyError, TypeError):  # it stumbled
        return f"Hydra can't compose this ({type(error).__name__}: {' '.join(text.split())[:300]})"
    groups = options()
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]*)'", text):
        group, name = found.groups()
        known = groups.get(group) or re.findall(r"^\t(\S+)$", text, re.M)
        return f"{group}={name}: no such option; {nearest(name, known)}"
    if found := re.search(r"Could not override '([^']*)'", text):
        key = found[1]
        if "No match in the defaults" in text:
            return f"{key}: no such group; {nearest(key, list(groups))}"
        parent = getattr(getattr(error, "__cause__", None), "parent_node", None)
        above = parent._get_full_key(None).split(".") if parent is not None else []
        siblings = [name for name in parent or () if name not in ("_target_", "hydra")]
        if above in ([], [""]):  # a word of the first level is what nobody knows
            above, siblings = [], [*(siblings or [*SECTIONS, *SCALARS]), "recipe", "experiment"]
        part = key.split(".")[len(above) :] or [key]  # nothing is left: a key of a mapping
        return f"{key}: no such key; {_instead(key, part[0], siblings)}"
    if found := re.search(r"Ambiguous value for argument '([^']*)'", text):
        word = found[1]
        return f"{word}: several values are a sweep; write -m {word} (a list is key=[a,b])"
    if found := re.search(r"Error parsing override '([^'=]*)'", text):
        return f"{found[1]}: is no override; write group=option or key=value"
    if found := re.search(r"Interpolation key '(sizes[\w.]*)' not found", text):
        there = ", ".join(groups.get("sizes", []))
        return (
            f"{found[1]}: the experiment needs it, and the sizes of this dataset lack it; add it"
            f" to conf/sizes/<dataset>.yaml; there are: {there}"
        )
    if found := re.search(r"Interpolation key '([\w.]+)' not found\s+full_key: ([\w.]+)", text):
        return f"{found[2]}: follows {found[1]}, which is not there; give it a value"
    if found := re.search(r"raised while resolving interpolation: (.*)\s+full_key: (\S+)", text):
        told, key = found[1].strip('"'), found[2]
        return f"{key}: {told}; set what it follows, or give {key} a value"
    if "LexerNoViableAlt" in text or "OverrideParse" in type(error).__name__:
        given = next((line for line in text.splitlines() if "=" in line), text.splitlines()[0])
        given = getattr(error, "override", None) or given.split(": ")[-1].strip()
        given = printable(given)
        key, _, value = given.partition("=")
        return (
            f"{given}: can't be read; quote the value for Hydra and the shell: '{key}=\"{value}\"'"
        )
    if "no viable alternative at input" in text:
        return f"a value of a file can't be read ({text.splitlines()[0]}); quote it"
    if "Config group override must be" in text:  # Hydra does not say which
        listed = ", ".join(groups)
        return f"a group can't be null or a number; write group=option; groups: {listed}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("full_key:", "object_type", "See http")
    line = " ".join(line for line in lines if not line.startswith(noise)) or type(error).__name__
    if (key := re.search(r"^\s*full_key: (\S+)", text, re.M)) and key[1] not in line:
        line = f"{key[1]}: {line}"
    return line if len(line) <= 400 else line[:397] + "..."  # some quote the whole config
