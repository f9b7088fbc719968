"""The strong ensemble: its promises as an attack, exact verdicts, and that it is strong."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import small_network, trained_on_digits
from torch import nn

from sat.attacks import PGD, FastAutoAttack, ensemble
from sat.attacks.apgd import APGDSearch
from sat.attacks.ball import Ball
from sat.attacks.coarse import Tap
from sat.attacks.ensemble import ATTACKS
from sat.attacks.fab import FABSearch, onto_hyperplane
from sat.attacks.network import Network
from sat.attacks.outcomes import WRONG
from sat.attacks.shrinking import ShrinkingAPGDSearch
from sat.attacks.square import SquareSearch
from sat.attacks.targets import ranked
from sat.rng import RowRng

EPS = 25.0  # in 1/255, for the digits


@pytest.fixture(scope="module")
def digits():
    """A small network trained on digits, and 120 test images that it gets right."""
    model, x, y = trained_on_digits(small_network(), epochs=5, batch=100)
    right = (model(x).argmax(1) == y).nonzero()[:120, 0]
    return model, x[right], y[right]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Tiny images need fewer steps than 100 and 5,000."""
    monkeypatch.setattr(ensemble, "SquareSearch", partial(SquareSearch, iterations=300))
    monkeypatch.setattr(ensemble, "APGDSearch", partial(APGDSearch, iterations=20))
    monkeypatch.setattr(ensemble, "FABSearch", partial(FABSearch, iterations=10))
    monkeypatch.setattr(
        ensemble, "ShrinkingAPGDSearch", partial(ShrinkingAPGDSearch, iterations=20)
    )


def stands(attack, model, x, y, **more):
    return attack.verdicts(model, x, y, **more) == -1


class Linear(nn.Module):
    """Two classes, logits w.x and -w.x, so the margin is 2 w.x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        z = (x - 0.5).flatten(1) @ self.w
        return torch.stack([z, -z], 1)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_verdicts_on_a_linear_model_are_exact(name, norm, dual, monkeypatch):
    """An image falls exactly where |w.x| is below eps times the dual norm of w."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(75, generator=generator)
    eps = 8 if norm == "linf" else 60
    reach = eps / 255 * w.norm(p=dual)
    share = torch.linspace(-2, 2, 41)
    share = share[((share.abs() - 1).abs() > 0.02) & (share.abs() > 0.01)]
    if name == "square":  # it comes near the worst point, not onto it
        share = share[(share.abs() < (0.9 if norm == "linf" else 0.5)) | (share.abs() > 1)]
        monkeypatch.setattr(ensemble, "SquareSearch", SquareSearch)  # in full
    x = 0.5 + (share * reach / (w @ w))[:, None] * w
    assert x.min() > eps / 255 and x.max() < 1 - eps / 255  # the range's ends play no part
    y = (share < 0).long()
    found = stands(FastAutoAttack(f"{eps}/255", norm, [name]), Linear(w), x.view(-1, 3, 5, 5), y)
    assert torch.equal(found, share.abs() > 1)


SIZES = {"linf": (EPS, math.inf), "l2": (4 * EPS, 2), "l1": (18 * EPS, 1)}


@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_alone_fells_and_its_falls_are_real(digits, name, norm):
    model, x, y = digits
    eps, order = SIZES[norm]
    x, y = x[:40], y[:40]
    attack = FastAutoAttack(eps, norm, [name])
    x_adv, stand = attack(model, x, y), stands(attack, model, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    size = (x_adv - x).flatten(1).norm(dim=1, p=order)
    assert (size <= eps / 255 * (1 + 1e-5) + 1e-7).all()
    assert torch.equal(model(x_adv).argmax(1) == y, stand)  # in a batch of another size
    assert torch.equal(size > 0, ~stand)
    assert 0.05 < 1 - stand.float().mean() < 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_survivors_survive_pgd_too(digits, norm):
    model, x, y = digits
    eps = EPS if norm == "linf" else 4 * EPS
    pgd = model(PGD(eps, 20, norm=norm)(model, x, y)).argmax(1) == y
    ours = stands(FastAutoAttack(eps, norm, ATTACKS[:2]), model, x, y)
    assert 0 < ours.sum() <= pgd.sum() < len(x)
    assert not (ours & ~pgd).any()


def test_verdicts_depend_on_neither_batch_nor_neighbours(digits):
    model, x, y = digits
    x, y, rng = x[:16], y[:16], RowRng(5, torch.arange(16))
    for names in (ATTACKS[:1], ATTACKS[1:3], ATTACKS[3:]):
        attack = FastAutoAttack(1.5 * EPS, attacks=names)
        whole = attack.verdicts(model, x, y, rng)
        small = replace(attack, batch_size=5).verdicts(model, x, y, rng)
        part = attack.verdicts(model, x[9:13], y[9:13], rng[9:13])
        assert torch.equal(whole, small) and torch.equal(whole[9:13], part)
        assert len(whole.unique()) > 1  # some stand, some fall


def test_the_model_is_left_as_it_was(digits):
    model, x, y = digits
    model.train()
    model[4].eval()
    model[0].bias.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    FastAutoAttack(EPS, attacks=["apgd-ce"]).verdicts(model, x[:5], y[:5])
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 6]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    model[0].bias.requires_grad_(True)
    model.eval()


def test_an_endless_patience_gives_up_nothing(digits, monkeypatch):
    """And the usual one saves evaluations without changing a verdict."""
    model, x, y = digits
    verdicts, evaluations = {}, {}
    for patience in (2.0, None):
        seen = []
        hook = lambda module, inputs, output, seen=seen: seen.append(len(output))  # noqa: E731
        for name, length in (("apgd-t", 21 * 9), ("square", 301)):
            attack = FastAutoAttack(EPS / 2, attacks=[name], patience=patience)
            handle = model[6].register_forward_hook(hook)
            found = attack.verdicts(model, x[:12], y[:12])
            handle.remove()
            verdicts.setdefault(name, []).append(found)
            if patience is None:
                assert sum(seen) >= length * (found == -1).sum()
            evaluations.setdefault(name, []).append(sum(seen))
            seen.clear()
    for name, (usual, endless) in evaluations.items():
        assert usual < 0.8 * endless, name
        assert torch.equal(*verdicts[name])


def test_every_image_is_decided_once_in_each_attack(digits):
    model, x, y = digits
    wrong = y[:20].clone()
    wrong[3] = (wrong[3] + 1) % 10  # wrong when clean
    attack, told = FastAutoAttack(EPS, attacks=ATTACKS[:2]), []
    found = attack.verdicts(model, x[:20], wrong)
    assert found[3] == WRONG and found.dtype == torch.int16
    assert (attack(model, x[:20], wrong)[3] == x[3]).all()
    outcomes = attack._survey(model, x[:20], wrong)
    outcomes.begin, outcomes.changed = (
        lambda *a: told.append([*a, 0]),
        lambda n: told[-1].__setitem__(2, told[-1][2] + n),
    )  # noqa: E501
    attack.run(model, x[:20], wrong, RowRng(0, torch.arange(20)), outcomes)
    assert torch.equal(outcomes.fell, found)
    left = 19 - int((found == 0).sum())
    assert told == [["apgd-ce", 19, 19], ["apgd-t", left, left]]


@pytest.mark.parametrize("names", [ATTACKS[:2], ATTACKS[1:2], ATTACKS[2:]])
def test_a_killed_evaluation_goes_on_to_the_same_verdicts(digits, names):
    model, x, y = digits
    x, y, rng = x[:24], y[:24], RowRng(5, torch.arange(24))
    attack = FastAutoAttack(1.2 * EPS, attacks=names, batch_size=8)
    whole = attack.verdicts(model, x, y, rng)
    outcomes, seen = attack._survey(model, x, y), []

    def kill(images):
        seen.append(images)
        if sum(seen) > 9:
            raise KeyboardInterrupt

    outcomes.changed = kill
    with pytest.raises(KeyboardInterrupt):
        attack.run(model, x, y, rng, outcomes)
    decided = outcomes.fell.clone(), outcomes.passed.clone()
    outcomes.changed, told = lambda images: None, []
    outcomes.begin = lambda name, images: told.append((name, images))
    attack.run(model, x, y, rng, outcomes)
    assert torch.equal(outcomes.fell, whole) and len(whole.unique()) > 1
    assert told[0] == (names[0], 24 - sum(seen)) or sum(seen) >= 24
    assert torch.equal(outcomes.fell[decided[0] >= 0], decided[0][decided[0] >= 0])


class Rippled(nn.Module):
    """Smooth stairs: a true gradient, that rises and falls, and traps an ascent."""

    def forward(self, x):
        return x - 3 * torch.sin(20 * math.pi * x) / (20 * math.pi)


@pytest.fixture(scope="module")
def trapped():
    """A network behind such stairs, trained on digits of 16x16 pixels, and 60 others."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (torch.tensor(images).float() / 16).view(-1, 1, 8, 8)
    x = nn.functional.interpolate(x, size=16, mode="bilinear", align_corners=False)
    y = torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(
        Rippled(), nn.Conv2d(1, 8, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for part in torch.randperm(1700).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False), x[1700:1760], y[1700:1760]


TRAPS = FastAutoAttack(14.0, attacks=("apgd-ce", "fab-t", "square"))


def decided(attack, trapped, parts, told=lambda name: None):
    """The outcomes of a set in `parts`; `told` of each attack that begins."""
    (model, x, y), rng = trapped, RowRng(5, torch.arange(60))
    outcomes = attack._survey(model, x, y)
    outcomes.begin = lambda name, images: told(name)
    attack = attack.of_set(lambda: (x, rng))

    def go_on():
        for each in attack.passes(outcomes):
            for rows in parts:
                each.run(model, x[rows], y[rows], rng[rows], outcomes.part(rows))

    return outcomes, go_on


def test_what_traps_gradients_is_asked_again_in_full(trapped, monkeypatch, caplog):
    """What stands is then what an endless patience leaves, whatever the parts of the set and their
    batches, and after a kill."""
    monkeypatch.setattr(ensemble, "SquareSearch", partial(SquareSearch, iterations=1000))
    (model, x, y), rng = trapped, RowRng(5, torch.arange(60))
    known = TRAPS._survey(model, x, y)
    TRAPS.run(model, x, y, rng, known)
    endless = replace(TRAPS, patience=None).verdicts(model, x, y, rng) == -1
    with caplog.at_level("WARNING", "sat"):
        whole = TRAPS.verdicts(model, x, y, rng)
    assert f"the {int(known.robust.sum())} that stand are asked again" in caplog.text
    assert (known.robust & ~endless).sum() > 1 and torch.equal(whole == -1, endless)

    begun, last = [], [*TRAPS.attacks * 2, *TRAPS.attacks[1:] * 2]

    def die(name):
        begun.append(name)
        if begun == last:  # the second part's Square, for the second time
            raise KeyboardInterrupt

    parts = (slice(0, 25), slice(25, 60))
    outcomes, go_on = decided(replace(TRAPS, batch_size=9), trapped, parts, die)
    with pytest.raises(KeyboardInterrupt):
        go_on()
    left = outcomes.robust.clone()
    outcomes.begin = lambda name, images: begun.append((name, images))
    go_on()
    assert torch.equal(outcomes.fell, whole)
    assert begun[len(last) :] == [("square", int(left[25:].sum()))]
    go_on()  # there is nothing left to ask
    assert len(begun) == len(last) + 1


def test_an_honest_network_is_asked_once(digits):
    model, x, y = digits
    begun, outcomes = [], TRAPS._survey(model, x, y)
    outcomes.begin = lambda name, images: begun.append(name)
    for each in replace(TRAPS, eps=EPS / 2).passes(outcomes):
        each.run(model, x, y, RowRng(0, torch.arange(len(x))), outcomes)
    assert begun == [*TRAPS.attacks] and outcomes.robust.any()


def test_where_nothing_was_given_up_nothing_is_asked_again(trapped, monkeypatch):
    monkeypatch.setattr(ensemble, "SquareSearch", partial(SquareSearch, iterations=1000))
    begun, endless = [], replace(TRAPS, attacks=("apgd-ce", "square"), patience=None)
    outcomes, go_on = decided(endless, trapped, (slice(0, 60),), begun.append)
    go_on()
    assert begun == [*endless.attacks] and (outcomes.fell == 1).sum() > 1


def test_what_square_takes_before_a_gradient_is_no_sign_of_a_trap(trapped, monkeypatch):
    monkeypatch.setattr(ensemble, "SquareSearch", partial(SquareSearch, iterations=1000))
    begun, other = [], replace(TRAPS, attacks=("apgd-ce", "square", "fab-t"))
    outcomes, go_on = decided(other, trapped, (slice(0, 60),), begun.append)
    go_on()
    assert begun == [*other.attacks] and (outcomes.fell == 1).sum() > 1


class Masked(nn.Module):
    """A model whose gradient is 0 everywhere: its input is rounded."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 32).round() / 32)


def test_square_needs_no_gradient(digits):
    model, x, y = digits
    masked, x, y = Masked(model), x[:40], y[:40]
    right = masked(x).argmax(1) == y
    gradients = FastAutoAttack(2 * EPS, attacks=["apgd-t"]).verdicts(masked, x, y)
    square = FastAutoAttack(2 * EPS, attacks=["square"]).verdicts(masked, x, y)
    assert (square[right] == 0).sum() > (gradients[right] == 0).sum() + 5


@pytest.mark.parametrize("offset", [0, 1e3, 1e4])
def test_what_logits_have_in_common_moves_no_verdict(digits, offset):
    model, x, y = digits
    bias = model[6].bias
    attack = FastAutoAttack(EPS, attacks=ATTACKS[:1], batch_size=40)
    before = stands(attack, model, x[:40], y[:40])
    with torch.no_grad():
        bias += offset
    try:
        after = stands(attack, model, x[:40], y[:40])
    finally:
        with torch.no_grad():
            bias -= offset
    assert 3 < before.sum() < 37 and (before != after).sum() <= (1 if offset else 0)


class Broken(nn.Module):
    """Gives no finite logits near the decision boundary."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x)
        top = logits.topk(2, dim=1).values
        return torch.where((top[:, :1] - top[:, 1:]) < 1, torch.nan, logits)


def test_logits_that_are_not_finite_are_no_right_answer(digits):
    model, x, y = digits
    attack = FastAutoAttack(EPS, attacks=ATTACKS[:1])
    sound, broken = (stands(attack, net, x[:40], y[:40]) for net in (model, Broken(model)))
    assert 3 < sound.sum() and not (broken & ~sound).any() and broken.sum() <= sound.sum()


class Rounding(nn.Module):
    """A classifier whose search precision, when in use, calls every image wrong."""

    autocast = torch.bfloat16

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        if self.autocast is None:
            return self.inner(x)
        with torch.autocast("cpu", self.autocast):
            return -self.inner(x).float()


def test_only_float32_decides(digits, monkeypatch):
    model, x, y = digits
    monkeypatch.setattr(ensemble, "bf16_pays", lambda kind: True)
    rounding = Rounding(model)
    attack = FastAutoAttack(1.0, attacks=["apgd-ce"])
    x_adv, stand = attack(rounding, x[:20], y[:20]), stands(attack, rounding, x[:20], y[:20])
    assert torch.equal(model(x_adv).argmax(1) == y[:20], stand) and stand.sum() > 10
    assert rounding.autocast is torch.bfloat16


class ExactHead(nn.Module):
    """A classifier that keeps its last layer out of autocast."""

    autocast = torch.bfloat16

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 10)

    def forward(self, x):
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            features = self.body(x).flatten(1)
            with torch.autocast("cpu", enabled=False):
                return self.head(features.float())


@pytest.mark.parametrize("few", [[5.0, -5.0], [5.0, -5.0, -5.0], [5.0, 4.0, 0.0, -5.0]])
def test_float32_is_asked_near_a_fall_however_few_the_classes(few):
    """At the edge of two classes both logits may be near 0, and what is rounded before is not."""
    head = ExactHead()
    with torch.no_grad():
        head.head = nn.Linear(8 * 36, len(few))
        head.head.weight.zero_()
        head.head.bias.copy_(torch.tensor(few))
    x, ball = torch.rand(4, 1, 8, 8), Ball(0.1, "linf")
    network = Network(head.eval().requires_grad_(False), torch.bfloat16, x, ball).of_set(x)
    rest = [-5.0] * (len(few) - 2)
    logits = torch.tensor([[0.01, -0.01, *rest], [5.0, 4.97, *rest], [0.5, -0.5, *rest]])
    asked = network.may_fall(logits, torch.zeros(3, dtype=torch.long))
    assert asked.tolist() == [True, True, False]
    assert not network.in_float32().may_fall(logits, torch.zeros(3, dtype=torch.long)).any()


def test_a_part_that_autocast_leaves_alone_is_left_alone_by_the_search():
    model = ExactHead().eval().requires_grad_(False)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    network = Network(model, torch.bfloat16, x, Ball(8 / 255, "linf"))
    logits, losses, gradient = network.gradient(x, lambda z: z.gather(1, y[:, None])[:, 0])
    assert torch.equal(logits, model(x)) and gradient.abs().max() > 0
    assert network.low.autocast is torch.bfloat16


class OnlyFloat32(nn.Module):
    """A network of somebody else, which knows of no other."""

    autocast = None

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            logits = self.net(x)
        assert logits.dtype == torch.float32, "fewer bits than I can take"
        return logits


def test_a_network_that_takes_no_fewer_bits_is_searched_in_float32():
    model, x = OnlyFloat32().eval().requires_grad_(False), torch.rand(4, 1, 8, 8)
    network = Network(model, torch.bfloat16, x, Ball(8 / 255, "linf"))
    assert network.low is network.fast and network.near == 0.0


def test_the_search_takes_fewer_bits_under_no_grad_too():
    x, ball = torch.rand(4, 1, 8, 8), Ball(8 / 255, "linf")
    with torch.no_grad():
        network = Network(ExactHead().eval().requires_grad_(False), torch.bfloat16, x, ball)
    assert network.low is not network.fast and network.near > 0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes(digits, classes):
    """Fewer targets than nine, and no third or fourth logit to scale with."""
    model, x, y = digits
    few = nn.Sequential(model, nn.Linear(10, classes, bias=False))
    with torch.no_grad():
        few[1].weight.copy_(torch.eye(10)[:classes])
    x, y = x[y < classes], y[y < classes]
    for name in ATTACKS[1:3]:
        found = FastAutoAttack(2 * EPS, attacks=[name]).verdicts(few, x, y)
        assert (found == 0).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_hyperplane_projection_is_the_nearest_in_the_box(norm):
    generator = torch.Generator().manual_seed(0)
    t, w = torch.rand(2, 200, 30, generator=generator)
    w = 2 * w - 1
    c = 2 * torch.rand(200, generator=generator) - 1
    d = onto_hyperplane(t, w, c, norm)
    assert (t + d).min() >= -1e-6 and (t + d).max() <= 1 + 1e-6
    room = torch.where(-w * c[:, None] > 0, 1 - t, t)
    possible = (w.abs() * room).sum(1) > c.abs()
    assert 100 < possible.sum()
    assert ((w * d).sum(1) + c)[possible].abs().max() < 1e-5
    # No other point of the hyperplane and the box is nearer: mixtures with random ones are not.
    for other in SIZES.keys() - {norm}:
        size = onto_hyperplane(t, w, c, other).norm(p=SIZES[norm][1], dim=1)
        assert (d.norm(p=SIZES[norm][1], dim=1) <= size + 1e-5)[possible].all()


@pytest.mark.parametrize("name", ATTACKS[:3])
def test_the_attacks_of_l1_are_those_of_the_package(digits, name, monkeypatch):
    """Larger balls first, several starts, few targets: as many images fall, but for chance."""
    from pyautoattack import AutoAttack as Package

    model, x, y = digits
    package = Package(model, norm="L1", eps=1.2, seed=0)
    package.verbose, package.attacks_to_run = False, [name]
    for part, length in ((package.apgd, 20), (package.apgd_targeted, 20), (package.fab, 10)):
        part.n_iter = part.n_iter_orig = length
    theirs = package.run_standard_evaluation(x[:40], y[:40])[1] == y[:40]
    for patience in (None,) if name == "fab-t" else (None, 2.0):  # FAB's rounds are too short here
        attack = FastAutoAttack("1.2/1", "l1", [name], patience=patience)
        ours = stands(attack, model, x[:40], y[:40])
        assert 8 < ours.sum() < 32 and (ours != theirs).sum() <= 1


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"eps": 8 / 255}, "eps=0.03"),
        ({"eps": 300}, "eps=300"),
        ({"attacks": ["apgd"]}, "attacks="),
        ({"attacks": []}, "attacks="),
        ({"batch_size": 0}, "batch_size=0"),
        ({"patience": 0.5}, "patience=0.5"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, key):
    with pytest.raises(ValueError, match=key):
        FastAutoAttack(**wrong)


class WithoutTheThird(nn.Module):
    def forward(self, z):
        return z.index_fill(1, torch.tensor([2]), -math.inf)


@pytest.mark.parametrize(
    "norm, lengths", [("linf", [10, 4, 1]), ("l2", [82**0.5, 10**0.5, 1]), ("l1", [9, 3, 1])]
)
def test_the_nearest_target_is_the_first_of_malt(norm, lengths):
    """By hand, of a linear model: the margin over the dual norm of the difference of weights. A
    class that no point can reach is none."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False)).requires_grad_(False)
    model[1].weight.copy_(torch.diag(torch.tensor([1.0, 9.0, 3.0, 0.0])))
    x, y = torch.tensor([0.8, 0.05, 1 / 6, 0.5]).view(1, 1, 2, 2), torch.tensor([0])
    far = {1: 0.35 / lengths[0], 2: 0.3 / lengths[1], 3: 0.8 / lengths[2]}
    assert ranked("likeliest", model, x, y, norm).tolist() == [[2, 1, 3]]
    assert ranked("malt", model, x, y, norm).tolist() == [sorted(far, key=far.get)]
    assert ranked("auto", model, x, y, norm).tolist() == [[2, 1, 3]]  # none is left out
    masked = nn.Sequential(model, WithoutTheThird())
    assert ranked("malt", masked, x, y, norm).tolist() == [[1, 3, -1]]


def test_of_many_classes_the_nearest_nine_are_tried():
    """By hand: class k is 11 - k behind and k steep, but the tenth, the likeliest, is flat."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 11)).requires_grad_(False)
    model[1].weight.copy_(torch.tensor([*range(10), 0.05])[:, None])
    model[1].bias.copy_(torch.tensor([0.0, *range(-10, 0)]))
    x, y = torch.zeros(1, 1, 1, 1), torch.tensor([0])
    assert ranked("likeliest", model, x, y, "linf").tolist() == [[*range(10, 1, -1)]]
    assert ranked("auto", model, x, y, "linf").tolist() == [[*range(9, 0, -1)]]


class Once(torch.autograd.Function):
    """As torch.compile's: a backward that was made to free what it was given can't keep it."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, slope):
        if torch._C._autograd._get_current_graph_task_keep_graph():
            raise RuntimeError("compiled with non-empty donated buffers")
        return slope


class Compiled(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_a_backward_that_runs_once_serves_malt_and_the_search_of_layers():
    model = nn.Sequential(nn.Flatten(), Compiled(), nn.Linear(4, 12)).requires_grad_(False)
    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long)
    twice = nn.Sequential(model[0], model[2])
    assert torch.equal(ranked("auto", model, x, y, "l2"), ranked("auto", twice, x, y, "l2"))
    assert Tap.of(twice, x) and Tap.of(model, x) is None


def test_pma_fells_as_much(digits):
    model, x, y = digits
    usual = stands(FastAutoAttack(EPS), model, x, y)
    verdicts = FastAutoAttack(EPS, attacks=("apgd-pma", *ATTACKS[1:])).verdicts(model, x, y)
    assert (verdicts == 0).sum() > 20
    assert ((verdicts == -1) != usual).sum() <= 1


def test_the_nearest_target_fells_as_much_as_all(digits, monkeypatch):
    """Nearly: a class at random would leave most; the images come in parts of a batch's size."""
    model, x, y = digits
    of, seen = {"attacks": ("apgd-t",), "batch_size": 50}, []
    usual = stands(FastAutoAttack(EPS, **of), model, x, y)

    def first(choice, model, x, *more):
        seen.append(len(x))
        return ranked(choice, model, x, *more)[:, :1]

    monkeypatch.setattr(ensemble, "ranked", first)
    nearest = stands(FastAutoAttack(EPS, **of, targets="malt"), model, x, y)
    assert seen == [50, 50, 20]
    assert (nearest != usual).sum() <= 2
