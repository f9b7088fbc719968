"""A class's signature is the schema of its options: from a config's node to a checked object.

Every option names a class (`_target_`) and its arguments. `build` converts each value to its
annotated type, refuses what does not fit in one line, and constructs. Constructors check ranges and
do no work.
"""

import importlib
import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from sat.arguments import Written
from sat.config.groups import is_group, short, targets, unknown
from sat.config.plugins import load
from sat.errors import Refused, first_line, refusing
from sat.identity import Settings, defaults, settle


class Built(NamedTuple):
    """A part as an object, as config.yaml has it, and what of it decides numbers."""

    part: Any
    typed: Any
    settings: Any


def build(node: Any, path: str, partial_: bool = False) -> Built:
    """The object that a config node describes. Raises Refused."""
    node = dict(node)
    cls: Any = target(node.pop("_target_", None), path)
    hints = _arguments(cls, path)
    unknown(node, [*hints], path + ".", cls)
    if inspect.isabstract(cls):
        raise Refused(
            f"{path}._target_={cls.__name__}: is what several options share, and no option"
        )
    usual, values = defaults(cls), {}
    for key, hint in hints.items():
        if key not in node and key not in usual:
            raise Refused(f"{path}.{key}: is missing; write {path}.{key}=...")
        values[key] = _value(node.get(key, usual.get(key)), hint, f"{path}.{key}")
    given = {key: value.part for key, value in values.items()}
    with refusing(f"{path}."):
        built = cls(**given)
    typed: dict[str, Any] = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
    told: dict[str, Any] = {}
    for key, value in values.items():
        typed[key], told[key] = value.typed, value.settings
        kept, size = getattr(built, key, None), float in get_args(hints[key])
        if isinstance(value.part, str) and isinstance(kept, float | str if size else float):
            typed[key] = told[key] = written(kept)  # 8 is 8/255
    return Built(partial(cls, **given) if partial_ else built, typed, settle(cls, told))


def _arguments(cls: Any, path: str) -> dict[str, Any]:
    """The arguments of a class that a config may give, and their types: Any where none is written.
    Raises Refused for one that can't be given by name, and for a type that is not there."""
    if getattr(cls.__init__, "__module__", "") == "typing":  # of a Protocol: there is none
        return {}
    try:
        hints, parameters = get_type_hints(cls.__init__), inspect.signature(cls).parameters
    except Exception as error:  # of any kind: annotations are code
        raise Refused(
            f"{path}._target_={cls.__name__}: its arguments can't be read ({first_line(error)});"
            " import what their annotations name, and not under TYPE_CHECKING alone"
        ) from error
    for one in parameters.values():
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise Refused(
                f"{path}._target_={cls.__name__}: its argument {str(one).split(':')[0]} can't be"
                " given by name, as keys are; write each out, without *, ** and /"
            )
    told = (k for k, one in parameters.items() if k != "inplace" or one.default is one.empty)
    return {key: hints.get(key, Any) for key in told}


def written(size: float | str) -> float | str:
    """A number in 1/255, or a multiple, as it can be written down and read again."""
    return str(size) if isinstance(size, Written) else size


def _value(given: Any, hint: Any, where: str) -> Built:
    """A value in its type: a nested node is built, too."""
    part = _part(hint)
    if isinstance(given, Mapping) and "_target_" in given and part is not None:
        built = build(given, where)
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
    `sat.config.plugins`); nothing else is ever imported."""
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise Refused(f"{path}._target_={short(name)}: must name a class, package.module.Class")
    if not name.startswith("sat."):
        with refusing(f"{path}._target_={short(name)}: "):
            return load(name)
    if not re.fullmatch(r"sat(\.[a-z_]+)+\.[A-Z]\w*", name):
        raise Refused(f"{path}._target_={short(name)}: must name a class of this package, sat.*")
    place = targets(path).get(name.rpartition(".")[2])
    if place is None:
        group = path if is_group(path) else "attack" if "." in path else path
        group = group.replace(".", "/")
        raise Refused(
            f"{path}._target_={short(name)}: no option of {group} is this class; add a file with"
            f" it to conf/{group}"
        )
    module, _, attribute = place.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Refused(f"{path}._target_={short(name)}: no such class ({error})") from error
    if not inspect.isclass(found) or not found.__module__.startswith("sat."):
        raise Refused(f"{path}._target_={short(name)}: is not a class of this package")
    return found


# values --------------------------------------------------------------------------------

_MISFIT = object()


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` in the annotated type; 1 and 1.0 become the same; raises `Refused`."""
    converted = _convert(value, hint)
    if converted is _MISFIT:
        line = f"{where}={short(value)}: must be {_describe(hint)}"
        several = re.fullmatch(r"(\d{1,9})(?:-|\.\.)(\d{1,9})", str(value))
        if where == "seed" and several:
            first, last = map(int, several.groups())
            line += f"; several are a sweep: -m '{where}=range({first},{last + 1})'"
        raise Refused(line)
    for number in converted if isinstance(converted, list | tuple) else [converted]:
        if isinstance(number, int | float) and not _is_computed_with(number):
            raise Refused(
                f"{where}={short(value)}: no device computes with it: whole numbers end at 9.2e18,"
                " others go from 1.2e-38 to 3.4e38"
            )
    return converted


def _is_computed_with(number: float) -> bool:
    """Whether int64 or float32 has the number, and not as a 0 or an infinity."""
    if isinstance(number, int):
        return abs(number) < 2**63
    return number == 0 or 1.2e-38 <= abs(number) <= 3.4e38


def _convert(value: Any, hint: Any) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value if _is_plain(value) else _MISFIT
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


def _is_plain(value: Any) -> bool:
    """Whether config.yaml can hold it."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return type(value) in _SCALARS


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
          type(None): "null", Any: "a number, a word, a list or a mapping"}  # fmt: skip


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
