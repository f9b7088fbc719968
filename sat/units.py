"""Units that a person types: eps and step are in 1/255 of the pixel range."""

import math


def check_unit(name: str, value: float) -> None:
    """Refuses what is surely no number of 1/255: a value below 1 is nearly always a fraction by
    mistake."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or above, in 1/255")
    smallest = 1 if name == "eps" else 0.1
    if 0 < value < smallest:
        meant = f"{255 * value:.3g}"
        raise ValueError(
            f"{name}={value:g}: is in units of 1/255, so this is {value:g}/255;"
            f" for {value:g} of the pixel range write {name}={meant}"
        )


def check_ball(eps: float, norm: str) -> None:
    """Refuses a radius that no ball of this norm has."""
    check_unit("eps", eps)
    if norm == "linf" and eps > 255:
        raise ValueError(f"eps={eps}: is above 255/255, the whole range of a pixel")
