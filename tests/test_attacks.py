"""The attacks' promises: the ball, the range, what they leave untouched, and that they work."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, get_args

import pytest
import torch
import torch.nn.functional as F
from conftest import small_network, trained_on_digits
from torch import nn

from sat.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    Clean,
    FastAutoAttack,
    Free,
    Multi,
    Square,
    losses,
)  # fmt: skip
from sat.attacks.ball import Ball, without_infinities
from sat.attacks.base import Attack, check_fields, resolved
from sat.errors import Refused
from sat.evaluation.settings import Evaluation
from sat.identity import settings_of
from sat.objectives import TRADES, Adversarial, Method
from sat.rng import RowRng, seed_of
from sat.training.preflight import (
    check_classes,
    check_method,
    check_objective,
    preflight,
    warn_of_short_steps,
)
from sat.training.schedule import Schedule

EVERY = [
    PGD(8, 1),
    PGD(8, 5, step=3.0),
    PGD(200, 4, norm="l2"),
    PGD(8, 3, batch_norm="train"),
    PGD(8, 3, start="none"),
    PGD(8, 3, start="normal", noise=4.0),
    PGD(200, 3, norm="l2", start="normal", noise=40.0),
    PGD(8, 3, noise=2.0),
    PGD(8, 3, start="uncut", keep="best"),
    *(PGD(8, 2, loss=name) for name in ("kl", "cw", "dlr", "margin")),
    FGSM(8, loss="margin"),
    APGD(8, 3),
    APGD(200, 3, norm="l2", loss="dlr"),
    APGD(8, 2, batch_norm="train", loss="kl"),
    FAB(40, 5),
    FAB(400, 5, norm="l2"),
    Square(16, 20),
    Square(200, 20, norm="l2"),
    PGD(8, 2, clean_start=0.5),
    FGSM(8),
    FGSM(200, norm="l2"),
    PGD(8, 1, "1.25*eps", batch_norm="train", update_statistics=True),
    PGD(8, 1, noise=2.0, project=False),
    PGD(400, 4, norm="l1"),
    PGD(400, 3, norm="l1", start="normal", noise=40.0),
    FGSM(400, norm="l1"),
    APGD(8, 2, start="none"),
    APGD(400, 5, norm="l1"),
    APGD(400, 5, norm="l1", start="none"),
    Multi({"linf": 8, "l1": 400}, 3),
    Multi({"l2": 200, "linf": 8}, 3, start="uniform", loss="kl"),
    Free(8, 4),
    Clean(),
]
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def reach(attack) -> float:
    """How far an attack may move an image, in 1/255."""
    return attack.reach


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.1),
        nn.Flatten(), nn.Linear(8 * 36, 4),
    )  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, 6, 6, generator=generator)
    x[0], x[1] = 0.0, 1.0  # at the range's ends, where projection matters
    return x, torch.randint(0, 4, (6,), generator=generator)


@pytest.mark.parametrize("attack", EVERY, ids=str)
def test_result_is_in_the_ball_and_in_the_range(attack, batch):
    x, y = batch
    x_adv = attack(network(), x, y)
    assert x_adv.dtype == torch.float32 and not x_adv.requires_grad
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    eps, norm = attack.eps / 255, attack.norm
    if isinstance(attack, Multi):
        norm, eps = [*attack.members.items()][int(attack.choose(RowRng(0, torch.arange(6))))]
        eps /= 255
    size = (x_adv - x).flatten(1).norm(dim=1, p=ORDER[norm])
    assert (size <= max(eps, reach(attack) / 255) * (1 + 1e-5) + 1e-6).all()
    nearest = attack.loss == "cw" or isinstance(attack, FAB)  # leave alone what is fooled
    if eps and not nearest and not isinstance(attack, Free):
        assert (size > 0.3 * eps).all()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("attack", EVERY, ids=str)
def test_model_is_left_as_it_was(attack, batch, fails):
    model = network().train()
    model[2].eval()  # a mode of its own
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = [(m, m.training) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    if fails:
        model.register_forward_hook(lambda *_: 1 / 0)
        if not isinstance(attack, Clean | Free):
            with pytest.raises(ZeroDivisionError):
                attack(model, *batch)
    else:
        attack(model, *batch)
    assert [(m, m.training) for m in model.modules()] == before
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model[1].track_running_stats
    moved = attack.update_statistics
    for key, value in model.state_dict().items():
        assert (moved and "1." in key) or torch.equal(value, state[key]), key
    assert model[0].weight.grad is None
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight))


def test_no_parameter_gradient_is_computed(batch):
    model = network()
    computed = []
    for parameter in model.parameters():
        parameter.register_hook(computed.append)
    PGD(8, 2)(model, *batch)
    assert computed == []


@pytest.mark.parametrize("attack", [a for a in EVERY if a.batch_norm == "eval"],
                         ids=str)  # fmt: skip
def test_an_image_is_attacked_alike_in_any_batch(attack, batch):
    """Rows of a batch, and their noise, do not depend on the rest of it."""
    x, y = batch
    model = network().eval()
    rng = RowRng(3, torch.arange(len(x)))
    whole = attack(model, x, y, rng)
    for rows in (slice(2, 4), slice(5, 6)):
        part = attack(model, x[rows], y[rows], rng[rows])
        assert (part - whole[rows]).abs().max() < 1e-6


def test_batch_norm_mode_reaches_the_model(batch):
    seen = []
    model = network().train()
    model[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    PGD(8, 2, batch_norm="eval")(model, *batch)
    PGD(8, 1, batch_norm="train")(model, *batch)
    assert seen == [False, False, True]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_closed_form_on_a_linear_model(norm):
    """The worst point of the ball is known when the loss is monotone in one direction."""
    w = torch.tensor([0.5, -1.0, 2.0, 0.1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w, -w]))
    x, y, eps = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long), 16
    x_adv = PGD(eps, 40, norm=norm)(model, x, y)
    direction = w.sign() if norm == "linf" else w / w.norm()
    expected = 0.5 - eps / 255 * direction
    assert (x_adv.flatten(1) - expected).abs().max() < (1e-6 if norm == "linf" else 1e-3)


@pytest.mark.parametrize("scale", [1.0, 2.0**-110, 2.0**-140, 2.0**125])
def test_the_steepest_way_in_l2_has_length_1_however_small_the_gradient(scale):
    gradient = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    way = Ball(0.5, "l2").steepest(gradient * scale)
    torch.testing.assert_close(way.flatten(1).norm(dim=1), torch.ones(6))
    if scale != 2.0**-140:  # which rounds the gradient itself
        assert torch.equal(way, gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    assert not Ball(0.5, "l2").steepest(0 * gradient).any()


@pytest.mark.parametrize("attack", [PGD("0.5/1", 20, norm="l2"), APGD("0.5/1", 20, norm="l2")])
def test_a_margin_of_60_stops_no_attack_in_l2(attack):
    """Each image is 0.4 from the boundary, and cross-entropy's gradient is of size 1e-26."""
    way = F.normalize(torch.randn(1, 48, generator=torch.Generator().manual_seed(1)))
    steep, x, y = nn.Linear(48, 2), torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        steep.weight.copy_(torch.cat([way, -way]) * 30 / 0.4)
        steep.bias += torch.tensor([30.0, -30.0]) - steep(x[0].flatten())
    net = nn.Sequential(nn.Flatten(), steep)
    assert (net(x).argmax(1) == y).all() and (net(attack(net, x, y)).argmax(1) != y).all()


def test_the_start_fills_the_ball():
    x = torch.full((400, 1, 4, 4), 0.5)
    y = torch.zeros(400, dtype=torch.long)
    rng = RowRng(0, torch.arange(400))
    noise = (PGD(51).begin(x, rng) - x) / 0.2
    assert noise.abs().max() <= 1 + 1e-5
    assert abs(noise.mean()) < 0.03 and abs(noise.var() - 1 / 3) < 0.02
    radius = (PGD(51, norm="l2").begin(x, rng) - x).flatten(1).norm(dim=1) / 0.2
    assert radius.max() <= 1 + 1e-5
    assert abs((radius**16).mean() - 0.5) < 0.06  # uniform in the ball: r^d is uniform in [0, 1]
    twice = (PGD(51, noise=2.0).begin(x, rng) - x) / 0.2  # cut by the ball: half of it on the edge
    assert twice.abs().max() <= 1 + 1e-5 and abs((twice.abs() > 0.999).float().mean() - 0.5) < 0.02
    normal = (PGD(51, start="normal", noise=5.1).begin(x, rng) - x) / 0.02
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert torch.equal(PGD(51, start="none").begin(x, rng), x)
    assert torch.equal(PGD(51, clean_start=1.0).begin(x, rng), x)
    assert y.sum() == 0


def test_clean_start_falls_once_a_batch_as_often_as_asked():
    x = torch.full((2, 1, 2, 2), 0.5)
    attack = PGD(51, clean_start=0.2)
    clean = [torch.equal(attack.begin(x, RowRng(k, torch.arange(2))), x) for k in range(500)]
    assert 0.15 < sum(clean) / 500 < 0.25


def test_auto_step_is_the_papers_rule():
    assert [PGD(4, k).step_size for k in (1, 2, 4, 200)] == [4, 2, 1, 1]
    assert PGD(8, 10).step_size == 2
    assert PGD(8, 10, step=1.5).step_size == 1.5


def test_each_option_changes_the_result(batch):
    """Nothing is accepted and ignored."""
    plain = PGD(8, 3, step=1.5)
    results = {}
    for change in (
        {}, {"eps": 9.0}, {"steps": 4}, {"step": "auto"}, {"norm": "l2", "eps": "8/255"},
        {"start": "none"}, {"start": "normal"}, {"noise": 0.5}, {"loss": "kl"}, {"loss": "margin"},
        {"loss": "dlr"}, {"start": "uncut"},
        {"clean_start": 1.0, "steps": 2}, {"batch_norm": "train"},
    ):  # fmt: skip
        results[str(change)] = replace(plain, **change)(network(), *batch)
    for name, result in results.items():
        for other, against in results.items():
            assert name == other or not torch.equal(result, against), (name, other)


def test_l2_may_exceed_a_pixels_range():
    """eps 3 in L2 is common for large images; only in L-inf is 255/255 the end."""
    assert FGSM(765, norm="l2").pgd.eps == PGD(765, norm="l2").eps == 765


def test_more_steps_raise_the_loss(batch):
    x, y = batch
    model = network().eval()
    loss = {
        name: F.cross_entropy(model(attack(model, x, y)), y).item()
        for name, attack in {"none": Clean(), "fgsm": FGSM(16), "pgd": PGD(16, 20)}.items()
    }
    assert loss["none"] < loss["fgsm"] <= loss["pgd"] * 1.001


def test_small_gradients_survive_float16():
    """An input gradient of 1e-8 would be 0 in float16, and its sign no step at all."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).half()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1e-7] * 4, [-1e-7] * 4]))

    class Half(nn.Module):
        autocast = torch.float16
        inner = model

        def forward(self, x):
            return self.inner(x.half()).float()

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    x_adv = PGD(8, 1, start="none")(Half(), x, y)
    assert (x_adv - (x - 8 / 255)).abs().max() < 1e-6


@pytest.mark.parametrize(
    "wrong, key, remedy",
    [
        ({"eps": 8 / 255}, "eps=0.03", "eps=8"),
        ({"eps": -1}, "eps=-1", "1/255"),
        ({"eps": math.inf}, "eps=inf", "1/255"),
        ({"eps": 300}, "eps=300", "255"),
        ({"step": 2 / 255}, "step=0.007", "step=2"),
        ({"step": 0}, "step=0", "auto"),
        ({"steps": 0}, "steps=0", "attack=none"),
        ({"clean_start": 1.5}, "clean_start=1.5", "probability"),
        ({"clean_start": 0.5, "start": "none"}, "clean_start=0.5", "start=none"),
        ({"noise": 2.0, "start": "none"}, "noise=2.0", "start=none"),
        ({"noise": 0.0}, "noise=0.0", "start=none"),
        ({"loss": "kl", "start": "none"}, "start=none", "start=normal"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, key, remedy):
    with pytest.raises(ValueError) as refusal:
        PGD(**wrong)
    assert str(refusal.value).startswith(key) and remedy in str(refusal.value)
    if set(wrong) == {"eps"}:
        with pytest.raises(ValueError, match=key):
            FGSM(**wrong)


# searches that train ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps", [("linf", 25.0), ("l2", 200.0)])
def test_a_search_alone_finds_what_it_finds_in_the_ensemble(norm, eps):
    """APGD of the published length, from the same start."""
    model, x, y = trained_on_digits(small_network(), 2, 100)
    x, y = x[:40], y[:40]
    rows = torch.arange(len(x))
    ensemble = FastAutoAttack(eps, norm, attacks=("apgd-ce",), patience=None)
    stands = ensemble.verdicts(model, x, y, RowRng(0, rows)) == -1
    own = RowRng(seed_of(0, "apgd-ce"), rows * 16)
    with torch.no_grad():
        alone = model(APGD(eps, 100, norm=norm)(model, x, y, own)).argmax(1) == y
    assert torch.equal(stands, alone)
    assert 2 <= stands.sum() <= 38


def test_an_image_that_apgd_saw_misclassified_does_not_stand():
    """Towards a target the point of the highest loss may be right, where one on the way was not. A
    training, which tells of its progress, is given the former, as published."""
    model, x, y = trained_on_digits(small_network(), 2, 100)
    x, y = x[:200], y[:200]
    attack, rng, seen = APGD(25, 10, target=3, loss="ce"), RowRng(0, torch.arange(200)), []
    hook = model.register_forward_hook(lambda *given: seen.append(given[-1].detach().argmax(1)))
    points = attack(model, x, y, rng)
    hook.remove()
    saw = torch.stack([answer == y for answer in seen[1:]]).all(0)  # the first is of clean images
    highest = attack(model, x, y, rng, torch.tensor(0.5))
    with torch.no_grad():
        stands, trained = (model(at).argmax(1) == y for at in (points, highest))
    assert torch.equal(stands, saw)
    assert 0 < (trained & ~stands).sum() and not (stands & ~trained).any()


def test_each_search_fells_more_than_chance():
    model, x, y = trained_on_digits(small_network(), 2, 100)
    x, y = x[:60], y[:60]
    right = {}
    for attack in (Clean(), PGD(25, 5), APGD(25, 5), FAB(25, 10), Square(25, 200)):
        with torch.no_grad():
            right[type(attack).__name__] = int((model(attack(model, x, y)).argmax(1) == y).sum())
    assert right["Clean"] > 50 and all(n < 48 for name, n in right.items() if name != "Clean")
    assert right["APGD"] <= right["PGD"] + 1


@pytest.mark.parametrize("attack", [APGD, FAB, Square])
@pytest.mark.parametrize("wrong", [{"eps": 0.03}, {"norm": "l3"}, {"batch_norm": "off"}])
def test_searches_refuse_by_name(attack, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        attack(**wrong)


# what is ascended ---------------------------------------------------------------------------------


def by_hand(name: str, z, y: int, clean) -> float:
    """A loss of one image in float64, from its formula."""
    others = sorted((v for k, v in enumerate(z) if k != y), reverse=True)
    ranked, log_sum = sorted(z, reverse=True), math.log(sum(math.exp(v) for v in z))
    p = [math.exp(v - math.log(sum(math.exp(u) for u in clean))) for v in clean]
    here = [math.exp(v - log_sum) for v in z]
    return {
        "ce": log_sum - z[y],
        "kl": sum(q * (math.log(q) - (v - log_sum)) for q, v in zip(p, z, strict=True)),
        "margin": others[0] - z[y],
        "cw": min(others[0] - z[y], 0.0),
        "dlr": (others[0] - z[y]) / (ranked[0] - ranked[2] + 1e-12),
        "pma": max(v for k, v in enumerate(here) if k != y) - here[y] + 1,
        "targeted ce": z[3] - log_sum,
        "targeted margin": z[3] - z[y],
        "targeted cw": min(z[3] - z[y], 0.0),
        "targeted pma": here[3] - here[y] + 1,
        "targeted dlr": (z[3] - z[y]) / (ranked[0] - (ranked[2] + ranked[3]) / 2 + 1e-12),
    }[name]


@pytest.mark.parametrize("name", [*losses.LOSSES, *(f"targeted {n}" for n in losses.TARGETED)])
def test_a_loss_is_its_formula(name):
    generator = torch.Generator().manual_seed(2)
    z, clean = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    y, target = torch.tensor([0, 1, 2, 4, 5]), torch.full((5,), 3)
    if name.startswith("targeted"):
        values = losses.TARGETED[name.split()[1]](z, y, target)
    else:
        values = losses.LOSSES[name](z, clean.log_softmax(1) if name == "kl" else y)
    expected = [by_hand(name, *row) for row in zip(z.tolist(), y.tolist(), clean.tolist(),
                                                   strict=True)]  # fmt: skip
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_smoothed_cross_entropy_is_torchs_to_the_bit():
    """Trainings have measured by it."""
    z, y = (
        4 * torch.randn(64, 10, generator=torch.Generator().manual_seed(5)),
        torch.arange(64) % 10,
    )
    smooth = {"label_smoothing": 0.1}
    z.requires_grad_()
    (own, grad), (torchs, torchs_grad) = (
        (values := loss(z, y, **smooth), torch.autograd.grad(values.sum(), z)[0])
        for loss in (losses.ce, partial(F.cross_entropy, reduction="none"))
    )
    assert torch.equal(own, torchs) and torch.equal(grad, torchs_grad)


def linear(classes: int = 6) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear network of 12 pixels, its weight, images well inside of [0, 1], and labels."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, classes))
    x = 0.3 + 0.4 * torch.rand(5, 3, 2, 2)
    return net, net[1].weight.detach(), x, torch.arange(5) % classes


@pytest.mark.parametrize(
    "attack", [PGD(8, start="none", step=8), FGSM(8), APGD(8, 1, start="none")]
)
def test_label_smoothing_is_of_the_loss_that_is_ascended(attack):
    """On a linear network the gradient is W' (p - smoothed y)."""
    net, w, x, y = linear()
    smoothed = torch.full((5, 6), 0.6 / 6).scatter_(1, y[:, None], 0.4 + 0.6 / 6)
    gradient = ((net(x).softmax(1) - smoothed) @ w).detach().view_as(x)
    hard = ((net(x).softmax(1) - torch.eye(6)[y]) @ w).detach().view_as(x)
    assert not torch.equal(gradient.sign(), hard.sign())
    x_adv = replace(attack, label_smoothing=0.6)(net, x, y)
    torch.testing.assert_close(x_adv, x + 8 / 255 * gradient.sign())


@pytest.mark.parametrize("loss", ["ce", "margin", "cw"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_target_is_the_likeliest_wrong_class_or_the_next(loss, rank):
    net, w, x, y = linear()
    ranked = net(x).argsort(1, descending=True)
    target = torch.stack(
        [row[row != label][rank - 1] for row, label in zip(ranked, y, strict=True)]
    )
    assert losses.likely_wrong(net, x, y, rank).equal(target)
    way = w[target] - w[y]
    if loss == "ce":
        way = -(net(x).softmax(1) - torch.eye(6)[target]) @ w
    x_adv = PGD(8, start="none", step=8, loss=loss, target=rank)(net, x, y)
    moved = (x_adv - x) * 255 / 8
    short = (net(x).gather(1, target[:, None]) < net(x).gather(1, y[:, None])).flatten()
    assert short.any()  # beyond the margin of 0, cw leaves an image alone
    rows = short if loss == "cw" else torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(moved[rows], way.detach().view_as(x).sign()[rows], rtol=0, atol=1e-4)
    if loss == "cw":
        assert torch.equal(x_adv[~short], x[~short])


@pytest.mark.parametrize(
    "given, says",
    [
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: from 0"),
        ({"label_smoothing": 0.1, "loss": "kl"}, "label_smoothing=0.1: is of the loss ce"),
        ({"label_smoothing": 0.1, "target": 1}, "label_smoothing=0.1: .*a target's"),
        ({"target": 0}, "target=0: is the rank of a wrong class"),
        ({"target": 1, "loss": "kl"}, "target=1: the loss kl"),
    ],
)
@pytest.mark.parametrize("attack", [PGD, APGD, FGSM])
def test_an_aim_that_makes_no_sense_is_refused(attack, given, says):
    with pytest.raises(ValueError, match=f"^({says}|start=none|loss=kl)"):
        attack(8, **given)


def test_a_target_beyond_the_classes_is_refused():
    net, _, x, y = linear()
    with pytest.raises(Refused, match="^attack.target=6: there are 5 wrong classes"):
        PGD(8, target=6)(net, x, y)


def test_a_targeted_attack_evaluates(sat):
    words = ["+attack@evaluation.attacks.aimed=pgd", "evaluation.attacks.aimed.target=1"]
    done = sat(*words, "evaluation.attacks.aimed.loss=margin", "evaluation.attacks.aimed.steps=3")
    assert done.code == 0, done.err
    robust = done.result["last"]["robust"]
    assert robust["aimed"]["settings"]["target"] == 1 and "pgd20" in robust


def test_every_annotated_loss_is_there():
    assert {"auto", *losses.LOSSES} == set(get_args(losses.LossName))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_soft_labels_that_are_hard_attack_alike(name, batch):
    x, y = batch
    model, attack = network().eval(), PGD(8, 3, loss=name)
    hard, soft = attack(model, x, y), attack(model, x, F.one_hot(y, 4).float())
    assert (hard - soft).abs().max() < 1e-6


def test_kl_moves_away_from_the_clean_answer(batch):
    x, y = batch
    model = network().eval()
    near, far = (PGD(16, k, start="normal", noise=0.255, loss="kl")(model, x, y) for k in (1, 20))
    with torch.no_grad():
        clean = model(x).log_softmax(1)
        apart = [losses.kl(model(point), clean).mean() for point in (x, near, far)]
    assert abs(apart[0]) < 1e-6 and 0 < apart[1] < apart[2]


def test_auto_is_cross_entropy_unless_it_is_resolved(batch):
    model = network().eval()
    auto = PGD(8, 3)
    assert torch.equal(auto(model, *batch), PGD(8, 3, loss="ce")(model, *batch))
    assert resolved(auto, "kl").loss == "kl" and resolved(PGD(loss="dlr"), "kl").loss == "dlr"
    assert resolved(Clean(), "kl") == Clean()
    with pytest.raises(ValueError, match="loss kl has no gradient|loss=kl: has no gradient"):
        resolved(FGSM(8), "kl")


def test_the_margin_of_probabilities_has_a_gradient_where_the_label_is_certain():
    """The label's probability rounds to 1 from a logit of 17 above the others on."""
    z = torch.tensor([[30.0, 1.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.pma(z, torch.tensor([0])).sum(), z)
    exact = z.detach().double().requires_grad_()
    p = exact.softmax(1)[0]
    (slope,) = torch.autograd.grad(p[2] - p[0], exact)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=0)


def test_dlr_of_few_classes_is_the_margin():
    """Where the ratio has no scale it is the plain difference."""
    z, y = torch.tensor([[1.0, 3.0]]), torch.tensor([0])
    assert losses.dlr(z, y) == losses.margin(z, y) == 2.0
    z = torch.tensor([[1.0, 3.0, 0.0]])
    assert losses.targeted_dlr(z, y, torch.tensor([1])) == 2.0


def test_the_level_that_fells_an_image_is_of_the_kind_that_is_kept():
    from sat.attacks.minimal_norm import _fallen
    from sat.attacks.outcomes import STANDS

    found = _fallen(torch.tensor([0.0, 0.5, torch.inf]), torch.arange(300) / 300)
    assert found.dtype == torch.int16 and found.tolist() == [0, 150, STANDS]


@dataclass(frozen=True, slots=True)
class Promised:
    """All that the contract asks for."""

    norm: str = "linf"
    batch_norm: str = "eval"
    loss: str = "auto"

    @property
    def eps(self) -> float:
        return 8.0

    def __call__(self, model, x, y, rng=None, progress=None):
        return x


def test_what_is_promised_of_an_attack_is_enough(batch):
    """Slots, an eps that is no field, and nothing derived: all else goes without saying."""
    hashed = settings_of(attack := Promised())
    assert Evaluation({"own": attack}, restarts=2).attacks["own"] is attack
    check_classes({"attack": attack}, 10)
    check_objective(attack, TRADES(), {})  # its loss can be chosen
    check_method(Method(attack, Adversarial()), Schedule(), {})
    preflight(network(), attack, *batch)
    assert (attack.reach, attack.steps, attack.balls) == (8, None, [Ball(8 / 255, "linf")])
    assert settings_of(attack) == hashed and replace(attack, loss="ce").reach == 8
    warn_of_short_steps(attack)


def test_an_attack_says_of_itself_what_goes_not_without_saying():
    @dataclass(frozen=True)
    class Fixed(Promised):
        random: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Derived(Attack):
        eps: float  # which must be given
        norm: str = "l2"
        batch_norm: str = "eval"
        loss: str = "ce"
        steps: int = 3

        def __call__(self, model, x, y, rng=None, progress=None):
            return x

    with pytest.raises(ValueError, match="attacks.own begins at the same point each time"):
        Evaluation({"own": Fixed()}, restarts=2)
    with pytest.raises(TypeError, match="eps"):
        Derived()
    check_fields(derived := Derived(200.0))
    assert (derived.gradients(10), derived.reach, derived.random) == (3, 200, True)


def test_a_field_that_an_attack_is_asked_for_is_what_that_means():
    @dataclass(frozen=True)
    class Counts(Promised):
        gradients: int = 4

    @dataclass(frozen=True)
    class Repeats(Promised):
        replays: int = 3  # its own restarts, say: the training would take each batch so often

    @dataclass(frozen=True)
    class Steps(Promised):
        step_size: float = 2.0

    with pytest.raises(ValueError, match="Counts: gradients is what an attack is asked for"):
        check_fields(Counts())
    with pytest.raises(ValueError, match="Repeats: replays=3 are updates of the training"):
        check_fields(Repeats())
    check_fields(steps := Steps())
    assert steps.step_size == 2


@pytest.mark.parametrize("attack", [Square(8), FastAutoAttack(8, attacks=("square",))])
def test_what_asks_for_no_gradient_says_so(attack):
    assert not attack.asks_gradients and FastAutoAttack(8).asks_gradients


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_an_infinite_entry_takes_no_more_than_the_largest_other_one(norm):
    top = torch.finfo(torch.float32).max
    gradient = torch.tensor([top, 1.0, -2.0, 0.5, -top, 0.25, 0.1, 0.1, 0.1]).view(1, 1, 3, 3)
    step = Ball(100.0, norm).steepest(gradient, *([torch.tensor([3])] if norm == "l1" else []))
    assert step[0, 0, 0, 2] == -step[0, 0, 0, 0] == step[0, 0, 1, 1] != 0
    plain = torch.tensor([[[[1.0, -2.0]]], [[[0.0, 0.0]]]])
    assert torch.equal(without_infinities(plain), plain)


def test_a_target_is_no_masked_class():
    logits = torch.tensor([[3.0, 1.0, -torch.inf, 2.0, -torch.inf]])
    found = [int(losses.likely_wrong(lambda x: logits, x, y, k)) for k in (1, 2, 3, 4)
             for x, y in [(torch.zeros(1), torch.tensor([0]))]]  # fmt: skip
    assert found == [3, 1, 1, 1]
