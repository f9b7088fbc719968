"""What may be concluded from flags and from seeds: intervals, tests, and how many seeds they take.

Every interval is at 95 %. SciPy is imported where it is needed: it takes half a second.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Estimate:
    """An accuracy over seeds, or the difference of two, as a fraction, with its 95 % interval: over
    several seeds Student's (1908) of the mean, over the seeds that might have been drawn, on these
    same images."""

    mean: float
    low: float
    high: float
    seeds: Mapping[int, float] = field(default_factory=dict)
    images: int = 0  # of the test set, for each seed; 0: values come in no steps that are known
    p: float = 1.0  # of the mean being 0 by Student's test, two-sided, or what is said of it

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two configurations, paired by seed, over those that both have. Of less
        than two seeds it may be anything, with p = 1."""
        shared = sorted(self.seeds.keys() & other.seeds.keys())
        seeds = {seed: self.seeds[seed] - other.seeds[seed] for seed in shared}
        return over_seeds(seeds, self.images, (-1.0, 1.0), -1.0)


def over_seeds(
    seeds: Mapping[int, float], images: int = 0,
    alone: tuple[float, float] = (0.0, 1.0), least: float = 0.0,
) -> Estimate:  # fmt: skip
    """The mean of one number a seed, from `least` to 1; `alone` is the interval of less than two.

    An accuracy over N images has steps of 1/N. Values that are all equal are known to a step alone,
    so they count as if one of them were a step off; else two seeds that agree by chance would be
    exact, and two whose differences do would prove anything. Raises ValueError for a number that is
    not finite.
    """
    n, given = len(seeds), np.array([*seeds.values()], dtype=np.float64)
    if not np.isfinite(given).all():
        raise ValueError(f"seeds={seeds}: must be one finite number a seed")
    if n < 2:
        mean = float(given.sum())
        return Estimate(mean, min(alone[0], mean), max(alone[1], mean), seeds, images)
    from scipy.stats import t

    mean, step = float(given.mean()), 1 / images if images else 0.0
    sd = max(float(given.std(ddof=1)), step / math.sqrt(n))
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    error = sd / math.sqrt(n)
    if error <= 1e-12:  # equal but for rounding, and of no known steps
        p = float(abs(mean) <= 1e-12)
    else:
        p = float(2 * t.sf(abs(mean) / error, n - 1))
    return Estimate(mean, max(mean - half, least), min(mean + half, 1.0), seeds, images, p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p, in the order given: those at most 0.05 are together wrong with a
    probability of at most 0.05 in any of them, whatever binds the tests to each other."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted


def fisher(strata: Sequence[tuple[int, int, int, int]]) -> tuple[float, float]:
    """Whether a share is the same on two sides in every stratum: by how many counts that of the
    first side is above what is expected then, and p of Fisher's exact test (1935), two-sided,
    conditional on the margins of every stratum (of several: the exact test of Mantel and Haenszel's
    sum). A stratum is `(count, of, count of the other side, of)`, of runs alike but for the side.
    """
    from scipy.stats import hypergeom

    chances, above = np.ones(1), 0.0
    for a, of, b, of_others in strata:
        drawn = hypergeom(of + of_others, a + b, of).pmf(np.arange(of + 1))
        chances, above = np.convolve(chances, drawn), above + a - (a + b) * of / (of + of_others)
    seen = chances[sum(a for a, *_ in strata)]
    return above, min(1.0, float(chances[chances <= seen * (1 + 1e-7)].sum()))


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
