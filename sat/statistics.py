"""What may be concluded from flags and from seeds: intervals, tests, and how many seeds they take.

Every interval is at 95 %. SciPy is imported where it is needed: it takes half a second.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    if images == 0:
        return 0.0, 1.0
    z, p = 1.959963984540054, right / images
    centre = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def beyond(count: int, images: int, share: float) -> bool:
    """Whether `count` of `images` is more than that share, and not by chance: its whole 95 % Wilson
    interval lies above. Of 128 images, 2 are beyond 0.2 %, 4 beyond 1 %, 12 beyond 5 %; a single
    image never is."""
    return count > 1 and wilson(count, images)[0] > share


def over_seeds(values: Sequence[float], resolution: float = 0.0) -> dict[str, Any]:
    """`{"mean", "sd", "n", "ci95"}` of one number a seed.

    `sd` is the sample's (ddof 1); `ci95` is Student's (1908) interval of the mean, over the seeds
    that might have been drawn, on these same images. One seed says nothing of either: None.

    `resolution` is the step in which values come: an accuracy over N images has steps of 1/N.
    Values that are all equal are known to a step alone, so they count as if one of them were a step
    off; else two seeds that agree by chance would be exact.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or len(given) == 0 or not np.isfinite(given).all():
        raise ValueError(f"values={values}: must be one finite number a seed, at least one")
    n, mean = len(given), float(given.mean())
    if n == 1:
        return {"mean": mean, "sd": None, "n": 1, "ci95": None}
    from scipy.stats import t

    sd = max(float(given.std(ddof=1)), resolution / math.sqrt(n))
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "n": n, "ci95": [mean - half, mean + half]}


def paired_seeds(
    a: Mapping[int, float], b: Mapping[int, float], resolution: float = 0.0
) -> dict[str, Any]:
    """Two configurations over seeds: `{"mean", "sd", "n", "ci95", "p"}` of `a` minus `b`, of the
    seeds that both have; `p` is of Student's paired test, two-sided.

    `resolution` is that of `over_seeds`: two seeds whose differences agree by chance would else
    prove anything. Raises ValueError where fewer than two seeds are shared.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        raise ValueError(f"seeds={shared}: are shared; a paired test needs at least two")
    from scipy.stats import t

    found = over_seeds([a[seed] - b[seed] for seed in shared], resolution)
    n, mean = found["n"], found["mean"]
    error = found["sd"] / math.sqrt(n)
    if error <= 1e-12:  # equal but for rounding, and of no known resolution
        p = float(abs(mean) <= 1e-12)
    else:
        p = float(2 * t.sf(abs(mean) / error, n - 1))
    return {**found, "p": p}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p, in the order given: those at most 0.05 are together wrong with a
    probability of at most 0.05 in any of them, whatever binds the tests to each other."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted


def detectable(sd: float, seeds: int) -> float:
    """The difference of two configurations that Student's paired test over so many seeds (two and
    more) shows at 0.05 with a probability of 0.8; `sd` is of one configuration over its seeds, and
    what two do with one seed is taken to be unrelated."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    bound = float(t.ppf(0.975, seeds - 1))
    shift = brentq(lambda by: nct.sf(bound, seeds - 1, by) - 0.8, 0, 3 * bound)
    return shift * sd * math.sqrt(2 / seeds)


def seeds_needed(sd: float, difference: float) -> int:
    """The fewest seeds whose `detectable` difference is at most this one, above 0."""
    seeds = max(2, int(2 * (1.96 + 0.84) ** 2 * (sd / difference) ** 2))  # fewer with any t
    while detectable(sd, seeds) > difference:
        seeds += 1
    return seeds
