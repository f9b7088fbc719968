"""Numbers for people, three digits of each."""


def digits(number: float) -> str:
    if abs(number) >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number else "0"


def count(number: float) -> str:
    """`359`, `1,294`, `25.6 M`."""
    return f"{number:,.0f}" if number < 9999.5 else scaled(number, 1000, ["", *"kMGTPE"])


def size(number: float | None) -> str:
    """`1.2 GiB`; `-` where it is not known."""
    return "-" if number is None else scaled(number / 1024, 1024, ["KiB", "MiB", "GiB", "TiB"])


def scaled(number: float, step: int, units: list[str]) -> str:
    unit, *larger = units
    if number < 999.5 or not larger:
        return f"{number:.3g} {unit}"
    return scaled(number / step, step, larger)


def span(seconds: float | None) -> str:
    """`26 s`, `3 min 10 s`, `3 h 20 min`, `12 d 4 h`; `-` where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    for unit, part, smaller, most in (("min", 1, "s", 60), ("h", 60, "min", 48)):
        whole, rest = divmod(round(seconds / part), 60)
        if whole < most:
            return f"{whole} {unit} {rest} {smaller}"
    whole, rest = divmod(round(seconds / 3600), 24)
    return f"{whole} d {rest} h"
