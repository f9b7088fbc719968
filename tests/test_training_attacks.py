"""Attacks that train, against their formulas in plain float64."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sat.attacks import APGD, PGD, Free, Multi
from sat.attacks.ball import Ball, onto_l1
from sat.attacks.base import check_attack
from sat.config import composed
from sat.errors import Refused
from sat.evaluation.settings import Evaluation
from sat.objectives import Adversarial, Method
from sat.rng import RowRng
from sat.training.overfitting import Probe
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState

ROWS = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(),
        nn.Linear(8 * 36, 4),
    ).double()  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(ROWS, 3, 6, 6, generator=generator, dtype=torch.float64)
    x[0], x[1] = 0.0, 1.0
    return x, torch.randint(0, 4, (ROWS,), generator=generator)


def rng(key: int = 3) -> RowRng:
    return RowRng(key, torch.arange(ROWS))


def slope(model: nn.Module, x, y):
    """Each image's loss and the gradient of it."""
    x = x.clone().requires_grad_()
    losses = F.cross_entropy(model(x), y, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]


def option(*words: str):
    return composed(["dataset=cifar10", *words]).attack


# one step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgsm_rs", "n_fgsm"])
def test_single_step_methods_are_their_formulas(name, batch):
    x, y = batch
    attack, eps = option(f"attack={name}"), 8 / 255
    model = network().train()
    u = 2 * rng().uniform("start", 3, 6, 6).double() - 1
    if name == "fgsm_rs":
        start = (x + eps * u).clamp(0, 1)
        moved = start + 10 / 255 * slope(model, start, y)[1].sign()
        expected = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
    else:
        start = (x + 2 * eps * u).clamp(0, 1)
        expected = (start + eps * slope(model, start, y)[1].sign()).clamp(0, 1)
        assert (expected - x).abs().max() > 2 * eps  # nothing draws it back
    assert (attack(network().train(), x, y, rng()) - expected).abs().max() < 1e-7


def test_statistics_move_once_a_forward_where_they_are_to(batch):
    x, y = batch
    model = network().eval()
    PGD(8, 2, batch_norm="train", update_statistics=True)(model, x, y, rng())
    norm, seen = model[1], []
    assert not norm.training and norm.num_batches_tracked == 2
    plain = network().train()
    plain[1].register_forward_hook(lambda module, given, _: seen.append(given[0].mean((0, 2, 3))))
    PGD(8, 2, batch_norm="train")(plain, x, y, rng())
    assert plain[1].num_batches_tracked == 0
    expected = 0.9 * (0.1 * seen[0].detach()) + 0.1 * seen[1].detach()
    assert (norm.running_mean - expected).abs().max() < 1e-12


def test_preflight_lets_an_attack_leave_the_ball_as_far_as_it_says(batch):
    x, y = batch[0].float(), batch[1]
    x = x.clamp(0.2, 0.8)  # so that nothing else holds it
    model = network().float()
    attack = option("attack=n_fgsm")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_attack(attack, model, x, y)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert attack.reach == 24 and (attack(model, x, y, rng()) - x).abs().max() > 16 / 255

    class Further(PGD):
        reach = 8.0

    further = Further(8, noise=2.0, project=False)
    with pytest.raises(Refused, match="attack.eps=8: the attack moves an image by"):
        check_attack(further, model, x, y)


def test_the_alarm_measures_inside_the_ball_whatever_the_attack():
    for words in (["attack=n_fgsm"], ["attack=fgsm_rs"], ["attack=free"], ["attack=multi"]):
        probe = Probe(PGD(8, 10), option(*words), torch.arange(4))
        assert probe.ball == Ball(8 / 255, "linf")
    balls = [Probe(PGD(8, 10), PGD(eps, norm=norm), torch.arange(4)).ball
             for eps, norm in ((2, "linf"), (12, "linf"), (40, "l2"))]  # fmt: skip
    assert balls == [Ball(8 / 255, "linf"), Ball(12 / 255, "linf"), Ball(40 / 255, "l2")]


@pytest.mark.parametrize(
    "attack, said",
    [
        (PGD(8, project=False), "x.project=false"),
        (PGD(8, eps_warmup=0.1), "x.eps_warmup=0.1"),
        (PGD(8, steps_warmup=0.1), "x.steps_warmup=0.1"),
        (Multi({"linf": 8, "l1": 400}), "x=Multi: trains"),
        (Free(8), "x=Free: trains"),
    ],
)
def test_what_is_for_trainings_measures_nothing(attack, said):
    with pytest.raises(ValueError, match=said):
        Evaluation({"x": attack})


def test_steps_in_multiples_of_eps_follow_eps():
    assert PGD(8, step="1.25*eps").step_size == 10 and PGD(4, step="1.25 * eps").step_size == 5
    assert option("attack=fgsm_rs", "attack.eps=16").step_size == 20
    assert option("attack.step=0.5*eps").step_size == 4
    for wrong in ("x*eps", "-1*eps", "inf*eps", "0*eps", "1.25eps"):
        with pytest.raises(ValueError, match="step="):
            PGD(8, step=wrong)


def test_the_published_starts_are_cut_by_nothing_before_the_first_gradient(batch):
    x, y = batch
    eps, noise = 8 / 255, 0.255 / 255 * rng().normal("start", 3, 6, 6).double()
    u = 2 * rng().uniform("start", 3, 6, 6).double() - 1
    for attack, start in (
        (PGD(8, 1, step=2, start="normal", noise=0.255), x + noise),
        (PGD(8, 1, step=2, start="uncut"), x + eps * u),
    ):
        assert start.min() < 0 and start.max() > 1
        moved = start + 2 / 255 * slope(network().eval(), start, y)[1].sign()
        expected = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        assert (attack(network().eval(), x, y, rng()) - expected).abs().max() < 1e-7


@pytest.mark.parametrize("start", ["none", "uncut"])
def test_the_point_of_the_highest_loss_may_be_kept(start, batch):
    x, y = batch
    model, eps = network().eval(), 8 / 255
    attack = PGD(8, 3, step=16, start=start, keep="best")  # so long that it steps over the peak
    near = lambda point: torch.min(torch.max(point, x - eps), x + eps).clamp(0, 1)  # noqa: E731
    point, points, losses = attack.begin(x, rng()), [], []
    for _ in range(4):
        loss, gradient = slope(model, point, y)
        points.append(near(point))
        losses.append(loss)
        point = near(point + 16 / 255 * gradient.sign())
    best = torch.stack(losses).argmax(0)
    assert len(best.unique()) > 1
    expected = torch.stack(points)[best, torch.arange(ROWS)]
    assert (attack(model, x, y, rng()) - expected).abs().max() < 1e-7


# ramps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps", [("linf", 8.0), ("l2", 200.0), ("l1", 400.0)])
def test_eps_rises_with_the_training(norm, eps, batch):
    x, y = batch
    model = network().eval()
    for attack in (PGD, APGD):
        ramped, full = attack(eps, 3, norm=norm, eps_warmup=0.5), attack(eps, 3, norm=norm)
        quarter = attack(f"{eps / 4}/255", 3, norm=norm)
        share = lambda of: torch.tensor(of, dtype=torch.float64)  # noqa: E731
        half_way, late = (ramped(model, x, y, rng(), share(of)) for of in (0.125, 0.75))
        assert (half_way - quarter(model, x, y, rng(), share(0.125))).abs().max() < 1e-9
        assert (late - full(model, x, y, rng(), share(0.75))).abs().max() < 1e-9
        assert torch.equal(ramped(model, x, y, rng()), full(model, x, y, rng()))
        still = ramped(model, x, y, rng(), share(0.0))
        assert (still - x).abs().max() < 1e-9


def test_steps_rise_with_the_training(batch):
    x, y = batch
    model, ramped = network().eval(), PGD(8, 4, steps_warmup=0.8)
    for progress, steps in {0.0: 1, 0.2: 1, 0.21: 2, 0.55: 3, 0.7: 4, 0.9: 4}.items():
        now = ramped(model, x, y, rng(), torch.tensor(progress, dtype=torch.float64))
        assert (now - PGD(8, steps)(model, x, y, rng())).abs().max() < 1e-12, progress


@pytest.mark.parametrize("key", ["eps_warmup", "steps_warmup"])
def test_a_warmup_in_epochs_is_refused(key):
    with pytest.raises(ValueError, match=f"{key}=10: is a share of the training"):
        PGD(8, **{key: 10})


# APGD ---------------------------------------------------------------------------------------------


def test_apgd_of_two_steps_is_its_formula(batch):
    """Start at the image, a step of 2 eps, then 3/4 of a step and 1/4 of the way before; the point
    of the highest loss."""
    x, y = batch
    model, eps = network().eval(), 8 / 255
    near = lambda point: torch.min(torch.max(point, x - eps), x + eps).clamp(0, 1)  # noqa: E731
    losses, gradient = slope(model, x, y)
    first = near(x + 2 * eps * gradient.sign())
    middle, gradient = slope(model, first, y)
    ahead = near(first + 2 * eps * gradient.sign())
    last = near(first + 0.75 * (ahead - first) + 0.25 * (first - x))
    every = torch.stack([losses, middle, slope(model, last, y)[0]])
    points = torch.stack([x, first, last])
    expected = points[every.argmax(0), torch.arange(ROWS)]
    assert (APGD(8, 2, start="none")(model, x, y) - expected).abs().max() < 1e-9


class Wave(nn.Module):
    """A bend in every direction: a first step of twice eps often goes too far."""

    def forward(self, x):
        return x.sin()


@pytest.mark.parametrize("norm, eps, loss", [("linf", 120, "ce"), ("l2", 1200, "ce"),
                                             ("linf", 120, "dlr")])  # fmt: skip
def test_apgd_is_the_published_one_step_by_step(norm, eps, loss):
    """Against the package, whose first step counts as a rise where its loss is above 0: always of
    cross-entropy, never of dlr before the target is reached."""
    from pyautoattack.autopgd_base import APGDAttack_targeted

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(24, 3, 6, 6, generator=generator, dtype=torch.float64)
    any_label = torch.randint(0, 4, (24,), generator=generator)
    model = network().eval()
    model[0].weight.data *= 10
    model[2] = Wave()
    y, aim = model(x).topk(2).indices.unbind(1)
    for steps in (1, 2, 5, 10, 14):
        theirs = APGDAttack_targeted(
            model, steps, {"linf": "Linf", "l2": "L2"}[norm], eps=eps / 255, device="cpu"
        )
        theirs.init_hyperparam(x)
        theirs.y_target, target = aim, 1
        if loss == "ce":
            theirs.loss, target, y = "ce", None, any_label
        expected = theirs.attack_single_run(x, y, x_init=x)[0]
        ours = APGD(eps, steps, norm=norm, start="none", loss=loss, target=target)
        assert (ours(model, x, y) - expected).abs().max() < 1e-5, steps


def test_apgd_costs_a_forward_more_than_pgd(batch):
    counts = {}
    for attack in (PGD(8, 3), APGD(8, 3), Multi({"linf": 8, "l1": 400}, 3)):
        model, passes = network(), []
        model.register_forward_hook(lambda module, given, out, passes=passes: passes.append(
            out.requires_grad))  # fmt: skip
        attack(model.eval(), *batch)
        counts[type(attack).__name__] = (len(passes), sum(passes))
    assert counts == {"PGD": (3, 3), "APGD": (4, 3), "Multi": (4, 3)}


def published_apgd_l1(model, x, y, eps: float, steps: int, share: float):
    """An image's ascent in L1 from the image itself, as Croce and Hein (2021) describe it."""
    count, window = x.numel(), max(int(0.04 * steps), 1)
    losses, gradient = slope(model, x, y)
    best, best_loss, best_gradient = x, losses, gradient
    entries, changed, step, point = count - int((1 - share) * count), count, eps, x
    for k in range(1, steps + 1):
        least = gradient.abs().flatten().sort(descending=True).values[entries - 1]
        signs = gradient.sign() * (gradient.abs() >= least)
        point = nearest_in_l1(point + step * signs / signs.abs().sum(), x, eps)
        loss, gradient = slope(model, point, y)
        if loss > best_loss:
            best, best_loss, best_gradient = point, loss, gradient
        if k % window == 0:
            now = int(((best - x).abs() > 1e-9).sum())
            if now < 0.95 * changed:
                step, point, gradient = eps, best, best_gradient
            else:
                step = max(step / 1.5, eps / 10)
            entries, changed = max(math.ceil(2 * now / 3), 1), now
    return best


def nearest_in_l1(point, x, eps: float):
    """Of one image, by halving an interval around the cut."""
    d = point - x
    room = torch.where(d > 0, 1 - x, x)
    kept = lambda cut: torch.minimum((d.abs() - cut).clamp(min=0), room)  # noqa: E731
    low, high = 0.0, float(d.abs().max())
    if kept(0.0).sum() <= eps:
        return x + d.sign() * kept(0.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle).sum() > eps else (low, middle)
    return x + d.sign() * kept(high)


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.7, 3.0, 1000.0])
def test_the_projection_in_l1_is_exact(eps):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 6, 6, generator=generator, dtype=torch.float64)
    x[0], x[1] = 0.0, 1.0
    point = x + torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
    point[2] = x[2]
    point[3] = x[3] + 0.1  # ties
    found = x + onto_l1(point - x, x, eps)
    expected = torch.stack([nearest_in_l1(p, at, eps) for p, at in zip(point, x, strict=True)])
    assert (found - expected).abs().max() < 1e-9
    near = Ball(eps, "l1").project(point.float(), x.float())
    assert (near - expected).abs().max() < 1e-6
    assert ((near - x.float()).abs().flatten(1).sum(1) <= eps * (1 + 1e-6) + 1e-6).all()


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_apgd_in_l1_is_the_published_one(steps, batch):
    """Its first step takes 20 % of the entries in a measurement, 5 % in a training."""
    x, y = batch
    model, eps, half_way = network().eval(), 500, torch.tensor(0.5)
    for share, progress in ((0.2, None), (0.05, half_way)):
        found = APGD(eps, steps, norm="l1", start="none")(model, x, y, rng(), progress)
        for k in range(ROWS):
            expected = published_apgd_l1(model, x[k : k + 1], y[k : k + 1], eps / 255, steps, share)
            assert (found[k : k + 1] - expected).abs().max() < 1e-9, (share, k)


def test_starts_in_l1_fill_the_ball_and_its_surface():
    x, far = torch.full((2000, 1, 2, 2), 0.5), RowRng(0, torch.arange(2000))
    size = (PGD("0.4/1", norm="l1").begin(x, far) - x).flatten(1).abs().sum(1) / 0.4
    assert size.max() <= 1 + 1e-5 and abs((size**4).mean() - 0.5) < 0.03  # r^d is uniform
    edge = (Ball(0.4, "l1").surface(x, far) - x).flatten(1)
    assert (edge.abs().sum(1) - 0.4).abs().max() < 1e-6
    assert edge.mean(0).abs().max() < 0.01  # any side
    assert abs((edge[:, 0].abs() / 0.4).mean() - 1 / 4) < 0.02
    assert abs(((edge[:, 0].abs() / 0.4) ** 2).mean() - 2 / 20) < 0.01  # Dirichlet(1, 1, 1, 1)


# several balls ------------------------------------------------------------------------------------


def test_multi_is_apgd_in_the_ball_that_is_drawn(batch):
    x, y = batch
    model, drawn = network().eval(), set()
    for key in range(8):
        multi = Multi({"linf": 8, "l1": 400}, 3)
        number = int(multi.choose(rng(key)))
        norm, eps = [*multi.members.items()][number]
        alone, now = APGD(eps, 3, norm=norm, start="none"), torch.tensor(0.5)
        found, expected = (a(model, x, y, rng(key), now) for a in (multi, alone))
        assert (found - expected).abs().max() < 1e-12
        drawn.add(norm)
    assert drawn == {"linf", "l1"}
    assert (multi.eps, multi.norm) == (8, "linf")


@pytest.mark.parametrize("steps", [1, 3])
def test_multi_counts_images_that_stand_at_every_point_on_the_way(steps, batch):
    """The published count, of which the update's own forward knows nothing."""
    x, y = batch
    model, right = network().eval(), []
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    model.register_forward_hook(lambda module, given, out: right.append(out.argmax(1) == y))
    multi = Multi({"linf": 8, "l1": 400}, steps)
    multi.settle(x, ROWS)
    multi(model, x, y, rng())
    stood = torch.stack(right).all(0).sum()
    assert len(right) == steps + 1 and 0 < stood < right[0].sum()
    assert multi.counted.tolist() == [stood, ROWS]
    multi(model, x, y, rng())  # another part of the batch
    assert multi.counted.tolist() == [2 * stood, 2 * ROWS]
    multi.settle(x, ROWS)
    assert multi.counted.tolist() == [0, 0]


def test_what_an_attack_counts_is_summed_over_processes(batch):
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=ROWS, epochs=1), ROWS, 0, choices)
    method = Method(Multi({"linf": 8, "l1": 400}, 1), Adversarial())
    state, x = TrainState(network().float(), method, plan), batch[0].float()
    state.begin(x)
    state.attack(state.model, x, batch[1], rng())
    stood, images = state.attack.counted.tolist()
    state.learners.world = SimpleNamespace(
        add_=lambda tensors: [tensor.mul_(3) for tensor in tensors]
    )
    state.learners.learn(state.sums, torch.tensor(False))
    assert images == ROWS and 0 < stood < ROWS
    assert state.attack.state_dict()["counts"].sum(0).tolist() == [3 * stood, 3 * ROWS]


def test_multi_draws_a_ball_by_the_errors_under_it():
    multi = Multi({"linf": 8, "l1": 400, "l2": 128})
    sums, broken = torch.tensor([1.0, 5.0, 7.0, 100.0]), torch.tensor(False)

    def learn(member: int, stood: float) -> None:
        multi._chosen.fill_(member)
        for skipped, count in ((broken, stood), (~broken, 0.0)):
            multi.counted.copy_(torch.tensor([count, 100.0]))
            multi.learn(sums, skipped)

    for member, stood in ((0, 90.0), (1, 30.0), (0, 90.0)):
        learn(member, stood)
    shares = lambda: [  # noqa: E731
        sum(int(multi.choose(rng(key))) == k for key in range(1000)) / 1000 for k in range(3)
    ]
    assert shares() == pytest.approx([1 / 3] * 3, abs=0.05)  # until each has been drawn
    learn(2, 80.0)
    assert shares() == pytest.approx([0.1, 0.7, 0.2], abs=0.04)
    again = Multi({"linf": 8, "l1": 400, "l2": 128})
    again.load_state_dict(multi.state_dict())
    assert all(torch.equal(again.choose(rng(k)), multi.choose(rng(k))) for k in range(20))


@pytest.mark.parametrize(
    "members, said",
    [
        ({"linf": 8}, "two norms"),
        ({"linf": 8, "l3": 8}, "members.l3=8"),
        ({"linf": 0.03, "l1": 3060}, "members.linf=0.03: eps=0.03: the unit"),
        ({"linf": 8, "l1": 12}, "members.l1=12: eps=12: the unit"),
        ({"linf": 8, "l1": 0}, "members.l1=0: must be above 0"),
    ],
)
def test_multi_refuses_by_name(members, said):
    with pytest.raises(ValueError, match=said):
        Multi(members)
