"""Units of the command line: eps and step are in 1/255 of the pixels' range."""

import math


def check_unit(name: str, value: float) -> None:
    """Refuses a size that is surely in another unit: below 1 it is nearly always a fraction."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value}: must be a finite number, 0 or above, in 1/255")
    smallest = 1 if name == "eps" else 0.1
    if 0 < value < smallest:
        meant = f"{255 * value:.3g}"
        raise ValueError(
            f"{name}={value:g}: is in units of 1/255, so this is {value:g}/255;"
            f" for {value:g} of the pixel range write {name}={meant}"
        )


def check_eps(eps: float, norm: str) -> None:
    """Refuses an eps in another unit, and one beyond the whole range of a pixel."""
    check_unit("eps", eps)
    if norm == "linf" and eps > 255:
        raise ValueError(f"eps={eps}: is above 255/255, the whole range of a pixel")
