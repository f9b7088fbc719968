"""What an annotation allows: a class refuses, where it is made, what the command line refuses.

@dataclass(frozen=True)
class PGD:
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        check_choices(self)  # PGD(norm="Linf"): "norm=Linf: choose from linf, l2; linf?"
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN = (bool, int, float, str, NoneType)


def check_choices(made: Any) -> None:
    """Refuses a value of a dataclass's instance that its annotation's Literal does not list.

    Raises ValueError with a line that begins with the field's name. Values of classes beside a
    Literal (`float | Literal["auto"]`) are taken as they are.
    """
    kind: Any = type(made)
    for name, hint in choices_of(kind).items():
        check_choice(name, getattr(made, name), hint)


def check_arguments(function: Any, given: Mapping[str, Any]) -> None:
    """Refuses arguments by the annotations of a function, say of an `__init__`."""
    for name, hint in choices_of(function).items():
        if name in given:
            check_choice(name, given[name], hint)


@cache
def choices_of(annotated: Any) -> dict[str, Any]:
    """The annotations of a class or a function that list choices, by name."""
    return {name: hint for name, hint in get_type_hints(annotated).items() if _listed(hint)}


def check_choice(name: str, value: Any, hint: Any) -> None:
    """Refuses a value that is none of the choices in `hint`, nor of a type beside them."""
    if any(_fits(value, part) for part in _parts(hint)):
        return
    listed = [str(choice) for choice in _listed(hint)]
    others = [_name(part) for part in _parts(hint) if get_origin(part) is not Literal]
    close = get_close_matches(str(value).lower(), listed, 1, 0.5)
    known = ", ".join([*listed, *others])
    meant = f"; {close[0]}?" if close else ""
    raise ValueError(f"{name}={value}: choose from {known}{meant}")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one annotation."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _listed(hint: Any) -> list[Any]:
    """All choices that an annotation lists."""
    return [
        choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)
    ]


def _fits(value: Any, part: Any) -> bool:
    if get_origin(part) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(part))
    if part is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if part in _PLAIN:
        return type(value) is part
    return True  # a class, or a generic: not ours to judge


def _name(part: Any) -> str:
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return "null" if part is NoneType else plain.get(part, str(part))
