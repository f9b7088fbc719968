"""Random numbers that depend on a key and a row alone."""

import pytest
import torch

from sat.rng import RowRng, seed_of


def test_rows_decide_alone():
    whole = RowRng(7, torch.arange(50))
    some = torch.tensor([3, 41, 8])
    for draw in (whole.uniform, whole.normal):
        part = getattr(whole[some], draw.__name__)("noise", 3, 4)
        assert torch.equal(draw("noise", 3, 4)[some], part)


def test_every_key_name_and_row_draws_others():
    rows = torch.arange(4)
    a, b = RowRng(1, rows).uniform("a", 64), RowRng(1, rows).uniform("b", 64)
    c = RowRng(2, rows).uniform("a", 64)
    for x, y in ((a, b), (a, c), (a[0], a[1])):
        assert (x != y).float().mean() > 0.99


def test_uniform_and_normal_have_their_moments():
    n = 200_000
    u = RowRng(3, torch.arange(20)).uniform("u", n // 20).double()
    z = RowRng(3, torch.arange(20)).normal("z", n // 20).double()
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / (12 * n) ** 0.5
    assert abs(u.var() - 1 / 12) < 0.001
    assert abs(z.mean()) < 4 / n**0.5 and abs(z.var() - 1) < 0.015
    assert abs((z**4).mean() - 3) < 0.1


def test_every_bit_of_the_fraction_is_fair_and_rows_are_uncorrelated():
    u = RowRng(11, torch.arange(64)).uniform("u", 4096)
    bits = (u[..., None] * 2 ** torch.arange(1, 17)).long() % 2
    assert (bits.float().mean((0, 1)) - 0.5).abs().max() < 0.005
    correlation = torch.corrcoef(u).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / 4096**0.5


def test_coin_falls_as_often_as_asked():
    falls = [RowRng(key, torch.arange(1)).coin("c", 0.2) for key in range(2000)]
    assert 0.17 < sum(falls) / 2000 < 0.23
    assert not RowRng(0, torch.arange(1)).coin("c", 0.0)
    assert RowRng(0, torch.arange(1)).coin("c", 1.0)


def test_seed_of_is_stable():
    """A changed value would change every run."""
    assert seed_of(0, "attack", 5) == seed_of(0, "attack", 5) != seed_of(0, "attack", 6)
    assert 0 <= seed_of(2**31 - 1, "x") < 2**31
    assert seed_of(0, "order", 0) == 1766201352


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_bits_on_a_gpu():
    rows = torch.arange(9)
    on_gpu = RowRng(5, rows.cuda()).uniform("u", 33)
    assert torch.equal(RowRng(5, rows).uniform("u", 33), on_gpu.cpu())
