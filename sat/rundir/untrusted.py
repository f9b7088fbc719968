"""What a run directory holds may have been written by anybody: plain data, of the kinds that runs
write, or refused in one line. torch is imported for tensors alone, and nothing is ever executed."""

import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

from sat.errors import Refused
from sat.rundir.files import read_text, regular

MOST_PARTS = 10**6  # tensors, numbers and texts; a checkpoint of a large network has 10,000
LARGEST = 2**20  # bytes of a config; they have about 2,000

_Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built


class _Loader(_Fast):
    """YAML's numbers, words, lists and mappings."""


def _base_ten(loader: Any, node: yaml.ScalarNode) -> Any:
    if ":" in node.value:  # to YAML a number of base 60, of any length
        raise ValueError(f"{node.value[:20]}: is no number of base ten")
    float_like = node.tag.endswith("float")
    return (loader.construct_yaml_float if float_like else loader.construct_yaml_int)(node)


def _as_written(loader: Any, node: yaml.ScalarNode) -> str:
    return str(node.value)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _base_ten)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_written)


def read_yaml(path: Path, aliases: bool = False) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises Refused for another, and for one with aliases, of
    which a few lines unfold to more than any memory holds; no run writes them. With `aliases` they
    are taken, as of our own files."""
    try:
        text = read_text(path)
        if len(text) > LARGEST:
            raise ValueError("larger than any config")
        tokens = () if aliases else yaml.scan(text, _Loader)
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise ValueError("has aliases; write what they stand for")
        found = yaml.load(text, _Loader)
        if not aliases:  # which may make a ring
            check_plain(found)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise Refused(f"{path}: can't be read ({reason[:200]})") from None
    if not isinstance(found, dict):
        raise Refused(f"{path}: is none of this program's")
    return found


def check_plain(value: Any) -> None:
    """Raises ValueError for what is no plain data, or no text that can be written again."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            value.encode()
        elif not isinstance(value, int | float | None):
            raise ValueError(f"holds a value of type {type(value).__name__}")


def read_sections(path: Path, sections: list[str]) -> dict[str, Any]:
    """A run's config, plain in all its values. Raises Refused for one that asks for others'
    (`${oc.env:TOKEN}`), which a run has resolved before it writes."""
    config = read_yaml(path)
    for key in sections:
        if key in config and not isinstance(config[key], dict):
            raise Refused(f"{path}: is damaged; {key} is no group of keys")
    for group, name in config.get("choices", {}).items() if "choices" in sections else ():
        if not isinstance(name, str | None):
            raise Refused(f"{path}: is damaged; choices.{group} is no name of an option")
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, str) and "${" in value:
            raise Refused(f"{path}: {place}={value[:60]}: asks for another value; write it down")
        if isinstance(value, Mapping | list):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending += [(f"{place}.{key}".lstrip("."), held) for key, held in items]
            pending += [(place, key) for key in value] if isinstance(value, Mapping) else []
    return config


def unfolded(path: Path) -> int:
    """The bytes that what a file holds may take in memory: torch packs nothing, and weights can be
    packed to a fraction; beyond that somebody means harm."""
    return 16 * path.stat().st_size + 2**26


def check_packed(path: Path) -> None:
    """Raises ValueError for an archive of weights that unfolds to more than `unfolded` allows."""
    if not zipfile.is_zipfile(path):
        return
    with suppress(zipfile.BadZipFile, struct.error), zipfile.ZipFile(path) as file:
        if (held := sum(part.file_size for part in file.infolist())) > unfolded(path):
            raise ValueError(f"unfolds to {held / 1e9:.1f} GB")


def check_sums(path: Path) -> None:
    """Raises ValueError where a part of an archive is not what was written, by its checksum: torch
    reads weights with a changed bit as other weights. A second a gigabyte."""
    check_packed(path)
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except (zipfile.BadZipFile, RuntimeError, LookupError, zlib.error, struct.error) as error:
        part = f"the archive ({error})"
    if part is not None:
        raise ValueError(f"{part} is not what was written")


# How torch says that a pickle is more than tensors. Operands from 140 on are of pickle protocols 4
# and 5, in which torch itself writes nothing.
_OBJECTS = re.compile(
    r"GLOBAL (\S+)|(TorchScript)|operand 1[45]\d|Can only (?:create|build)|call reduce"
)


def load_tensors(path: Path) -> Any:
    """What a file of tensors and plain values holds, on the CPU; nothing else is unpickled. Raises
    ValueError for one that unfolds to far more than it holds, and what torch raises, of many
    kinds."""
    import torch

    with open(path, "rb", opener=regular) as file, warnings.catch_warnings():
        check_packed(path)
        warnings.filterwarnings("ignore", "Detected pickle protocol|.*TorchScript archive")
        state = torch.load(file, map_location="cpu", weights_only=True)
    parts, total, pending, most = 0, 0, [state], unfolded(path)
    while pending:
        parts, value = parts + 1, pending.pop()
        if isinstance(value, Mapping | list | tuple):
            pending += value.values() if isinstance(value, Mapping) else value
        elif isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        if total > most or parts + len(pending) > MOST_PARTS:
            raise ValueError("unfolds to far more than the file holds")
    return state


def objects_in(error: Exception) -> str | None:
    """What torch found in a file of tensors alone that is none; None where that isn't why."""
    if found := _OBJECTS.search(_told(error)):
        return f"holds objects other than tensors ({found[1] or found[2] or 'a plain pickle'})"
    return None


def reason_of(error: Exception) -> str:
    """Why torch can't read a file, in few words and without its advice."""
    text = _told(error)
    useless = " " not in text or text.startswith("Unsupported operand")  # of a text, say
    return "it can't be read" if useless else shorten(text.splitlines()[0], 120)


def _told(error: Exception) -> str:
    return str(error).split("WeightsUnpickler error:")[-1].strip() or type(error).__name__


def misfit(value: Any, kind: Any, place: str) -> str | None:
    """The first place where `value` is not of its `kind`, None where there is none: a type, [kind]
    of each item, [kind, kind] of two, or {key: kind}, where `key?` may be missing and `*`
    is any other key; a tuple holds kinds of which one will do; `object` is anything."""
    if kind is object:
        return None
    if isinstance(kind, tuple):
        wrongs = []
        for each in kind:
            if (wrong := misfit(value, each, place)) is None:
                return None
            wrongs.append(wrong)
        return max(wrongs, key=lambda wrong: len(wrong.split(" is ")[0]))  # the nearest kind
    if isinstance(kind, list):
        sound = isinstance(value, list) and len(kind) in (1, len(value))
        items = dict(enumerate(value)) if sound else None
        kinds = {"*": kind[0]}
    elif isinstance(kind, dict):
        items = value if isinstance(value, dict) else None
        kinds = kind
    else:
        return None if _is(value, kind) else f"{place} is {_shown(value)}"
    if items is None:
        return f"{place} is {_shown(value)}"
    held: dict[Any, Any] = items
    for key, inner in kinds.items():
        name = key.rstrip("?")
        if key == "*" or (key != name and name not in held):
            continue
        if name not in held:
            return f"{place}.{name} is missing".lstrip(".")
        if wrong := misfit(held[name], inner, f"{place}.{name}".lstrip(".")):
            return wrong
    others = [key for key in held if "*" in kinds and not {key, f"{key}?"} & kinds.keys()]
    places = ((held[key], kinds["*"], f"{place}.{key}".lstrip(".")) for key in others)
    return next(filter(None, (misfit(*each) for each in places)), None)


def _shown(value: Any) -> str:
    """A plain value, cut; of others the type: to write out a tensor takes long."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(str(value)[:40]) if plain else f"a {type(value).__name__}"


def _is(value: Any, kind: Any) -> bool:
    if kind == "share":
        return _is(value, int | float) and 0 <= value <= 1
    if kind == "threads":
        return _is(value, int) and 1 <= value <= 4096
    if kind == "count":
        return _is(value, int) and value >= 0
    if isinstance(value, bool) or not isinstance(value, kind):
        return kind is bool and isinstance(value, bool)
    return not isinstance(value, int | float) or (abs(value) < 2**53 and math.isfinite(value))
