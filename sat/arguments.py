"""What an argument may be: a class refuses, where it is made, what the command line refuses.

Sizes of perturbations are in 1/255 of a pixel's range, or have their unit written: `0.25/255`. A
number has a range, and the range a reason. A choice is one of those that its annotation lists:

@dataclass(frozen=True)
class PGD:
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        check_choices(self)  # PGD(norm="Linf"): "norm=Linf: ... l2; did you mean linf?"
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

# sizes -------------------------------------------------------------------------------------------

# Below these an eps is surely meant in another unit: of a ball so small nobody measures anything.
SMALLEST = {"linf": 1.0, "l2": 10.0, "l1": 256.0}
SMALLEST_STEP = 0.1
FARTHEST = 1e9  # in 1/255: beyond the farthest corner of any image, in each norm
MOST_EPOCHS = 1e6
MOST_STEPS = 100_000  # a hundred times what anybody is known to have taken
_WRITTEN = re.compile(r"\s*([^/\s]+)\s*/\s*(1|255)\s*")


if TYPE_CHECKING:
    Size = float  # what it is once its owner is made, which is all that a type checker has to see
else:
    Size = float | str  # in 1/255, or with its unit


class Written(float):
    """A number of 1/255 that would be refused as a bare one: its unit has been written down.

    Attacks that are made from it, and copies, need not be asked again.
    """

    def __str__(self) -> str:
        return f"{float(self)!r}/255"


def check_unit(name: str, value: float | str, norm: str = "linf") -> float:
    """An eps or a step in 1/255, from a number or from a unit that was written down: `0.25/255`,
    and `0.3/1` for 0.3 of a pixel's range.

    Raises ValueError, beginning with the name, for a bare number that is surely in another unit.
    """
    if isinstance(value, str):
        value = _parsed(name, value)
        with suppress(ValueError):
            return check_unit(name, value, norm)  # good as a bare number, too
        return Written(value)
    if isinstance(value, Written):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value}: must be a number, in 1/255")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or above, in 1/255")
    check_range(name, value, 0, FARTHEST, "is in 1/255, and no image is that large")
    if 0 < value < (SMALLEST_STEP if name == "step" else SMALLEST.get(norm, 1.0)):
        ball = "" if norm == "linf" or name == "step" else f" and the ball is {norm}"
        meant = f"{value:g} of the pixel range, as RobustBench writes it, is {name}={255 * value:g}"
        if norm == "l2" and value > 5:  # of Linf, and not of the range
            meant = f"usual there is {name}=128, 0.5 of the pixel range"
        raise ValueError(
            f"{name}={value:g}: the unit is 1/255{ball}; {meant}; {value:g} of a 255th is"
            f" {name}='{value:g}/255'"
        )
    return float(value)


def check_ball(eps: float | str, norm: str) -> float:
    """The radius of a ball in 1/255; refuses one that no ball of this norm has."""
    radius = check_unit("eps", eps, norm)
    if norm == "linf" and radius > 255:
        raise ValueError(f"eps={eps}: is above 255/255, the whole range of a pixel")
    return radius


def _parsed(name: str, text: str) -> float:
    found = _WRITTEN.fullmatch(text)
    try:
        number, unit = found.groups() if found else ("", "")
        value = float(number)
    except ValueError:
        auto = "; or auto" * (name == "step")
        raise ValueError(
            f"{name}={text}: must be a number, in 1/255, or one with its unit: 0.25/255,"
            f" 0.3/1{auto}"
        ) from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={text}: must be a finite number, 0 or above")
    value = value if unit == "255" else 255 * value
    check_range(name, value, 0, FARTHEST, "no image is that large, in 1/255")
    return value


# ranges ------------------------------------------------------------------------------------------


def check_range(name: str, value: float, low: float, high: float, why: str) -> None:
    """Refuses a number outside of [low, high], or that is none; `why` says what is wrong there."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: {why}; write {low:g} to {high:g}")


def check_steps(name: str, value: int) -> None:
    """Refuses a number of steps that no attack takes."""
    if value < 1:
        raise ValueError(f"{name}={value}: must be at least 1; for no attack: attack=none")
    check_range(name, value, 1, MOST_STEPS, "is more than anybody waits for")


# choices -----------------------------------------------------------------------------------------

_PLAIN = (bool, int, float, str, NoneType)


def check_choices(made: Any) -> None:
    """Refuses a value of a dataclass's instance that its annotation's Literal does not list, and
    what is no whole number where one is counted.

    Raises ValueError with a line that begins with the field's name. Values of classes beside a
    Literal (`float | Literal["auto"]`) are taken as they are.
    """
    kind: Any = type(made)
    for name in counts_of(kind):
        value = getattr(made, name)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name}={value}: must be a whole number")
    for name, hint in choices_of(kind).items():
        check_choice(name, getattr(made, name), hint)


def check_arguments(function: Any, given: Mapping[str, Any]) -> None:
    """Refuses arguments by the annotations of a function, say of an `__init__`."""
    for name, hint in choices_of(function).items():
        if name in given:
            check_choice(name, given[name], hint)


@cache
def counts_of(kind: Any) -> list[str]:
    """The names that a class annotates as whole numbers."""
    return [name for name, hint in get_type_hints(kind).items() if hint is int]


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
    meant = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{name}={value}: choose from {known}{meant}")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one annotation."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def is_number(value: Any) -> bool:
    """Whether it is one, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(hint: Any) -> list[Any]:
    """All choices that an annotation lists."""
    return [
        choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)
    ]


def _fits(value: Any, part: Any) -> bool:
    if get_origin(part) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(part))
    if part is float:
        return is_number(value)
    if part in _PLAIN:
        return type(value) is part
    return True  # a class, or a generic: not ours to judge


def _name(part: Any) -> str:
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return "null" if part is NoneType else plain.get(part, str(part))


# parts ---------------------------------------------------------------------------------------


def complete(part: Any, contract: type) -> None:
    """Gives the class of a part of a user's own, which need not derive from its contract, what that
    says for all that say nothing else."""
    for key, usual in vars(contract).items():
        if not key.startswith("_") and not hasattr(part, key):
            setattr(type(part), key, usual)
