"""The unit in which sizes of perturbations are given: 1/255 of a pixel's range."""

import math
import re
from contextlib import suppress

# Below these an eps is surely meant in another unit: of a ball so small nobody measures anything.
SMALLEST = {"linf": 1.0, "l2": 10.0, "l1": 256.0}
SMALLEST_STEP = 0.1
_WRITTEN = re.compile(r"\s*([^/\s]+)\s*/\s*(1|255)\s*")


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
        value = _written(name, value)
        with suppress(ValueError):
            return check_unit(name, value, norm)  # good as a bare number, too
        return Written(value)
    if isinstance(value, Written):
        return value
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or above, in 1/255")
    if 0 < value < (SMALLEST_STEP if name == "step" else SMALLEST.get(norm, 1.0)):
        ball = "" if norm == "linf" or name == "step" else f" and the ball is {norm}"
        raise ValueError(
            f"{name}={value:g}: the unit is 1/255{ball}; {value:g} of the pixel range, as"
            f" RobustBench writes it, is {name}={255 * value:g}; {value:g} of a 255th is"
            f" {name}='{value:g}/255'"
        )
    return float(value)


def check_ball(eps: float | str, norm: str) -> float:
    """The radius of a ball in 1/255; refuses one that no ball of this norm has."""
    radius = check_unit("eps", eps, norm)
    if norm == "linf" and radius > 255:
        raise ValueError(f"eps={eps}: is above 255/255, the whole range of a pixel")
    return radius


def _written(name: str, text: str) -> float:
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
    return value if unit == "255" else 255 * value
