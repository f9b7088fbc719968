"""Numbers for people, three digits of each."""

import re
from argparse import ArgumentTypeError


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


def seconds_of(text: str) -> float:
    """`90s`, `10m`, `1.5h` of a command line, in seconds."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)):
        raise ArgumentTypeError(f"{text}: write a time, such as 90s, 10m, 1.5h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
