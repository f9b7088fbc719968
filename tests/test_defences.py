"""Defences that hide from gradients are found out, honest networks are believed, and other
people's attacks fell nothing that `strong` leaves."""

import pytest
import torch
import torch.nn.functional as F
from conftest import small_network, trained_on_digits
from torch import nn

import sat
from sat.attacks import PGD, FastAutoAttack, MinimalNorm
from sat.config import composed
from sat.evaluation.curves import curve_result
from sat.evaluation.masking_checks import masking_checks
from sat.evaluation.measure import measure
from sat.evaluation.settings import Evaluation
from sat.rng import RowRng
from sat.training.preflight import attacks_of, check_packages, check_sizes

EPS = 25.0  # in 1/255, for the digits


@pytest.fixture(scope="module")
def honest():
    """A small network after adversarial training on digits, and 64 test images."""
    model, x, y = trained_on_digits(small_network(), 5, 100)
    return model, x[:64], y[:64]


class Around(nn.Module):
    """A network behind something that is done with its image, and before something that is done
    with its logits."""

    def __init__(self, inner, before=nn.Identity(), after=nn.Identity()):  # noqa: B008
        super().__init__()
        self.inner, self.before, self.after = inner, before, after
        self.eval()

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


class WinnersTakeAll(nn.Module):
    """k-WTA: an image's largest twentieth of activations, the others 0 (Xiao et al. 2020)."""

    def forward(self, x):
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 20, 1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def thermometer(x):
    """Sixteen levels, each reached or not (Buckman et al. 2018)."""
    return (x - torch.arange(16).view(-1, 1, 1) / 16).clamp(0, 1).ceil()


def resized(x):
    """Shrunk and put somewhere, at random (Xie et al. 2018)."""
    size = int(torch.randint(6, 8, ()))
    left, top = torch.randint(0, 9 - size, (2,)).tolist()
    image = F.interpolate(x, (size, size), mode="nearest")
    return F.pad(image, (left, 8 - size - left, top, 8 - size - top))


def trained(network, epochs, loss=F.cross_entropy):
    """The network after training on clean digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:1400]
    x = (torch.tensor(images).float() / 16).view(-1, 1, 8, 8)[order]
    y = torch.tensor(labels)[order]
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            loss(network(x[part]), y[part]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return network.eval()


def of_winners(inner):
    return trained(
        nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), WinnersTakeAll(), nn.Conv2d(32, 32, 3, 2, 1),
            WinnersTakeAll(), nn.Flatten(), nn.Linear(512, 10),
        ), 2,
    )  # fmt: skip


def of_levels(inner):
    first = nn.Conv2d(16, 8, 3, 2, 1)
    network = nn.Sequential(first, nn.SiLU(), nn.Flatten(), nn.Linear(128, 10))
    return trained(Around(network, before=thermometer), 2)


def distilled(inner):
    """Trained at a temperature of 100, used at 1 (Papernot et al. 2016)."""
    return trained(small_network(), 3, lambda logits, y: F.cross_entropy(logits / 100, y))


class StraightThrough(torch.autograd.Function):
    """An image of which every third column has no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * (torch.arange(slope.shape[-1]) % 3 > 0)


DEFENCES = {
    "straight through": (lambda m: Around(m, before=StraightThrough.apply), "wrong_gradient"),
    "rounded logits": (lambda m: Around(m, after=lambda z: (4 * z).round() / 4), "coarse"),
    "saturated softmax": (lambda m: Around(m, after=lambda z: (50 * z).softmax(1)), "saturated"),
    "winners take all": (of_winners, "black_box"),
    "distillation": (distilled, "saturated"),
    "thermometer": (of_levels, "black_box"),
    "random resize": (lambda m: Around(m, before=resized), "stochastic"),
    "huge logits": (lambda m: Around(m, after=lambda z: 1e4 * z), "saturated"),
}


def alarms(model, x, y, eps=EPS):
    rng = RowRng(0, torch.arange(len(x)))
    return {alarm.name for alarm in masking_checks(model, x, y, PGD(eps, 20), rng).alarms}


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_that_hides_from_gradients_is_found_out(name, honest):
    torch.manual_seed(0)
    model, x, y = honest
    make, alarm = DEFENCES[name]
    assert alarm in alarms(make(model), x, y)


def honest_network(k):
    """One of twenty: of two widths, five activations, trained with and without an attack."""
    torch.manual_seed(k)
    act = (nn.ReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Softplus)[k % 5]
    width = 8 if k % 2 else 16
    network = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), act(),
        nn.Conv2d(width, width, 3, 2, 1), act(), nn.Flatten(), nn.Linear(16 * width, 10),
    )  # fmt: skip
    return trained(network, 2) if k < 10 else trained_on_digits(network, 2, 50)[0]


@pytest.mark.parametrize("k", [3, 16])  # all of range(20) pass; two are enough for every day
def test_an_honest_network_is_believed(k, honest):
    _, x, y = honest
    assert alarms(honest_network(k), x, y, 6 if k < 10 else EPS) == set()


# other people's attacks ---------------------------------------------------------------------------


def left_by_strong(model, x, y, eps, norm):
    found = sat.evaluate(model, x, y, eps, norm, masking_checks=0, progress=False,
                         attack=FastAutoAttack(eps, norm, ("apgd-ce", "apgd-t")))  # fmt: skip
    return x[found.standing], y[found.standing]


@pytest.mark.parametrize("norm, eps", [("linf", EPS), ("l2", 3 * EPS)])
def test_what_strong_leaves_withstands_adv_libs_attacks(norm, eps, honest):
    pytest.importorskip("adv_lib", reason="adv-lib is not installed")
    from sat.attacks.minimal_norm import adv_lib

    x, y = left_by_strong(*honest, eps, norm)
    smallest = 255 * MinimalNorm(eps, norm).distances(honest[0], x, y)
    assert len(x) > 10 and (smallest > eps).all()
    points = adv_lib().apgd(honest[0], x, y, eps=eps / 255, norm={"linf": torch.inf, "l2": 2}[norm])
    assert (honest[0](points).argmax(1) == y).all()


def test_what_strong_leaves_withstands_torchattacks_pgd(honest):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    x, y = left_by_strong(*honest, EPS, "linf")
    points = torchattacks.PGD(honest[0], eps=EPS / 255, alpha=EPS / 1020, steps=50)(x, y)
    assert len(x) > 10 and (honest[0](points).argmax(1) == y).all()


class Library:
    """In place of adv_lib: moves every pixel up by 10/255 and down by 40/255."""

    @staticmethod
    def fmn(model, x, y, norm, steps):
        return x + 10 / 255

    @staticmethod
    def ddn(model, x, y, steps, levels):
        return x - 40 / 255


class Brighter(nn.Module):
    """Class 1 where the mean is above the mark."""

    def forward(self, x):
        level = x.flatten(1).mean(1) - 0.5
        return torch.stack([-level, level], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_curve_falls_where_the_smallest_perturbation_is_as_large(norm, monkeypatch):
    monkeypatch.setattr("sat.attacks.minimal_norm.adv_lib", Library)
    levels = 0.5 + torch.tensor([-50.0, -5, -2, 20, 60]) / 255
    x, y = levels.view(-1, 1, 1, 1) * torch.ones(1, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1])
    curve = MinimalNorm(10, norm, most=10)
    size = 1 if norm == "linf" else 2  # of four pixels' perturbation, in one pixel's
    inf = torch.inf
    expected = [inf, 10 * size, 10 * size, inf if norm == "linf" else 40 * size, inf]
    found = 255 * curve.distances(Brighter(), x, y)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    from sat.attacks.outcomes import AttackOutcomes

    outcomes = AttackOutcomes.new(curve.names, 5)
    measure(Brighter(), iter([(torch.arange(5), x, y)]), curve, 0, outcomes)
    told = curve_result(curve, outcomes, y, ("dark", "light"), {})
    accuracy = {point.eps: point.accuracy for point in told.points}
    assert accuracy[0] == accuracy[10 * size - 1] == 1 and accuracy[10 * size] == 0.6
    assert told.median is None if norm == "linf" else 79 < told.median <= 80
    assert told.norm == norm and told.eps == 10


def test_without_adv_lib_one_line_names_it(monkeypatch):
    from sat.attacks import minimal_norm
    from sat.errors import Refused

    monkeypatch.setitem(__import__("sys").modules, "adv_lib", None)
    with pytest.raises(Refused, match="pip install --no-deps adv-lib"):
        minimal_norm.adv_lib()
    with pytest.raises(Refused, match="pip install --no-deps adv-lib"):  # before a training
        check_packages(Evaluation(curves={"mine": MinimalNorm(10)}))


def test_a_curve_of_smallest_perturbations_is_had_for_any_number_of_classes():
    asked = composed(["evaluation=minimal_norm"])
    assert "evaluation.curves.minimal_norm.attack" in attacks_of(asked)
    check_sizes(asked, held_out=100, classes=2, pixels=8)
