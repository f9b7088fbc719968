"""Numbers for people, three digits of each."""


def digits(number: float) -> str:
    if abs(number) >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number else "0"


def count(number: float) -> str:
    """`359`, `1,294`, `25.6 M`."""
    if number < 9999.5:
        return f"{number:,.0f}"
    units = iter("kMGTPE")
    while number >= 999.5:
        number, unit = number / 1000, next(units)
    return f"{number:.3g} {unit}"


def size(number: float | None) -> str:
    """`1.2 GiB`; `-` where it is not known."""
    if number is None:
        return "-"
    units = iter(("KiB", "MiB", "GiB", "TiB"))
    number, unit = number / 1024, next(units)
    while number >= 999.5:
        number, unit = number / 1024, next(units)
    return f"{number:.3g} {unit}"


def span(seconds: float | None) -> str:
    """`26 s`, `3 min 10 s`, `3 h 20 min`, `12 d 4 h`; `-` where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    for unit, part, smaller in (("min", 1, "s"), ("h", 60, "min")):
        whole, rest = divmod(round(seconds / part), 60)
        if whole < (60 if unit == "min" else 48):
            return f"{whole} {unit} {rest} {smaller}"
    whole, rest = divmod(round(seconds / 3600), 24)
    return f"{whole} d {rest} h"
