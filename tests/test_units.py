"""Sizes of perturbations: bare numbers in 1/255, and units that are written down."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from sat.arguments import Written, check_ball, check_unit
from sat.attacks import FastAutoAttack
from sat.attacks.autoattack import AutoAttack
from sat.attacks.fgsm import FGSM
from sat.attacks.pgd import PGD


@pytest.mark.parametrize(
    "value, norm, taken",
    [
        (8, "linf", 8.0), (1, "linf", 1.0), (0, "linf", 0.0), (10, "l2", 10.0), (256, "l1", 256.0),
        ("8/255", "linf", 8.0), ("0.25/255", "linf", 0.25), ("0.3/1", "linf", 76.5),
        ("0.5/1", "l2", 127.5), ("2/255", "l2", 2.0), (" 12 / 1 ", "l1", 3060.0),
        ("1e-3/255", "linf", 0.001), (Written(0.25), "linf", 0.25),
    ],
)  # fmt: skip
def test_a_size_is_in_255ths_or_has_its_unit(value, norm, taken):
    assert check_unit("eps", value, norm) == taken and isinstance(
        check_unit("eps", value, norm), float
    )


@pytest.mark.parametrize(
    "value, norm, words",
    [
        (0.5, "l2", ["eps=0.5:", "eps=127.5", "eps='0.5/255'", "l2", "RobustBench"]),
        (0.03, "linf", ["eps=0.03:", "eps=7.65", "eps='0.03/255'"]),
        (8, "l2", ["eps=8:", "l2; usual there is eps=128, 0.5 of the"]),
        (12, "l1", ["eps=12:", "eps=3060", "l1"]),
        (float("nan"), "linf", ["eps=nan", "finite"]), (-1, "linf", ["eps=-1", "0 or above"]),
        ("8/256", "linf", ["eps=8/256", "0.25/255"]), ("8", "linf", ["eps=8", "its unit"]),
        ("x/255", "linf", ["eps=x/255"]), ("nan/1", "linf", ["eps=nan/1", "finite"]),
        ("-1/255", "linf", ["eps=-1/255", "0 or above"]), ("", "linf", ["eps="]),
    ],
)  # fmt: skip
def test_what_is_surely_another_unit_is_refused_with_both_readings(value, norm, words):
    with pytest.raises(ValueError) as refused:
        check_unit("eps", value, norm)
    for word in words:
        assert word in str(refused.value), refused.value


def test_steps_may_be_small_and_balls_end_with_the_pixels():
    assert check_unit("step", 0.1, "l2") == 0.1
    with pytest.raises(ValueError, match=r"step=0.05: .*step='0.05/255'"):
        check_unit("step", 0.05)
    with pytest.raises(ValueError, match="whole range of a pixel"):
        check_ball("1.1/1", "linf")


@pytest.mark.parametrize("attack", [PGD, FGSM, FastAutoAttack, AutoAttack])
def test_every_attack_takes_a_written_unit_and_hands_it_on(attack):
    made = attack("0.25/255")
    assert made.eps == 0.25 == replace(made).eps == attack(made.eps).eps
    assert attack("8/255") == attack(8) and pickle.loads(pickle.dumps(made)) == made
    assert attack("0.5/1", norm="l2").eps == 127.5
    with pytest.raises(ValueError, match="eps=0.25"):
        attack(0.25)
    assert PGD(8, 2, step="0.05/255").step_size == 0.05


def test_units_take_no_torch():
    code = "import sys, sat.arguments, sat.identity, sat.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
