"""The words of a sweep in a form that Hydra composes; and the keys that some of the options that it
goes through have, and others lack."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from sat.config.groups import CONF, options

JOINT = "SAT_SWEEP_JOINT"  # holds the keys, so that worker processes inherit them


def options_first(words: Sequence[str]) -> list[str]:
    """The words with -m and --config-dir at the front: between overrides argparse refuses them.
    What else asks for a sweep (`--multi`, `hydra.mode=MULTIRUN`) is written as -m."""
    first: list[str] = []
    rest: list[str] = []
    coming = iter(words)
    for word in coming:
        shortened = len(word) > 2 and "--multirun".startswith(word)
        if shortened or word.lstrip("+") == "hydra.mode=MULTIRUN":
            word = "-m"
        option = word.split("=", 1)[0] in ("-m", "--config-dir")
        (first if option else rest).append(word)
        if word == "--config-dir":
            first += [value for value in [next(coming, None)] if value is not None]
    return first + rest


def joined(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line in a form that Hydra composes, and the keys that some of the
    options swept have and others lack.

    `-m activation=relu,elu,celu activation.alpha=1,2` composes, and the jobs whose option has no
    such key are the baseline: one run, however many values there are. A single run is refused as
    ever, and so is a sweep of which no option has the key.
    """
    if "-m" not in words:
        return list(words), []
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    keys = [key for key in pairs if key.count(".") == 1 and _some_have(key, pairs)]
    told = [f"++{word}" if word.split("=", 1)[0] in keys else word for word in words]
    return told, keys


def _some_have(key: str, pairs: Mapping[str, str]) -> bool:
    group, name = key.split(".")
    chosen = pairs.get(group, "").split(",")
    if not {*chosen} <= {*options().get(group, ())}:
        return False
    having = [name in _keys_of(group, option) for option in chosen]
    return any(having) and not all(having)


@cache
def _keys_of(group: str, option: str) -> frozenset[str]:
    """The keys in an option's file, and in those that it builds on."""
    node = yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}
    bases = [base for base in node.pop("defaults", ()) if base in options()[group]]
    return frozenset(node).union(*(_keys_of(group, base) for base in bases))


def lacking(choices: Mapping[str, str]) -> Iterator[str]:
    """The keys of this sweep that the options of a job lack."""
    for key in filter(None, os.environ.get(JOINT, "").split(",")):
        group, name = key.split(".")
        if name not in _keys_of(group, choices[group]):
            yield key


def without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A resolved config without these keys."""
    found = dict(config)
    for key in keys:
        group, name = key.split(".")
        found[group] = {k: value for k, value in found[group].items() if k != name}
    return found


def plain(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The overrides of a job as they were written, less those of the keys that it lacks."""
    swept = [f"++{key}=" for key in os.environ.get(JOINT, "").split(",") if key]
    written = [word[2:] if word.startswith(tuple(swept)) else word for word in overrides]
    return [word for word in written if word.split("=", 1)[0] not in keys]
