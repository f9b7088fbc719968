"""Intervals and tests against published tables, SciPy, and simulated coverage."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from sat import statistics
from sat.statistics import Estimate, fisher, holm, over_seeds, wilson


def over(*values: float, images: int = 0) -> Estimate:
    return over_seeds(dict(enumerate(values)), images)


def test_over_seeds():
    """By hand: mean 0.78, deviations -0.02, 0, 0.02; t of 2 degrees of freedom is 4.302653."""
    found = over(0.76, 0.80, 0.78)
    half = 4.302653 * 0.02 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.78, 0.78 - half, 0.78 + half))
    alike = over(0.47, 0.47, images=100)
    assert alike.high - alike.low == pytest.approx(2 * 12.706 * 0.01 / 2, rel=1e-3)
    alone = over_seeds({3: 0.5}, 100, (0.4, 0.6))
    assert alone == Estimate(0.5, 0.4, 0.6, {3: 0.5}, 100, 1.0)
    assert over_seeds({3: 1.0}, 100, (0.96, 0.999)).high == 1  # Wilson's ends are rounded
    assert over(0.99, 1.0).high == 1
    with pytest.raises(ValueError, match="a seed"):
        over(0.5, float("nan"))


def test_students_interval_covers_as_often_as_it_says():
    drawn = np.random.default_rng(1).normal(0.7, 0.02, size=(2000, 3))
    inside = [found.low <= 0.7 <= found.high for found in (over(*values) for values in drawn)]
    assert 0.935 < np.mean(inside) < 0.965  # standard error 0.005; the normal's 1.96 gives 0.81


def test_wilson_covers_as_often_as_it_says():
    right = np.random.default_rng(2).binomial(300, 0.3, size=4000)
    inside = [low <= 0.3 <= high for low, high in (wilson(int(r), 300) for r in right)]
    assert 0.94 < np.mean(inside) < 0.96


def test_scipy_is_not_loaded_for_an_interval():
    code = "import sys, sat.statistics; sat.statistics.wilson(1, 2); print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_a_difference_is_what_scipy_gives():
    a = over_seeds({0: 0.61, 1: 0.58, 2: 0.66, 7: 0.60, 9: 0.1})
    b = over_seeds({0: 0.60, 1: 0.55, 2: 0.61, 7: 0.61, 8: 0.9})  # 8 and 9 have no partner
    found = a - b
    pairs = [(a.seeds[seed], b.seeds[seed]) for seed in (0, 1, 2, 7)]
    scipys = stats.ttest_rel(*zip(*pairs, strict=True))
    assert len(found.seeds) == 4 and found.p == pytest.approx(scipys.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(scipys.confidence_interval(0.95)))
    assert (b - a).mean == -found.mean == pytest.approx(-0.02)
    finely = over_seeds(a.seeds, 1000) - b
    assert (finely.low, finely.high, finely.p) == (found.low, found.high, found.p)


def test_a_difference_of_less_than_two_seeds_may_be_anything():
    one = over_seeds({0: 0.5, 1: 0.5}) - over_seeds({0: 0.25, 2: 0.5})
    assert one == Estimate(0.25, -1, 1, {0: 0.25}, 0, 1.0)
    none = over_seeds({1: 0.5}) - over_seeds({2: 0.5})
    assert (none.low, none.high, none.seeds, none.p) == (-1, 1, {}, 1)


def test_equal_differences_are_known_to_a_step_of_the_values():
    """By hand: of two seeds, 0.01 / sqrt(2) is the deviation, its error 0.005, t 12.7062."""
    same = over(0.7, 0.8, 0.9) - over(0.7, 0.8, 0.9)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    above = over(0.7, 0.8) - over(0.6, 0.7)  # equal but for rounding
    assert above.p == 0 and (above.low, above.high) == pytest.approx((0.1, 0.1))
    known = over(0.7, 0.8, images=100) - over(0.6, 0.7, images=100)
    assert (known.low, known.high) == pytest.approx((0.1 - 0.063531, 0.1 + 0.063531), abs=1e-6)
    assert known.p == pytest.approx(2 * stats.t.sf(20, 1))
    one_off = over(0.7, 0.8) - over(0.6, 0.71)
    assert known.high - known.low == pytest.approx(one_off.high - one_off.low)


def test_holm():
    """By hand: sorted 0.005, 0.01, 0.03, 0.04 by 4, 3, 2, 1, and never less than one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []


def test_holm_is_wrong_no_more_often_than_it_says():
    """Nine true hypotheses beside one that is false: any of the nine falls in at most 5 %."""
    rng = np.random.default_rng(3).uniform(size=(20000, 9))
    wrong = [min(holm([1e-9, *p])[1:]) < 0.05 for p in rng.tolist()]
    assert 0.044 < np.mean(wrong) < 0.054  # 0.0489, standard error 0.0015; uncorrected 0.37


def test_a_difference_that_seeds_can_show_is_shown_four_times_in_five():
    """Simulated: two configurations of unit spread, compared seed by seed."""
    draw = np.random.default_rng(0)
    for seeds in (2, 3, 10):
        gap = statistics.detectable(1.0, seeds)
        pairs = draw.normal(gap, math.sqrt(2), (20_000, seeds))
        error = pairs.std(1, ddof=1) / math.sqrt(seeds)
        shown = np.abs(pairs.mean(1)) / error > stats.t.ppf(0.975, seeds - 1)
        assert 0.79 < shown.mean() < 0.81
    assert statistics.detectable(2.0, 5) == 2 * statistics.detectable(1.0, 5)


@pytest.mark.parametrize("difference", [0.3, 1.0, 2.0, 50.0])
def test_seeds_that_are_needed_are_the_fewest(difference):
    seeds = statistics.seeds_needed(1.0, difference)
    assert statistics.detectable(1.0, seeds) <= difference
    assert seeds == 2 or statistics.detectable(1.0, seeds - 1) > difference


@pytest.mark.parametrize("counts", [(0, 10, 4, 5), (3, 5, 3, 5), (7, 9, 1, 12), (0, 3, 0, 4)])
def test_of_one_stratum_it_is_fishers_exact_test(counts):
    a, of, b, others = counts
    above, p = fisher([counts])
    assert p == pytest.approx(stats.fisher_exact([(a, of - a), (b, others - b)]).pvalue)
    assert above == pytest.approx(a - of * (a + b) / (of + others))


def test_strata_of_unequal_size_decide_each_by_itself():
    """Simpson's paradox: no stratum shows what all together seem to show."""
    strata = [(8, 10, 1, 1), (0, 1, 1, 10)]
    assert stats.fisher_exact([(8, 3), (2, 9)]).pvalue < 0.05
    assert fisher(strata)[1] > 0.9
    brute = {}  # every way in which the counts of the first side may fall, given the margins
    for one in range(11):
        for two in range(2):
            chance = stats.hypergeom(11, 9, 10).pmf(one) * stats.hypergeom(11, 1, 1).pmf(two)
            brute[one + two] = brute.get(one + two, 0) + chance
    expected = sum(chance for chance in brute.values() if chance <= brute[8] * (1 + 1e-7))
    assert fisher(strata)[1] == pytest.approx(expected)
