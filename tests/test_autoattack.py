"""The trusted ensemble: the package's own verdicts, kept attack by attack, resumable."""

from itertools import product

import pytest
import torch
from conftest import trained_on_digits
from torch import nn

import sat
from sat.attacks import AutoAttack
from sat.attacks import autoattack as module
from sat.attacks.outcomes import STANDS, WRONG, AttackOutcomes
from sat.config import composed
from sat.errors import Refused
from sat.rng import RowRng
from sat.training.preflight import check_sizes

EPS = 25.0  # in 1/255, for the digits


@pytest.fixture(scope="module")
def digits():
    """A small network trained on digits for a moment, and 40 test images, some of them wrong."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    model, x, y = trained_on_digits(network, epochs=1, batch=50)
    return model, x[:40], y[:40]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Fewer queries and steps than the package's 5,000 and 100."""
    from pyautoattack import autoattack

    monkeypatch.setattr(autoattack, "SquareAttack", shorter(autoattack.SquareAttack, n_queries=60))
    for name in ("APGDAttack", "APGDAttack_targeted", "FABAttack_PT"):
        monkeypatch.setattr(autoattack, name, shorter(getattr(autoattack, name), n_iter=5))
    versions = autoattack.AutoAttack._set_version

    def capped(self, version):
        versions(self, version)
        self.square.n_queries = 60

    monkeypatch.setattr(autoattack.AutoAttack, "_set_version", capped)


def shorter(kind, **changes):
    def build(*args, **given):
        return kind(*args, **{**given, **changes})

    return build


def surveyed(attack, model, x, y):
    outcomes = AttackOutcomes.new(attack.names, len(x))
    outcomes.fell[model(x).argmax(1) != y] = WRONG
    return outcomes


@pytest.mark.parametrize("norm, eps", [("linf", EPS), ("l2", 4 * EPS)])
def test_the_verdicts_are_those_of_one_call_of_the_package(digits, norm, eps):
    from pyautoattack import AutoAttack as Package

    model, x, y = digits
    attack = AutoAttack(eps, norm, batch_size=9)
    outcomes = surveyed(attack, model, x, y)
    attack.run(model, x, y, RowRng(7, torch.arange(len(x))), outcomes)
    package = Package(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps / 255, seed=7)
    _, found = package.run_standard_evaluation(x, y, batch_size=9)
    assert torch.equal(outcomes.robust, found == y)
    assert 0 < outcomes.robust.sum() < outcomes.clean.sum() < len(x)
    assert len(outcomes.fell[outcomes.fell >= 0].unique()) > 1  # more than one attack felled


def test_versions_and_custom_attacks(digits, monkeypatch):
    model, x, y = digits
    x, y = x[:6], y[:6]
    ran = []
    from pyautoattack import autoattack

    for name in ("APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "SquareAttack"):

        class Noted:
            eot_iter, n_target_classes, n_restarts, n_queries, targeted = 1, 9, 1, 1, False
            loss, seed = None, None

            def __init__(self, *a, label=name, **k):
                self.label = label

            def perturb(self, x, y):
                ran.append(f"{self.label}:{self.loss}:{self.targeted}:{self.eot_iter}")
                return x

        monkeypatch.setattr(autoattack, name, Noted)
    expected = {
        "standard": ["APGDAttack:ce:False:1", "APGDAttack_targeted:None:False:1",
                     "FABAttack_PT:None:True:1", "SquareAttack:None:False:1"],
        "plus": ["APGDAttack:ce:False:1", "APGDAttack:dlr:False:1", "FABAttack_PT:None:False:1",
                 "SquareAttack:None:False:1", "APGDAttack_targeted:None:False:1",
                 "FABAttack_PT:None:True:1"],
        "rand": ["APGDAttack:ce:False:20", "APGDAttack:dlr:False:20"],
        "custom": ["SquareAttack:None:False:1"],
    }  # fmt: skip
    for version, calls in expected.items():
        attack = AutoAttack(
            EPS, version=version, attacks=("square",) * (version == "custom") or None
        )
        outcomes = AttackOutcomes.new(attack.names, len(x))
        attack.run(model, x, y, RowRng(0, torch.arange(6)), outcomes)
        assert ran == calls and (outcomes.fell[model(x).argmax(1) == y] == STANDS).all()
        assert (outcomes.passed[outcomes.robust] == len(calls)).all()
        ran.clear()


def test_a_killed_evaluation_goes_on_to_the_same_verdicts(digits):
    model, x, y = digits
    attack, rng = AutoAttack(EPS, batch_size=7), RowRng(3, torch.arange(len(x)))
    whole = surveyed(attack, model, x, y)
    attack.run(model, x, y, rng, whole)
    outcomes, decided = surveyed(attack, model, x, y), []

    def kill(images):
        decided.append(images)
        if len(decided) == 7:
            raise KeyboardInterrupt

    outcomes.changed = kill
    with pytest.raises(KeyboardInterrupt):
        attack.run(model, x, y, rng, outcomes)
    begun = []
    outcomes.changed, outcomes.begin = (
        lambda n: None,
        lambda name, images: begun.append((name, images)),
    )
    attack.run(model, x, y, rng, outcomes)
    assert torch.equal(outcomes.fell, whole.fell) and (outcomes.passed == whole.passed).all()
    first = int(whole.clean.sum())
    assert first > 14 and sum(decided) > first  # it was killed in the second attack
    assert begun[0][0] == "apgd-t" and begun[0][1] < first - int((whole.fell == 0).sum())


def test_generators_and_model_are_left_as_they_were(digits):
    model, x, y = digits
    before, modes = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    x_adv = AutoAttack(EPS, version="custom", attacks=("apgd-ce",))(model, x[:5], y[:5])
    assert torch.equal(torch.get_rng_state(), before) and x_adv.shape == x[:5].shape
    assert ((x_adv - x[:5]).abs() <= EPS / 255 + 1e-6).all()
    assert [p.requires_grad for p in model.parameters()] == modes


def test_what_the_package_warns_of_is_logged_once(digits, monkeypatch):
    model, x, y = digits
    probabilities, said = nn.Sequential(model, nn.Softmax(1)), []
    monkeypatch.setattr(module.log, "warning", lambda text, *values: said.append(text % values))
    attack = AutoAttack(EPS, version="custom", attacks=("square",), batch_size=5)
    outcomes = surveyed(attack, model, x, y)
    attack.run(probabilities, x, y, RowRng(0, torch.arange(len(x))), outcomes)
    assert len(said) == 1 and "probability distribution" in said[0]


def test_few_classes_have_fewer_targets(digits):
    model, x, y = digits
    few = nn.Sequential(model, nn.Linear(10, 5, bias=False))
    with torch.no_grad():
        few[1].weight.copy_(torch.eye(10)[:5])
    x, y = x[y < 5][:6], y[y < 5][:6]
    attack = AutoAttack(2 * EPS, version="custom", attacks=("apgd-t", "fab-t"))
    outcomes = surveyed(attack, few, x, y)
    attack.run(few, x, y, RowRng(0, torch.arange(len(x))), outcomes)
    assert (outcomes.fell >= 0).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_sizes_on_which_its_square_cannot_begin_are_refused_before_anything_runs(norm):
    """Just those: the package is asked on all of up to 20 pixels a side."""
    from pyautoattack.square import SquareAttack

    attack, refused = AutoAttack("0.5/1", norm), set()
    for height, width in product(range(1, 21), repeat=2):
        try:
            attack.check_size(height, width)
        except ValueError as error:
            refused.add((height, width))
            assert f"{height}x{width} pixels; take attack='strong'" in str(error)
        x, y = torch.zeros(1, 1, height, width), torch.zeros(1, dtype=torch.long)
        kind = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        square = SquareAttack(lambda x: torch.tensor([[0.0, 1.0]]), norm=kind, eps=0.5, n_queries=1)
        square.device = x.device
        square.init_hyperparam(x)
        begins = True
        try:
            square.attack_single_run(x, y)
        except (RuntimeError, ZeroDivisionError):
            begins = False
        assert begins == ((height, width) not in refused), (height, width)
    assert (14, 14) in refused and (8, 8) not in refused if norm != "linf" else not refused
    AutoAttack("0.5/1", norm, "rand").check_size(14, 14)  # without Square
    asked = composed(["evaluation=autoattack", "evaluation.attacks.autoattack.norm=l2"])
    with pytest.raises(Refused, match=r"evaluation\.attacks\.autoattack\.norm=l2: .*14x14"):
        check_sizes(asked, 100, 10, 14)
    if norm != "linf":
        x, net = torch.rand(2, 1, 14, 14), nn.Sequential(nn.Flatten(), nn.Linear(196, 5))
        with pytest.raises(ValueError, match=f"norm={norm}: .*14x14"):
            sat.evaluate(net, x, torch.zeros(2).long(), "0.5/1", norm, "autoattack")


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"eps": 8 / 255}, "eps=0.03"),
        ({"version": "custom"}, "version=custom"),
        ({"attacks": ["square"]}, "version=standard"),
        ({"version": "custom", "attacks": ["pgd"]}, "attacks="),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, key):
    with pytest.raises(ValueError, match=key):
        AutoAttack(**wrong)
