"""Which images a step takes: by epochs, and two sets at a ratio."""

from types import SimpleNamespace

import pytest
import torch

from sat.data import Loader, Standard
from sat.data.samplers import Epochs, Mixture
from sat.errors import Refused
from sat.training.preflight import check_sampler


def test_an_epoch_has_every_image_once_and_a_step_depends_on_no_other():
    steps = [Epochs()(0, step, 4, (10,)) for step in range(10)]
    places = torch.cat(steps)
    for epoch in places.view(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(places[:10], places[10:20])
    assert torch.equal(Epochs()(0, 7, 4, (10,)), steps[7])
    assert not torch.equal(Epochs()(1, 7, 4, (10,)), steps[7])


@pytest.mark.parametrize("fraction, batch, extra", [(0.7, 64, 44), (0.7, 10, 7), (0.5, 5, 2)])
def test_a_mixture_holds_its_ratio_exactly(fraction, batch, extra):
    """floor(fraction * batch) of the second set in each batch; of the first one, epochs."""
    mixture, n, m = Mixture(fraction), 90, 1000
    steps = [mixture(3, step, batch, (n, m)) for step in range(60)]
    for indices in steps:
        assert len(indices) == batch and int((indices >= n).sum()) == extra
        assert indices.min() >= 0 and indices.max() < n + m
    real = torch.cat([indices[indices < n] for indices in steps])
    for start in range(0, len(real) - n + 1, n):  # in a batch they lie in any order
        seen = real[max(0, start - batch) : start + n + batch]
        assert seen.unique().numel() == n
    counts = real.bincount(minlength=n)
    assert counts.max() - counts.min() <= 1


def test_a_mixture_lies_in_any_order_in_a_batch():
    """So that accumulation parts and processes, which take neighbouring rows, have both sets."""
    own = torch.stack([Mixture(0.5)(0, step, 64, (100, 100)) < 100 for step in range(50)])
    halves = own[:, :32].float().mean(1)
    assert 0.3 < halves.min() and halves.max() < 0.7 and halves.std() > 0.01


def test_a_share_of_less_than_an_image_is_refused():
    with pytest.raises(ValueError, match="fraction=0.01: of 64 images a batch is not one"):
        Mixture(0.01)(0, 0, 64, (100, 100))
    assert int((Mixture(0.29)(0, 0, 100, (9, 9)) >= 9).sum()) == 29  # int(0.29 * 100) is 28


def test_a_mixture_resumes_where_it_was():
    mixture = Mixture(0.7)
    every = [mixture(5, step, 32, (100, 300)) for step in range(40)]
    resumed = [Mixture(0.7)(5, step, 32, (100, 300)) for step in range(25, 40)]
    assert all(torch.equal(a, b) for a, b in zip(every[25:], resumed, strict=True))


def test_the_second_set_is_drawn_with_replacement_and_evenly():
    drawn = torch.cat([Mixture(0.5)(0, step, 64, (64, 50)) for step in range(400)])
    counts = (drawn[drawn >= 64] - 64).bincount(minlength=50).float()
    assert counts.min() > 0 and (counts / counts.mean() - 1).abs().max() < 0.25


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 7])
def test_a_fraction_is_a_share(fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction}"):
        Mixture(fraction)


def loader(sampler, size, images):
    data = SimpleNamespace(sizes=(images,), mixture=None)
    return Loader(data, Standard(), sampler, size, seed=0)


def test_a_sampler_is_tried_before_the_run():
    check_sampler(loader(Epochs(), 64, 10))
    with pytest.raises(Refused, match=r"sampler.fraction=0.7: a mixture takes two sets, not 1"):
        check_sampler(loader(Mixture(), 64, 100))
    for wrong in (torch.arange(7), torch.arange(8.0), torch.arange(8) + 3, torch.arange(8) - 1):
        with pytest.raises(Refused, match="must give 8 places, int64, of 10 images"):
            check_sampler(loader(lambda *given, wrong=wrong: wrong, 8, 10))
