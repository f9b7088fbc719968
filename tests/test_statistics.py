"""Intervals and tests against published tables, SciPy, and simulated coverage."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from sat import statistics
from sat.statistics import holm, over_seeds, paired_seeds, wilson


def test_over_seeds():
    """By hand: mean 0.78, deviations -0.02, 0, 0.02; t of 2 degrees of freedom is 4.302653."""
    found = over_seeds([0.76, 0.80, 0.78])
    assert (found["mean"], found["sd"], found["n"]) == (pytest.approx(0.78), pytest.approx(0.02), 3)
    half = 4.302653 * 0.02 / 3**0.5
    assert found["ci95"] == pytest.approx([0.78 - half, 0.78 + half], abs=1e-7)
    low, high = over_seeds([0.47, 0.47], 0.01)["ci95"]
    assert high - low == pytest.approx(2 * 12.706 * 0.01 / 2, rel=1e-3)
    assert over_seeds([0.5]) == {"mean": 0.5, "sd": None, "n": 1, "ci95": None}
    for wrong in ([], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="a seed"):
            over_seeds(wrong)


def test_students_interval_covers_as_often_as_it_says():
    drawn = np.random.default_rng(1).normal(0.7, 0.02, size=(2000, 3))
    intervals = np.array([over_seeds(values)["ci95"] for values in drawn])
    inside = (intervals[:, 0] <= 0.7) & (0.7 <= intervals[:, 1])
    assert 0.935 < inside.mean() < 0.965  # standard error 0.005; the normal's 1.96 gives 0.81


def test_wilson_covers_as_often_as_it_says():
    right = np.random.default_rng(2).binomial(300, 0.3, size=4000)
    inside = [low <= 0.3 <= high for low, high in (wilson(int(r), 300) for r in right)]
    assert 0.94 < np.mean(inside) < 0.96


def test_scipy_is_not_loaded_for_an_interval():
    code = "import sys, sat.statistics; sat.statistics.wilson(1, 2); print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_paired_seeds_gives_what_scipy_gives():
    a = {0: 0.61, 1: 0.58, 2: 0.66, 7: 0.60, 9: 0.1}
    b = {0: 0.60, 1: 0.55, 2: 0.61, 7: 0.61, 8: 0.9}  # 8 and 9 have no partner
    found = paired_seeds(a, b)
    scipys = stats.ttest_rel([a[s] for s in (0, 1, 2, 7)], [b[s] for s in (0, 1, 2, 7)])
    assert found["n"] == 4 and found["p"] == pytest.approx(scipys.pvalue)
    assert found["ci95"] == pytest.approx(list(scipys.confidence_interval(0.95)))
    assert paired_seeds(b, a)["mean"] == -found["mean"] == pytest.approx(-0.02)
    assert paired_seeds(a, b, resolution=0.001) == found
    with pytest.raises(ValueError, match=r"seeds=\[0\]: are shared"):
        paired_seeds({0: 0.5, 1: 0.5}, {0: 0.5, 2: 0.5})


def test_equal_differences_are_known_to_a_step_of_the_values():
    """By hand: of two seeds, 0.01 / sqrt(2) is the deviation, its error 0.005, t 12.7062."""
    same = paired_seeds({0: 0.7, 1: 0.8, 2: 0.9}, {0: 0.7, 1: 0.8, 2: 0.9})
    assert (same["mean"], same["ci95"], same["p"]) == (0, [0, 0], 1)
    above = paired_seeds({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.7})  # equal but for rounding
    assert above["p"] == 0 and above["ci95"] == pytest.approx([0.1, 0.1])
    known = paired_seeds({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.7}, resolution=0.01)
    assert known["ci95"] == pytest.approx([0.1 - 0.063531, 0.1 + 0.063531], abs=1e-6)
    assert known["p"] == pytest.approx(2 * stats.t.sf(20, 1))
    one_off = paired_seeds({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.71})
    assert known["sd"] == pytest.approx(one_off["sd"])


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
