"""What flattered a network once, and the rule of a verdict: each test failed before its mend."""

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import small_network, trained_on_digits
from torch import nn

import sat
from sat.attacks import APGD, PGD, AutoAttack, Clean, FastAutoAttack, ensemble, patience
from sat.attacks.apgd import APGDSearch
from sat.attacks.ball import Ball
from sat.attacks.coarse import COARSE, Tap, leads_astray, repeated, share_repeated
from sat.attacks.determinism import check_repeats, moved, shift
from sat.attacks.fab import FABSearch
from sat.attacks.losses import targeted_dlr
from sat.attacks.outcomes import (
    STANDS,
    WRONG,
    AttackOutcomes,
    Verdicts,
    of_logits,
    under_attack,
    verdicts,
)
from sat.attacks.patience import fields
from sat.attacks.pool import Pool
from sat.attacks.series import ensemble_of
from sat.attacks.square import SquareSearch
from sat.attacks.targets import ranked
from sat.errors import Refused
from sat.evaluation.measure import for_all
from sat.evaluation.measure import measure as measured
from sat.models.foreign import adopt
from sat.rng import RowRng

EPS = 25.0  # in 1/255, for the digits
INF, NAN = torch.inf, torch.nan


@pytest.fixture(scope="module")
def digits():
    """A small network trained on digits, and 60 test images that it gets right, of 6 classes."""
    model, x, y = trained_on_digits(small_network(), epochs=5, batch=100)
    right = ((model(x).argmax(1) == y) & (y < 6)).nonzero()[:60, 0]
    return model, x[right], y[right]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Tiny images need fewer steps than 100 and 5,000."""
    monkeypatch.setattr(ensemble, "SquareSearch", partial(SquareSearch, iterations=100))
    monkeypatch.setattr(ensemble, "APGDSearch", partial(APGDSearch, iterations=20))
    monkeypatch.setattr(ensemble, "FABSearch", partial(FABSearch, iterations=5))


class After(nn.Module):
    """A network and what is done with its logits, and its image, afterwards."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change
        self.eval()

    def forward(self, x):
        return self.change(self.inner(x), x)


def measure(model, x, y, attack, size=60):
    judge = ensemble_of(attack, 1, size)
    batches = [(part, x[part], y[part]) for part in torch.arange(len(x)).split(size)]
    return measured(model, iter(batches), judge, 3, AttackOutcomes.new(judge.names, len(x)))


# the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logits, right, tied",
    [
        ([2.0, 1.0, 0.0], True, False),
        ([1.0, 2.0, 0.0], False, False),
        ([1.0, 1.0, 0.0], False, True),  # argmax takes the first of the two here
        ([0.0, 0.0, 0.0], False, True),
        ([2.0, NAN, 0.0], False, False),
        ([2.0, 1.0, NAN], False, False),
        ([NAN, 1.0, 0.0], False, False),
        ([2.0, -INF, -INF], True, False),
        ([2.0, -1e6, 0.0], True, False),
        ([-INF, -INF, -INF], False, True),
        ([INF, 1.0, 0.0], True, False),
        ([INF, INF, 0.0], False, True),
        ([1.0, INF, 0.0], False, False),
    ],
)
def test_the_rule(logits, right, tied):
    verdict = of_logits(torch.tensor([logits]), torch.tensor([0]))
    assert (verdict.right.tolist(), verdict.tied.tolist()) == ([right], [tied])
    unknown = of_logits(torch.tensor([logits]), torch.tensor([-1]))
    assert not unknown.right[0] and not unknown.tied[0]


def test_ties_are_counted_when_clean_and_under_attack():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x = torch.tensor([0.0, 0.5, 0.02, 1.0]).view(4, 1, 1, 1)  # the first is level when clean
    outcomes = measure(model, x, torch.zeros(4, dtype=torch.long), PGD(8, 12))
    assert outcomes.fell.tolist() == [WRONG, STANDS, 0, STANDS]  # 0 for both, at the range's end
    assert outcomes.tied.tolist() == [True, False, True, False]
    assert outcomes.ties == {"clean": 1, "attacked": 1}
    half = outcomes.part(slice(2, 4)).joined(outcomes.part(slice(0, 2)))
    assert half.tied.tolist() == [True, False]


class Drifting(nn.Module):
    """Sums that round otherwise in a batch."""

    def forward(self, x):
        logits = torch.stack([x.flatten(1).sum(1), torch.full((len(x),), 0.5)], 1)
        return logits + torch.tensor([1e-7, 0.0]) if len(x) > 1 else logits


def test_what_only_rounding_decides_is_asked_of_the_image_alone():
    x = torch.full((3, 1, 1, 1), 0.5)
    x[1] = 0.6
    y = torch.zeros(3, dtype=torch.long)
    assert (Drifting()(x).argmax(1) == y).all()
    assert verdicts(Drifting(), x, y).right.tolist() == [False, True, False]
    assert [verdicts(Drifting(), x[i : i + 1], y[:1]).right.item() for i in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("norm, eps", [("linf", 8), ("l2", 20)])
def test_nothing_follows_from_a_point_outside(norm, eps):
    always_wrong = After(nn.Flatten(), lambda z, x: torch.zeros(len(x), 2))
    x, ball = torch.full((1, 1, 2, 2), 0.5), Ball(eps / 255, norm)
    inside = x + 0.5 * ball.eps
    outside = [x + 1.02 * ball.eps, x * NAN, x * INF, x - 1, inside.clone()]
    outside[-1][0, 0, 0, 0] = NAN
    for points, holds in [(inside, True), *((point, False) for point in outside)]:
        verdict = under_attack(always_wrong, points, x, torch.tensor([0]), ball)
        assert verdict.right.item() is not holds and verdict.tied.item() is holds
    corner = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(1, 1, 2, 2)
    assert ball.holds(PGD(eps, 3, norm=norm)(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
                                             corner, torch.tensor([0])), corner)  # fmt: skip


# far and missing logits --------------------------------------------------------------------------


def masked(value, logits, x):
    return logits.index_fill(1, torch.arange(6, 10), value)


@pytest.mark.parametrize("value", [-1e3, -1e6, -1e30, -INF])
@pytest.mark.parametrize("norm, eps", [("linf", 1.6 * EPS), ("l2", 6 * EPS)])
def test_classes_that_are_masked_change_no_verdict(digits, value, norm, eps):
    """-1e6 made every image robust, -inf every image wrong."""
    model, x, y = digits
    attack = FastAutoAttack(eps, norm, ("apgd-ce", "apgd-t", "fab-t"))
    alone = attack.verdicts(After(model, lambda z, x: z[:, :6]), x, y)
    under = attack.verdicts(After(model, partial(masked, value)), x, y)
    assert (under != WRONG).all() and 8 < (alone == STANDS).sum() < 52
    assert torch.equal(alone == STANDS, under == STANDS)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(1.6 * EPS, 10, loss="kl", keep="best"),
        PGD(1.6 * EPS, 10, label_smoothing=0.1, keep="best"),
        APGD(1.6 * EPS, 10, loss="kl"),
        APGD(1.6 * EPS, 10, label_smoothing=0.1),
    ],
)
def test_what_masked_classes_say_hides_no_point_of_the_highest_loss(digits, attack):
    """It was no number, or infinite everywhere, and the attack gave its start."""
    model, x, y = digits
    found = [
        measure(net, x, y, attack).robust
        for net in (After(model, lambda z, x: z[:, :6]), After(model, partial(masked, -INF)))
    ]
    assert torch.equal(*found) and 0 < found[0].sum() < 58


@pytest.mark.parametrize("value", [-1e6, -INF])
def test_few_classes_among_masked_ones(digits, value):
    """Two are left: no third or fourth logit to scale a loss with."""
    model, x, y = digits
    x, y = x[y < 2], y[y < 2]
    change = lambda z, x: z.index_fill(1, torch.arange(2, 10), value)  # noqa: E731
    two = After(model, change)
    x, y = (rows[(two(x).argmax(1) == y)] for rows in (x, y))
    for name in ("apgd-t", "square"):
        found = [FastAutoAttack(3 * EPS, attacks=(name,)).verdicts(net, x, y) == STANDS
                 for net in (two, After(model, lambda z, x: z[:, :2]))]  # fmt: skip
        assert torch.equal(*found) and not found[0].all()


def test_an_infinite_logit_of_the_label_alone_is_right(digits):
    model, x, y = digits
    sure = After(model, lambda z, x: z.index_fill(1, torch.tensor([0]), INF))
    found = FastAutoAttack(EPS, attacks=("apgd-ce", "apgd-t", "fab-t", "square")).verdicts(
        sure, x[:20], y[:20]
    )
    assert torch.equal(found == STANDS, y[:20] == 0) and ((found == WRONG) == (y[:20] != 0)).all()


# logits of few values ----------------------------------------------------------------------------


def quantised(bits, logits, x):
    """With the straight-through gradient that quantised networks have."""
    step = 40 / 2**bits
    return torch.fake_quantize_per_tensor_affine(
        logits, step, 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )


COARSENED = {
    "integers": lambda z, x: z.round(),
    "8 bits": partial(quantised, 8),
    "5 bits": partial(quantised, 5),
    "steps": lambda z, x: (z * 2).floor() / 2,
    "saturated": lambda z, x: (60 * z).softmax(1),
}
FINE = {"thousandths": lambda z, x: z.round(decimals=3)}  # too fine for values to repeat


@pytest.mark.parametrize("name", [*COARSENED, *FINE])
def test_an_image_that_falls_falls_when_its_logits_are_rounded(digits, name, caplog):
    """Ties never fell, and a gradient of 0 found nothing."""
    model, x, y = digits
    coarse = After(model, (COARSENED | FINE)[name])
    clean = verdicts(coarse, x, y).right
    attack = FastAutoAttack(1.6 * EPS, attacks=("apgd-ce", "apgd-t"))
    with caplog.at_level("WARNING", "sat"):
        plain = attack.verdicts(model, x, y) == STANDS
        assert not caplog.text
        found = attack.verdicts(coarse, x, y) == STANDS
    seen = "have a gradient of 0" if name in FINE else "repeat another"
    assert seen in caplog.text and 8 < plain.sum() < 52
    # Where a logit and the label's round to one number the image is wrong, so no more can stand.
    assert (found & ~plain).sum() <= 1 and found.sum() <= (plain & clean).sum() + 1


class Listed:
    """A split of images in memory."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def stream(self, batches):
        return ((self.x[batch.indices], self.y[batch.indices]) for batch in batches)


def test_parts_of_a_set_are_searched_by_its_first_images(digits, caplog):
    """In each part, and in each process, it was found out anew whether a network is coarse."""
    model, x, y = digits
    x = x.clone()
    x[:, 0, 0, 0] = (torch.arange(60) >= 8).float()  # those after the eighth have rounded logits
    late = After(model, lambda z, x: torch.where(x[:, 0, 0, 0, None] > 0.5, z.round(), z))
    attack, chosen = FastAutoAttack(1.6 * EPS, attacks=("apgd-ce",)), torch.arange(60)
    settled = for_all(attack, Listed(x, y), chosen, 3)
    with caplog.at_level("WARNING", "sat"):
        whole = measure(late, x, y, attack)
        for size in (60, 20):
            assert torch.equal(measure(late, x, y, settled, size).fell, whole.fell)
        assert not caplog.text
        assert not torch.equal(measure(late, x, y, attack, 20).fell, whole.fell) and caplog.text


def test_square_goes_by_what_was_rounded(digits):
    model, x, y = digits
    attack = FastAutoAttack(2 * EPS, attacks=("square",))
    plain, coarse, blind = (
        attack.verdicts(net, x[:30], y[:30]) == STANDS
        for net in (model, After(model, lambda z, x: z.round()), Blind(model))
    )
    assert coarse.sum() <= plain.sum() < 28
    assert blind.sum() < 30  # nothing is in sight: the rounded margin, on and on


class Blind(nn.Module):
    """Rounded, and with no layer to look at."""

    def __init__(self, inner):
        super().__init__()
        self.one = [inner]  # out of sight of `modules`
        self.eval()

    def forward(self, x):
        return self.one[0](x).round()


def test_coarse_logits_are_told_from_fine_ones(digits):
    model, x, y = digits
    x, ball, rng = x[:8], Ball(EPS / 255, "linf"), RowRng(0, torch.arange(8))
    for name, change in COARSENED.items():
        assert repeated(After(model, change), x, ball, rng) > COARSE, name
        assert isinstance(Tap.of(After(deepcopy(model), change), x), Tap), name
    fine = [model, After(model, partial(masked, -1e6)), After(model, partial(masked, -INF)),
            After(model, lambda z, x: z.half().float()), After(model, lambda z, x: 1e4 * z),
            *(After(model, lambda z, x, k=k: (k * z).log_softmax(1)) for k in (1, 20))]  # fmt: skip
    for net in fine:
        assert repeated(net, x, ball, rng) < COARSE
    assert Tap.of(Blind(model), x) is None
    assert share_repeated(torch.zeros(0, 10)) == 0
    many = 10 * torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    assert share_repeated(many.half()) < COARSE < share_repeated(many.round(decimals=1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_smooth_network_of_a_single_value_is_not_coarse(norm):
    """Whose balls have two points on their surface."""
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 3))
    x, rng = torch.linspace(0, 1, 8).view(8, 1, 1, 1), RowRng(0, torch.arange(8))
    ball = Ball(0.2, norm)
    assert repeated(smooth, x, ball, rng) == 0
    assert repeated(After(smooth, lambda z, x: z.round(decimals=1)), x, ball, rng) > COARSE


def test_nothing_is_left_on_a_layer_that_is_looked_at(digits):
    model, x, y = digits
    coarse = After(model, COARSENED["integers"])
    layers = [*coarse.modules()]
    tap = Tap.of(coarse, x[:8])
    logits, basis = tap(coarse, x[:8])
    assert torch.equal(basis.round(), logits) and not torch.equal(basis, logits)
    assert not any(layer._forward_hooks for layer in layers)


def test_the_verdict_of_a_rounded_network_is_the_same_in_any_batch(digits):
    model, x, y = digits
    coarse, rng = After(model, COARSENED["8 bits"]), RowRng(5, torch.arange(24))
    attack = FastAutoAttack(1.6 * EPS, attacks=("apgd-ce", "apgd-t"))
    whole = attack.verdicts(coarse, x[:24], y[:24], rng)
    parts = [attack.verdicts(coarse, x[i : i + 6], y[i : i + 6], rng[i : i + 6])
             for i in range(0, 24, 6)]  # fmt: skip
    assert torch.equal(whole, torch.cat(parts)) and len(whole.unique()) > 1


# points that are none ----------------------------------------------------------------------------


def poisoned(logits, x):
    """The same logits; the gradient of every image is NaN."""
    return logits + (0 * x).sqrt().flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("norm, eps", [("linf", EPS), ("l2", 3 * EPS)])
@pytest.mark.parametrize(
    "attack",
    [
        partial(PGD, steps=3),
        partial(FastAutoAttack, attacks=("apgd-ce", "apgd-t", "fab-t")),
        partial(AutoAttack, version="custom", attacks=("apgd-ce",)),
    ],
)
def test_a_point_of_nan_fells_nothing(digits, attack, norm, eps):
    """Under L2 each image counted as felled."""
    model, x, y = digits
    attack, x, y = attack(eps=eps, norm=norm), x[:20], y[:20]
    blind = measure(After(model, poisoned), x, y, attack)
    assert blind.clean.all() and blind.robust.sum() > 0.5 * len(x)
    points = attack(After(model, poisoned), x, y)
    wrong = ~under_attack(model, points, x, y, Ball(eps / 255, norm)).right
    assert (wrong & blind.robust).sum() <= 2  # another start


def test_half_a_gradient_is_searched_with(digits):
    """Where a few pixels' gradient is NaN the others' still leads to a fall."""
    model, x, y = digits
    half = After(model, lambda z, x: z + (0 * x[..., :1]).sqrt().flatten(1).sum(1, keepdim=True))
    attack = FastAutoAttack(2.5 * EPS, attacks=("apgd-ce", "apgd-t"))
    assert (attack.verdicts(half, x[:20], y[:20]) == STANDS).sum() < 10


# networks with chance in them --------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, inner, noise):
        super().__init__()
        self.inner, self.noise = inner, noise
        self.eval()

    def forward(self, x):
        return self.inner(x + self.noise * torch.randn_like(x))


@pytest.mark.parametrize(
    "change", [lambda m: Noisy(m, 0.02), lambda m: After(m, lambda z, x: nn.Dropout(0.1)(z)),
               lambda m: After(Noisy(m, 0.02), partial(masked, -1e6))]
)  # fmt: skip
def test_a_network_with_chance_in_it_is_refused(digits, change):
    model, x, y = digits
    net = change(model)
    for attack in (FastAutoAttack(EPS), PGD(EPS, 2), Clean(), AutoAttack(EPS)):
        with pytest.raises(Refused, match="change by .* from call to call"):
            measure(net, x[:8], y[:8], attack)
    torch.manual_seed(0)
    flips = After(model, lambda z, x: z if torch.rand(()) < 0.7 else z.flip(1))  # now and then
    with pytest.raises(Refused, match="change by .* from call to call"):
        check_repeats(flips, x)
    check_repeats(model, x)
    check_repeats(After(model, partial(masked, -INF)), x)
    check_repeats(model, x[:0])
    for head in (lambda z: -(z + 3).relu(), lambda z: nn.functional.logsigmoid(9 + 3 * z)):
        check_repeats(After(model, lambda z, x, head=head: head(z)), x[:8])  # nearly 0 at the top
    once = torch.tensor([[5.0, 4, 3, 0, -1e6]]).repeat(8, 1)
    for row in ([5, 4, 3, 9, -1e6], [5, torch.nan, 3, 0, -1e6], [5, 1, 3, 0, -1e6]):
        again = torch.where(torch.arange(8)[:, None] < 4, torch.tensor(row), once)
        assert shift(once, again) > 0.4 and shift(again, once) > 0.4
    assert shift(once, once) == shift(once * torch.nan, once * torch.nan) == 0


def test_a_network_that_goes_by_its_batch_is_refused(digits):
    """Two calls on one batch agree; the verdict of an image is another one in each batch."""
    model, x, y = digits
    training = deepcopy(model).train()
    for after in (lambda z: z, lambda z: masked(-1e6, z, x)):
        for attack in (FastAutoAttack(EPS), PGD(EPS, 2)):
            with pytest.raises(Refused, match="with the other images of its batch.*model.eval"):
                measure(After(model, lambda z, x, after=after: after(training(x))), x[:8], y[:8],
                        attack)  # fmt: skip


def test_all_classes_are_targets_where_none_has_a_logit(digits):
    """A head may hide its other classes at the image and not around it; the label is none."""
    model, x, y = digits
    hidden = After(model, lambda z, x: z.masked_fill(z < z.amax(1, keepdim=True), -INF))
    targets = ranked("likeliest", hidden, x, y, "linf")
    assert (targets >= 0).all() and not (targets == y[:, None]).any()
    masks = After(model, lambda z, x: z.index_fill(1, torch.tensor([8, 9]), -INF))
    assert ((ranked("likeliest", masks, x, y, "linf") == -1).sum(1) == 2).all()


def test_autoattacks_rand_takes_the_average(digits):
    model, x, y = digits
    outcomes = measure(
        Noisy(model, 0.02), x[:4], y[:4], AutoAttack(EPS, version="rand", batch_size=4)
    )
    assert outcomes.names == ("apgd-ce", "apgd-dlr")


def test_how_much_logits_moved():
    once = torch.tensor([[3.0, 1.0, -1e6], [INF, 0.0, -INF], [NAN, 1.0, 2.0]])
    assert moved(once, once.clone()) == 0
    again = once.clone()
    again[0, 0] += 0.3
    assert moved(once, again) == pytest.approx(0.1)
    again[1, 1] = NAN
    assert moved(once, again) > 1e30


# rounds that are given up ------------------------------------------------------------------------

# What is left of the first distance after a step of APGD-T, where it changes: a ResNet-20 trained
# on CIFAR-10 without an attack, eps 1/255. These fell their image with the last step, and were
# given up by the pace over ten steps: the first halving of the step comes later.
FELL_LATE = [
    {0: 1, 1: 0.464, 2: 0.423, 3: 0.248, 22: 0.239, 23: 0.17, 24: 0.151, 25: 0.13, 26: 0.124,
     35: 0.121, 39: 0.12, 41: 0.116, 42: 0.077, 43: 0.071, 44: 0.06, 45: 0.055, 46: 0.049,
     47: 0.048, 49: 0.046, 50: 0.042, 55: 0.033, 58: 0.021, 60: 0.015, 62: 0.011, 67: 0.009,
     71: 0.004, 72: 0.002, 73: 0.001, 74: 0},
    {0: 1, 1: 0.738, 2: 0.567, 3: 0.384, 4: 0.328, 5: 0.298, 6: 0.294, 7: 0.277, 9: 0.244,
     10: 0.231, 14: 0.222, 15: 0.199, 23: 0.193, 27: 0.176, 35: 0.172, 37: 0.166, 42: 0.117,
     43: 0.084, 47: 0.083, 58: 0.058, 59: 0.046, 60: 0.034, 64: 0.03, 67: 0.027, 68: 0.024,
     69: 0.023, 72: 0.021, 81: 0.01, 82: 0.008, 83: 0.004, 85: 0.003, 87: 0.002, 94: 0},
    {0: 1, 1: 0.673, 2: 0.649, 3: 0.532, 5: 0.518, 6: 0.502, 7: 0.394, 15: 0.386, 23: 0.328,
     24: 0.263, 25: 0.211, 26: 0.198, 28: 0.18, 42: 0.072, 43: 0},
    {0: 1, 1: 0.421, 2: 0.271, 3: 0.138, 4: 0.11, 6: 0.108, 8: 0.104, 9: 0.099, 16: 0.094,
     20: 0.09, 23: 0.076, 24: 0.071, 26: 0.06, 27: 0.056, 33: 0.043, 36: 0.032, 42: 0.021,
     43: 0.014, 46: 0.012, 53: 0.01, 58: 0.008, 59: 0.005, 61: 0.003, 71: 0.001, 75: 0},
]  # fmt: skip
# These never fell.
HOPELESS = [
    {0: 1, 1: 0.764, 2: 0.701, 3: 0.652, 6: 0.634, 8: 0.616, 23: 0.598, 25: 0.589, 42: 0.582,
     43: 0.574, 45: 0.569, 57: 0.565, 72: 0.557, 90: 0.554},
    {0: 1, 1: 0.76, 2: 0.714, 3: 0.66, 4: 0.643, 8: 0.626, 9: 0.618, 14: 0.608, 23: 0.592,
     26: 0.575, 43: 0.563, 58: 0.556, 73: 0.551},
]  # fmt: skip


class Replayed(APGDSearch):
    """Takes its distances from a recording, and its image falls where that is 0."""

    def play(self, recording):
        object.__setattr__(self, "recording", recording)
        return self

    def step(self, network, state):
        at = int(state["iteration"][0])
        state["short"] = torch.full_like(state["short"], self.recording.get(at, torch.nan))
        if state["short"].isnan():
            state["short"] = state["seen"].clone()
        state["seen"] = state["short"].clone()
        state["iteration"] = state["iteration"] + 1
        return state["point"], state["short"] <= 0, state["iteration"] > self.iterations

    def begin(self, x, y, target, rng):
        state = super().begin(x, y, target, rng)
        return state | {"seen": state["short"]}


class Falls:
    """A network that confirms every fall."""

    device = torch.device("cpu")

    def falls(self, points, x, y):
        return Verdicts(
            torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
        )


def steps_until_it_ends(recording, patience=2.0):
    """And whether the image fell."""
    search = Replayed(Ball(1 / 255, "linf"), targeted_dlr, rounds=2).play(recording)
    steps, fell = [], []
    plain = search.step
    object.__setattr__(search, "step", lambda *given: steps.append(1) or plain(*given))
    left = lambda images, points=None, tied=None: fell.append(points is not None)  # noqa: E731
    pool = Pool(torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.tensor([[1, -1]]),
                RowRng(0, torch.arange(1)), left, 4, patience)  # fmt: skip
    pool.run(search, Falls(), [0])
    return len(steps), fell == [True]


@pytest.mark.parametrize("recording", FELL_LATE)
def test_a_round_that_falls_late_is_not_given_up(recording):
    assert steps_until_it_ends(recording) == (max(recording) + 1, True)


@pytest.mark.parametrize("recording", HOPELESS)
def test_a_round_that_never_falls_is_given_up_soon(recording):
    assert steps_until_it_ends(recording) == (11, False)
    assert steps_until_it_ends(recording, patience=torch.inf) == (101, False)
    assert steps_until_it_ends(recording, patience=3.0) == (21, False)


def test_a_round_that_stalls_on_its_way_is_given_up_later():
    stalls = {0: 1, 5: 0.3, 23: 0.28}
    assert steps_until_it_ends(stalls) == (41, False)


@pytest.mark.parametrize(
    "recording, given, say",
    [({0: 1, 5: 0.25, 20: 0.2}, {0: [7]}, []), ({0: 1, 5: 0.25}, {}, [1]),
     ({0: 1, 5: 0.25, 20: 0.2, 90: 0}, {}, [3])],
)  # fmt: skip
def test_an_image_with_a_round_that_ends_near_a_fall_is_given_back_and_not_told(
    recording, given, say
):
    search, told = Replayed(Ball(1 / 255, "linf"), targeted_dlr).play(recording), []
    pool = Pool(torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.tensor([[7]]),
                RowRng(0, torch.arange(1)), lambda *of: told.append(len(of)), 4, 2.0)  # fmt: skip
    assert replace(pool, gives_back=True).run(search, Falls(), [0]) == given
    assert told == say
    assert pool.run(search, Falls(), [0]) == {} and told[-1] == (3 if 90 in recording else 1)


@pytest.fixture
def pools(monkeypatch):
    """Each pool that ran: itself, its search, network and images, and what it gave back."""
    ran, run = [], Pool.run

    def watched(pool, *given):
        ran.append((pool, *given, found := run(pool, *given)))
        return found

    monkeypatch.setattr(Pool, "run", watched)
    monkeypatch.setattr(patience, "AGAIN", 1.0)  # all rounds that are not given up
    monkeypatch.setattr(ensemble, "bf16_pays", lambda kind: True)
    return ran


class Autocast(After):
    autocast = torch.bfloat16

    def forward(self, x):
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            return super().forward(x).float()


def test_what_stands_near_a_fall_is_tried_again_in_float32(digits, pools):
    model, x, y = digits
    model, attack = (
        Autocast(model, lambda logits, x: logits),
        FastAutoAttack(30, attacks=["apgd-t"]),
    )
    found = attack.verdicts(model, x, y)
    (first, _, coarse, _, nearly), (again, search, network, images, none) = pools
    assert images == [*nearly] and nearly and none == {}
    assert coarse.low is not coarse.fast and network.low is network.fast and network.near == 0
    for image, targets in nearly.items():
        tried = again.targets[image][again.targets[image] >= 0].tolist()
        assert tried == targets * ensemble.STARTS and len(tried) <= search.rounds <= again.spread
    assert again.rng.key != first.rng.key  # other starts
    pools.clear()
    for other in ({"patience": None}, {"norm": "l1", "eps": 1500}):  # once each
        replace(attack, **other).verdicts(model, x[:8], y[:8])
    assert [len(pools), pools[0][-1], pools[1][-1]] == [2, {}, {}]
    assert (found[[*nearly]] == STANDS).any()


def test_who_was_killed_before_the_second_try_has_the_verdicts_of_who_was_not(
    digits, pools, monkeypatch
):
    model, x, y = digits
    attack = FastAutoAttack(30, attacks=["apgd-t"])
    rng = RowRng(0, torch.arange(len(x)))
    whole, torn = attack.verdicts(model, x, y, rng), attack._survey(model, x, y)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FastAutoAttack, "_again", lambda *given: exec("raise KeyboardInterrupt"))
        attack.run(model, x, y, rng, torn)
    attack.run(model, x, y, rng, torn)
    assert torch.equal(torn.fell, whole) and len(pools[-1][3]) < len(x)


def test_square_ends_where_each_single_pixel_was_asked_for_without_a_gain():
    """On 8x8 grey there are 128 changes of a pixel, on 32x32 in colour more than the queries."""
    for shape, gained, end in (
        ((1, 8, 8), 0, 1643),
        ((1, 8, 8), 1100, 1741),
        ((3, 32, 32), 0, None),
    ):
        none = torch.zeros(1, dtype=torch.long)
        state = {"iteration": none, "short": torch.tensor([0.01]), "gained": none + gained}
        state |= fields(none, torch.tensor([1.0])) | {"x": torch.zeros(1, *shape)}
        search, ended = SquareSearch(Ball(8 / 255, "linf"), 0), []
        for k in range(1, 5001):
            state["iteration"] = none + k
            ended.append(bool(search.hopeless(state, 2.0)))
        assert (ended.index(True) + 1 if any(ended) else None) == end
        assert not search.hopeless(state, math.inf)


def test_fab_ends_a_round_that_stays_far_from_the_ball():
    """At patience 2 outside by more than 4.8 / step of its size, from the sixth step on."""
    search, none = FABSearch(Ball(8 / 255, "linf")), torch.zeros(3, dtype=torch.long)
    short = torch.tensor([0.9, 0.7, 5.0])
    for step, over in ((5, [False] * 3), (6, [True, False, True]), (7, [True, True, True])):
        state = {"iteration": none + step, "short": short}
        state |= fields(none, short)
        assert search.hopeless(state, 2.0).tolist() == over
        assert search.hopeless({**state, **fields(none, short)}, math.inf).tolist() == [False] * 3


def test_square_near_a_fall_goes_on():
    """A doubling without gain ends it far from a fall only."""
    ball = Ball(8 / 255, "linf")
    for left, over in ((0.5, True), (0.05, False)):
        none = torch.zeros(1, dtype=torch.long)
        state = {"iteration": none, "short": torch.tensor([torch.inf]), "gained": none}
        state |= fields(none, state["short"]) | {"x": torch.zeros(1, 3, 32, 32)}
        ended = []
        for k in range(1, 5001):
            state["iteration"] = none + k
            state["short"] = torch.tensor([1.0 if k < 10 else left])
            ended.append(bool(SquareSearch(ball, 0).hopeless(state, 2.0)))
        assert any(ended) is over


def test_square_ends_early_where_an_ascent_came_further_and_never_where_it_did_not():
    """Near a fall, or with nothing to compare with, it ends where a doubling brings no gain."""
    ball, reached = Ball(8 / 255, "linf"), torch.tensor([0.4, 0.6, 0.1])
    for compared, expected in ((reached, [150, None, 600]), (None, [600] * 3)):
        images, ended = torch.arange(3), [None] * 3
        state = {"image": images, "iteration": 0 * images, "short": torch.full((3,), torch.inf)}
        state |= {"gained": 0 * images, "ahead": images < 0, "x": torch.zeros(3, 3, 32, 32)}
        state |= fields(state["iteration"], state["short"])
        for k in range(1, 5001):
            state["iteration"] = images * 0 + k
            state["short"] = torch.full((3,), 1.0 if k < 10 else 0.5)
            for row in SquareSearch(ball, 0, reached=compared).hopeless(state, 2.0).nonzero():
                ended[row] = ended[row] or k
        assert ended == expected


def test_what_falls_to_the_ascent_that_square_is_compared_with_fell_before_square(
    digits, monkeypatch
):
    model, x, y = digits
    monkeypatch.setattr(ensemble, "SquareSearch", partial(SquareSearch, iterations=1))
    found, points = [], dict[int, torch.Tensor]()
    for length in (2.0, None):  # with None all queries are asked, and nothing is compared
        attack = FastAutoAttack(30, attacks=["apgd-ce", "fab-t", "square"], patience=length)
        outcomes = attack._survey(model, x, y)
        outcomes.passed[:] = 2  # all stood under these
        outcomes.fallen = lambda images, there: points.update(
            zip(images.tolist(), there, strict=True)
        )
        attack.run(model, x, y, RowRng(0, torch.arange(len(x))), outcomes)
        found.append(outcomes.fell == 0)
    by_ascent = found[0].nonzero()[:, 0].tolist()
    assert by_ascent and not found[1].any()
    for image in by_ascent:
        assert model(points[image][None]).argmax(1) != y[image]


def test_a_round_that_is_across_in_few_bits_goes_on():
    """bfloat16 may see the target ahead from the start, where float32 does not."""
    one = torch.ones(1, dtype=torch.long)
    search = APGDSearch(Ball(8 / 255, "linf"), targeted_dlr)
    state = {"iteration": 11 * one, "short": torch.tensor([-0.02])}
    state |= fields(one, torch.tensor([-0.01]))
    for share in (1.0, 2.0, math.inf):
        assert not search.hopeless({**state}, share)


class HalfBlind(torch.autograd.Function):
    """The image itself, whose every second column has no gradient, or NaN."""

    @staticmethod
    def forward(ctx, x, there):
        ctx.there = there
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        slope = slope.clone()
        slope[..., ::2] = ctx.there
        return slope, None


@pytest.mark.parametrize("there", [0.0, math.nan])
def test_a_network_whose_gradient_leads_astray_is_not_given_up(there, digits, caplog):
    model, x, y = digits
    behind = adopt(lambda images: model(HalfBlind.apply(images, there)), x, x.device)
    attack, found = FastAutoAttack(25, attacks=["apgd-ce", "square"]), []
    with caplog.at_level("WARNING", "sat"):
        for length in (2.0, None):
            found.append(replace(attack, patience=length).verdicts(behind, x[:40], y[:40]))
        assert torch.equal(*found) and (found[0] == 1).any()
        assert caplog.text.count("not the slope") == 1
        caplog.clear()
        attack.verdicts(model, x[:8], y[:8])
        assert not caplog.text


def test_who_was_killed_before_square_goes_on_where_an_ascent_fells(digits, tmp_path, monkeypatch):
    """No attack before Square has an image left, and so none was told to begin."""
    model, x, y = digits
    monkeypatch.setattr(ensemble, "APGDSearch", partial(APGDSearch, iterations=2))
    attack = FastAutoAttack(30, attacks=["apgd-ce", "square"])
    call = partial(sat.evaluate, model, x, y, 30, attack=attack, masking_checks=0)
    whole = call()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FastAutoAttack, "_reached", lambda *given: exec("raise KeyboardInterrupt"))
        call(state=tmp_path / "state")
    found = call(state=tmp_path / "state")
    assert found.felled == whole.felled and torch.equal(found.standing, whole.standing)


def test_square_is_not_compared_where_an_images_own_gradient_is_doubtful(digits, monkeypatch):
    """Also where the first images don't tell."""
    model, x, y = digits
    monkeypatch.setattr(FastAutoAttack, "_astray", lambda *given: False)
    reached, kept = [], FastAutoAttack._reached
    note = lambda *given: reached.append(kept(*given)) or reached[-1]  # noqa: E731
    monkeypatch.setattr(FastAutoAttack, "_reached", note)
    blind = adopt(lambda images: model(HalfBlind.apply(images, 0.0)), x, x.device)
    for network in (model, blind):
        FastAutoAttack(25, attacks=["apgd-ce", "square"]).verdicts(network, x[:40], y[:40])
    open_, doubtful = (each > -math.inf for each in reached)
    assert open_.sum() > 5 and doubtful.sum() <= 2


def test_one_image_without_a_slope_is_no_network_that_leads_astray(digits):
    model, x, _ = digits
    assert leads_astray(model, x[:8], RowRng(0, torch.arange(8))) < 0.1
    shares = torch.tensor([0.0] * 7 + [1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sat.attacks.coarse.beside_slope", lambda *given: shares)
        assert leads_astray(model, x[:8], RowRng(0, torch.arange(8))) == 0
