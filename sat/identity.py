"""The identity of a run: what decides its trained weights, as eight hex digits and as a name.

It is told by difference: of every part the name of its option and the values that differ from the
class's defaults, of images and weights that are read from a place a checksum. So an option that is
added with a default renames no run, and code may move.

A field that moves no number says so where it stands: `field(metadata={"identity": False})`, or, of
a class that is no dataclass, in its attribute `no_identity = ("name", ...)`. One that moves numbers
only beside certain others gives a function of all values: `metadata={"identity": takes_it}`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sat.errors import Refused

SECTIONS = "dataset sampler augment activation attack model schedule objective".split()
SECTIONS += "regulariser weight_attack validation evaluation metrics record".split()
UNTRAINED = ("evaluation", "metrics", "record")  # what these say moves no weight
# Groups that came after the first runs: at this option, as it comes, they add nothing to a hash.
NEUTRAL = {
    "sampler": "epochs", "augment": "standard", "regulariser": "none", "weight_attack": "none",
}  # fmt: skip
# Keys that a dataset's option carries for other groups to follow, as ${dataset.eps}.
FOLLOWED = {"eps": float | str, "norm": Literal["linf", "l2", "l1"], "depth": int, "width": float}
# Keys of every model's option that say what it starts from: weights, and another normalisation.
START = {"weights": str | None, "mean": list[float] | None, "std": list[float] | None}


# what decides a number ------------------------------------------------------------------------


class Settings(dict):
    """What decides the numbers of one part: `_target_`, the name of its class, and each value by
    its key, those of parts inside as Settings; `usual` are the keys left at their default."""

    def __init__(self, values: Mapping[str, Any], usual: Iterable[str] = ()):
        super().__init__(values)
        self.usual = frozenset(usual)

    def difference(self) -> dict[str, Any]:
        """The values that differ from the defaults, and the names of classes."""
        return {key: _difference(value) for key, value in self.items() if key not in self.usual}

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """The keys, dotted, in which what was settled `before` differs.

        A key that is new counts where its value is not the default; so an added option changes
        nothing. A default that has moved is a change.
        """
        return [key for key, *_ in _compared(self, before, strict=True)]

    def moved(self, before: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """The keys that both have and that differ, with their values before and now."""
        return list(_compared(self, before))


def _difference(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.difference()
    if isinstance(value, dict):
        return {key: _difference(inner) for key, inner in value.items()}
    return [_difference(inner) for inner in value] if isinstance(value, list) else value


def _compared(
    now: Mapping[str, Any], before: Mapping[str, Any], strict: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """Keys with their values before and now; if `strict` also those that only one of both has, but
    for new ones at their default."""
    usual = getattr(now, "usual", ())
    for key in [*now, *(key for key in before if key not in now)]:
        value, was = now.get(key), before.get(key)
        if key not in now or key not in before:
            if strict and key not in usual:
                yield key, was, value
        elif isinstance(value, dict) and isinstance(was, Mapping):
            for inner, *pair in _compared(value, was, strict):
                yield f"{key}.{inner}", *pair
        elif not same(class_name(str(was)) if key == "_target_" else was, value):
            yield key, was, value


def settings_of(part: Any) -> Settings:
    """The settings of an object that keeps its arguments as attributes, as dataclasses do. Raises
    ValueError for another."""
    cls, arguments = type(part), inspect.signature(type(part)).parameters
    if lost := [key for key in arguments if not hasattr(part, key)]:
        raise ValueError(
            f"{cls.__name__} does not tell its argument {lost[0]}; keep it as self.{lost[0]}, or"
            " make the class a dataclass"
        )
    return settle(cls, {key: _settled(getattr(part, key)) for key in arguments})


def _settled(value: Any) -> Any:
    """A value as plain data, with the Settings of every part in it."""
    if isinstance(value, dict):
        return {key: _settled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(inner) for inner in value]
    simple = value is None or isinstance(value, bool | int | float | str)
    return value if simple else settings_of(value)


def settle(cls: type, values: Mapping[str, Any]) -> Settings:
    """The settings of a class with these arguments: plain values, and Settings of parts inside."""
    usual, counted = defaults(cls), {"_target_": class_name(f"{cls.__module__}.{cls.__name__}")}
    counted |= {key: value for key, value in values.items() if counts(cls, key, values)}
    return Settings(counted, [k for k in counted if k in usual and same(counted[k], usual[k])])


def counts(cls: type, key: str, values: Mapping[str, Any]) -> bool:
    """Whether an argument moves a number, beside these others."""
    told = silent(cls).get(key, True)
    return told if isinstance(told, bool) else told(values)


@cache
def silent(cls: type) -> Mapping[str, bool | Callable[[Mapping[str, Any]], bool]]:
    """What a class says of its arguments that move no number; a subclass that gives a field
    another default need not repeat it."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        own = vars(base).get("__dataclass_fields__", {}).values()
        told = {f.name: f.metadata["identity"] for f in own if "identity" in f.metadata}
        told |= dict.fromkeys(vars(base).get("no_identity", ()), False)
        found = {**told, **found}
    return found


@cache
def defaults(cls: type) -> Mapping[str, Any]:
    """The arguments of a class that have a default, as plain values."""
    made = {f.name: f.default_factory for f in fields(cls)} if is_dataclass(cls) else {}
    found = {}
    for key, parameter in inspect.signature(cls).parameters.items():
        if (factory := made.get(key, MISSING)) is not MISSING:
            found[key] = plain(factory())
        elif parameter.default is not inspect.Parameter.empty:
            found[key] = plain(parameter.default)
    return found


def plain(value: Any) -> Any:
    """A value as JSON reads it back."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def same(a: Any, b: Any) -> bool:
    """1 is 1.0, and is not True."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def class_name(dotted: str) -> str:
    """`PGD` of sat.attacks.pgd.PGD, wherever it stands; `mine:MIFGSM` of mine.attacks.MIFGSM."""
    top, dot, rest = dotted.partition(".")
    name = rest.rpartition(".")[2]
    return dotted if not dot else name if top == "sat" else f"{top}:{name}"


# hash and name --------------------------------------------------------------------------------


def identity(settings: Mapping[str, Settings], names: Mapping[str, str]) -> dict[str, Any]:
    """What decides the trained weights, by difference: of each section what stands for its class,
    by `names` or else the class's own, and the values that are not the defaults."""
    told = {}
    for section, part in settings.items():
        if section in UNTRAINED:
            continue
        told[section] = part.difference()
        told[section]["_target_"] = names.get(section, part["_target_"])
        if told[section] == {"_target_": NEUTRAL.get(section)}:
            del told[section]
    return told


def digest(told: Mapping[str, Any]) -> str:
    """Eight hex digits of an identity."""
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def refuse_moved(
    settings: Mapping[str, Settings], stored: Mapping[str, Any], directory: Path
) -> None:
    """Raises Refused where a run of this hash was begun with another value of some key: its default
    has moved since."""
    for section, part in settings.items():
        before = stored.get(section)
        if section in UNTRAINED or not isinstance(before, Mapping):
            continue
        for key, was, now in part.moved(before):
            raise Refused(
                f"{section}.{key}={_shown(now)}: is the default by now, and {directory} was begun"
                f" with {_shown(was)}; evaluate={directory} measures that run as it is, if it is"
                " finished; record.fresh=true moves it aside and trains anew"
            )


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def data_name(dataset: Mapping[str, Any]) -> str | None:
    """What a set of the user's own is called: its `name`, else the last part of its place."""
    if "name" not in dataset:
        return None
    if dataset["name"]:
        return dataset["name"]
    if path := dataset.get("path"):
        return Path(path).stem
    return Path(dataset.get("root") or "data").resolve().name


def readable(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """The part of a run's name that people read: set, network, activation, attack, epochs, seed."""
    dataset = config["dataset"]
    name = data_name(dataset) or choices.get("dataset", "data")
    size = dataset.get("image_size")
    name = f"{name}-{size}px" if size else name
    if dataset.get("extra"):
        name += f"-{Path(dataset['extra']).stem}"
    parts = [name, _network(config, choices)]
    parts.append(_activation(config["activation"], choices))
    if config.get("evaluate") is not None:  # a network of its own has its file's name already
        own = choices.get("model") == "given"
        parts = parts[:2] if own else [*parts, "weights", Path(config["evaluate"]).stem]
        parts += [f"s{config['seed']}"] if config["seed"] else []
    else:
        attack = choices.get("attack", "attack") + str(config["attack"].get("steps", ""))
        if (eps := config["attack"].get("eps")) not in (None, dataset["eps"]):
            attack += f"-eps{eps:g}" if isinstance(eps, float) else f"-eps{eps}"
        epochs, ema = f"{config['schedule']['epochs']:g}ep", config["schedule"]["ema"]
        swa = config["schedule"].get("swa_start")
        average = f"-ema{ema:g}" if ema else f"-swa{swa:g}" if swa else ""
        parts += [attack, *_method(config, choices), epochs + average]
        parts.append(f"s{config['seed']}")
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


# What a training has beside its attack: the option that goes without saying, and the key that says
# how strong another one is.
_METHOD = {
    "objective": ("adversarial", "beta"), "regulariser": ("none", "weight"),
    "weight_attack": ("none", "gamma"), "augment": ("standard", ""),
}  # fmt: skip


def _method(config: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """`trades6`, `awp0.01`, `cutmix`; nothing for adversarial cross-entropy alone."""
    words = []
    for group, (usual, key) in _METHOD.items():
        if (name := choices.get(group, usual)) != usual:
            size = config[group].get(key)
            words.append(name if size is None else f"{name}{size:g}")
    return words
