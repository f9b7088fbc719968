"""What is minimised, against the formula in float64; and where the objective's name is told."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import small_network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat import config, identity
from sat.activations import SiLU, SmoothReLU
from sat.attacks import FGSM, PGD, Clean
from sat.errors import Refused
from sat.objectives import (
    AWP,
    MART,
    TRADES,
    Adversarial,
    Consistency,
    GradientNorm,
    Method,
    Unperturbed,
    training_attack,
)
from sat.rng import RowRng, seed_of
from sat.training.plan import Plan
from sat.training.preflight import check_method, check_objective
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, (x + noise).clamp(0, 1), torch.arange(6) % 10


def gradients(loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*net.parameters()])])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("forwards", [2, 3])
def test_trades_is_its_formula(forwards, smoothing):
    net, (x, x_adv, y) = small_network().double(), batch()
    found, logits = TRADES(5.0, forwards, smoothing)(net, x, x_adv, y)
    p, q = net(x).softmax(1), net(x_adv).softmax(1)
    target = torch.full_like(p, smoothing / 10).scatter_add_(
        1, y[:, None], torch.full_like(p, 1 - smoothing)[:, :1]
    )
    natural = -(target * p.log()).sum(1).mean()
    expected = natural + 5 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.softmax(1), q, rtol=1e-12, atol=0)
    own, plain = gradients(found, net), gradients(expected, net)
    torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("forwards", [2, 3])
def test_statistics_move_once_a_forward(forwards):
    net, (x, x_adv, y) = small_network().double(), batch()
    TRADES(forwards=forwards)(net, x, x_adv, y)
    assert net[1].num_batches_tracked == forwards
    alone = small_network().double()
    for images in (x, x_adv, x)[:forwards]:
        alone(images)
    assert torch.equal(net[1].running_mean, alone[1].running_mean)


@pytest.mark.parametrize("start", ["zero", "batch"])
def test_statistics_may_begin_with_those_of_the_first_update(start):
    """Momentum 1 in the first update, as `train_mode` of Gowal's code: nothing is left of 0."""
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=9, norm_start=start), 6, 0, choices)
    net, means, (x, _, y) = small_network(), [], batch()
    net[1].register_forward_hook(lambda norm, given, _: means.append(given[0].mean((0, 2, 3))))
    state = TrainState(net, Method(Clean(), TRADES()), plan)
    kept = []
    for _ in range(2):
        update(state, x.float(), y)
        kept.append(net[1].running_mean.clone())
    first, second = (1.0, 0.1) if start == "batch" else (0.1, 0.1)
    expected = torch.zeros_like(kept[0])
    for mean, momentum in zip(means, (first, first, second, second), strict=True):
        expected = (1 - momentum) * expected + momentum * mean
    torch.testing.assert_close(kept[1], expected.detach())
    assert torch.allclose(kept[0], means[1]) is (start == "batch") and net[1].momentum == 0.1


@pytest.mark.parametrize("skipped", [1, 5])
def test_statistics_begin_with_the_first_step_that_is_taken(skipped):
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=9, norm_start="batch"), 6, 0, choices)
    net, (x, _, y) = small_network(), batch()
    state = TrainState(net, Method(Clean(), Adversarial()), plan)
    for _ in range(skipped):
        update(state, x.float() * float("nan"), y)
    assert not net[1].running_mean.any() and net[1].momentum == 1
    seen = []
    net[1].register_forward_hook(lambda norm, given, _: seen.append(given[0].mean((0, 2, 3))))
    update(state, x.float(), y)
    torch.testing.assert_close(net[1].running_mean, seen[0].detach())
    again = TrainState(small_network(), Method(Clean(), Adversarial()), plan)
    again.load_state_dict(state.state_dict())
    for each in (state, again):
        update(each, x.float(), y)
        assert each.model[1].momentum == 0.1 and not each.norm_start.waits
    assert torch.equal(state.model[1].running_mean, again.model[1].running_mean)


def test_the_divergence_of_certain_answers_has_a_gradient():
    """KL with a target of exactly 0 gives NaN."""
    logits = nn.Parameter(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]))
    loss, _ = TRADES()(lambda x: logits * x, torch.ones(2, 1), -torch.ones(2, 1), torch.arange(2))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "objective", [Adversarial(), TRADES(), MART(), GradientNorm(), Consistency()]
)
def test_soft_labels_are_those_of_one_class(objective):
    net, (x, x_adv, y) = small_network().double(), batch()
    hard, _ = objective(net, x, x_adv, y)
    soft, _ = objective(net, x, x_adv, nn.functional.one_hot(y, 10).double())
    torch.testing.assert_close(hard, soft, rtol=1e-12, atol=0)


@pytest.mark.parametrize("hidden", [None, 2], ids=["both", "one"])
@pytest.mark.parametrize("objective", [TRADES(), TRADES(forwards=3), MART(), Consistency()])
def test_classes_that_the_network_masks_count_nothing(objective, hidden):
    """A logit of -inf, of all images or of clean images and first views alone, as without the
    class; what makes a divergence infinite is no less."""
    net, (x, x_adv, y) = small_network().double(), batch()
    y = y % 3 + 3

    def masking(images: torch.Tensor) -> torch.Tensor:
        logits = net(images)
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[:, :2] = True
        if hidden is not None:
            rows = slice(0, 3) if objective.views == 2 else slice(0, 6 * (images is x))
            mask[rows, hidden] = True
        return logits.masked_fill(mask, -torch.inf)

    low = lambda images: masking(images).clamp(min=-1e4)  # noqa: E731
    found, _ = objective(masking, x, x_adv, y)
    wanted, _ = objective(low, x, x_adv, y)
    assert found.isfinite()
    nearly(found, wanted, *net.parameters())


def test_a_divergence_that_is_infinite_stays_so():
    """An answer that only the adversarial image makes impossible: the step is skipped."""
    logits = torch.zeros(1, 3)
    masked = torch.tensor([[0.0, 0.0, -torch.inf]])
    x, x_adv = torch.zeros(1), torch.ones(1)
    loss, _ = TRADES()(lambda images: masked if images is x_adv else logits, x, x_adv,
                       torch.tensor([0]))  # fmt: skip
    assert loss == torch.inf


# the attack of an objective -----------------------------------------------------------------------


def test_the_training_attack_alone_follows_the_objective():
    assert training_attack(PGD(8, 2), TRADES()) == PGD(8, 2, loss="kl")
    assert training_attack(PGD(8, 2), Adversarial()) == PGD(8, 2, loss="ce")
    assert training_attack(PGD(8, 2, loss="margin"), TRADES()) == PGD(8, 2, loss="margin")
    with pytest.raises(Refused, match="^attack.start=none: "):
        training_attack(PGD(8, 2, start="none"), TRADES())


def composed(*words: str) -> config.Spec:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", [*words], return_hydra_config=True)
        chosen = dict(cfg.hydra.runtime.choices)
        cfg = compose("config", [*words])
    groups = {*identity.SECTIONS}
    choices = {group: option for group, option in chosen.items() if group in groups}
    return config.check({**config.resolve(cfg), "choices": choices})


@pytest.mark.parametrize("objective", config.options()["objective"])
def test_no_objective_moves_what_chooses_best_nor_the_test(objective):
    """They are built from the same file as the training's attack."""
    spec, usual = composed(f"objective={objective}"), composed()
    assert spec.validation.attack == usual.validation.attack
    assert spec.evaluation.attacks == usual.evaluation.attacks
    net, (x, _, y) = small_network().eval(), batch()
    x, rng = x.float(), RowRng(0, torch.arange(6))
    for attack in (spec.validation.attack, *spec.evaluation.attacks.values()):
        as_ce, as_kl = (replace(attack, loss=loss)(net, x, y, rng) for loss in ("ce", "kl"))
        assert torch.equal(attack(net, x, y, rng), as_ce) and not torch.equal(as_ce, as_kl)


def test_a_step_ascends_what_it_is_given():
    """The attack asks for the divergence, and soft labels are counted by their largest entry."""
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=1), 6, 0, choices)
    objective = TRADES()
    method = Method(training_attack(PGD(20, 2), objective), objective)
    state = TrainState(small_network(), method, plan)
    x, _, y = batch()
    rng = RowRng(seed_of(0, "attack", 0), torch.arange(6))
    own, net = PGD(20, 2, loss="kl")(state.model, x.float(), y, rng), small_network()
    loss, logits = objective(net, x.float(), own, y)
    update(state, x.float(), nn.functional.one_hot(y, 10).float())
    told = state.read()
    assert told["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    right = (logits.argmax(1) == y).float().mean()
    assert told["train/adversarial_accuracy"] == pytest.approx(right.item())


def test_what_makes_no_sense_together_is_refused(sat):
    check_objective(Clean(), Adversarial(), {})
    check_objective(FGSM(8), TRADES(), {})
    with pytest.raises(Refused, match="^objective=trades: compares .*attack=pgd"):
        check_objective(Clean(), TRADES(), {"objective": "trades"})
    for words, says in (
        (["objective=trades", "attack=none"], "objective=trades: compares"),
        (["objective=mart", "attack=none"], "objective=mart: compares"),
        (
            ["objective=trades", "attack=square"],
            "objective=trades: its attack ascends kl, and attack=square only margin",
        ),
        (
            ["regulariser=elle_a", "attack.norm=l2", "attack.eps=128"],
            "regulariser=elle_a: its",
        ),
        (["attack=free", "weight_attack=awp"], "weight_attack=awp: moves the weights after"),
        (["attack=free", "schedule.swa_start=0.5"], "and attack=free is the update's own"),
        (["objective=gradient_norm"], "objective=gradient_norm: looks at no adversarial image"),
        (["objective=gradient_norm", "attack=none", "schedule.compile=true"], "schedule.compile"),
        (["objective=consistency", "objective.temperature=0"], "objective.temperature=0"),
        (["objective=consistency", "augment=none"], "which are all alike with augment=none"),
        (["objective=mart", "augment=cutmix"], "objective=mart: weighs an image by"),
        (["objective=mart", "objective.label_smoothing=-1"], "objective.label_smoothing=-1"),
        (["objective=trades", "attack=fgsm"], "attack.loss=kl: has no gradient"),
        (["objective.label_smoothing=1"], "objective.label_smoothing=1"),
        (["objective=trades", "objective.beta=-1"], "objective.beta=-1"),
        (["objective=trades", "objective.forwards=4"], "objective.forwards=4"),
        (["schedule.label_smoothing=0.1"], "label_smoothing"),
    ):
        refused = sat(*words)
        assert refused.code == 2 and not refused.runs, refused.err
        assert refused.err.count("\n") == 1 and says in refused.err, refused.err


def test_an_objective_of_before_lacks_nothing():
    """What it does not say goes without saying, whether it derives from the contract or not."""

    class Old:
        views, attacked = 2, True

    check_objective(PGD(8), Old(), {})
    assert (Old.views, Old.attack_loss, Old.one_label, Old.second_order) == (2, "ce", False, False)
    with pytest.raises(Refused, match="^objective=old: compares"):
        check_objective(Clean(), Old(), {"objective": "old"})


@pytest.mark.parametrize("key", ["compile", "grad_checkpointing", "shard"])
def test_what_no_gradient_can_be_differentiated_under_is_refused(key):
    method = Method(Clean(), GradientNorm())
    with pytest.raises(Refused, match=f"^schedule.{key}=True: .*write false"):
        check_method(method, Schedule(**{key: True}), {})
    check_method(method, Schedule(), {})
    check_method(Method(PGD(8), TRADES()), Schedule(**{key: True}), {})


@pytest.mark.parametrize("activation, alarms", [("relu", 1), ("pssilu", 0)])
def test_gradients_of_a_network_that_bends_nowhere_raise_an_alarm(sat, activation, alarms):
    words = ["objective=gradient_norm", "attack=none", f"activation={activation}"]
    done = sat(*words, "schedule.compile=auto")
    assert done.code == 0, done.err
    found = [alarm for alarm in done.result["alarms"] if alarm["name"] == "no_curvature"]
    assert len(found) == alarms and done.result["choices"]["compile"] is False
    assert ("ReLU has no second derivative" in done.out + done.err) == bool(alarms)
    assert done.result["best"]["selected_by"].startswith("robust")
    assert "-none-gradient_norm1.2-" in done.run.name


def test_an_objective_is_told_wherever_an_attack_is(sat):
    done = sat("objective=trades", "objective.beta=2.5", "metrics=gradient_norm")
    assert done.code == 0, done.err
    assert "-pgd1-trades2.5-3ep-s0-" in done.run.name
    assert "objective: trades beta=2.5 forwards=2" in done.out and "loss=auto (here kl)" in done.out
    assert done.result["objective"]["option"] == "trades"
    assert done.result["objective"]["beta"] == 2.5
    from sat.loggers.base import compared

    spec = config.check(yaml.safe_load((done.run / "config.yaml").read_text()))
    table = compared(spec.config)
    assert table["objective"] == "trades" and table["objective.beta"] == 2.5
    rows = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["train/gradient_norm"] > 0 for row in rows if "train/loss" in row)
    other = sat("objective=trades", "objective.beta=2.5", "metrics=default")
    assert other.code == 0 and other.runs == done.runs, "figures are no part of an identity"


# figures ------------------------------------------------------------------------------------------


def test_the_norm_of_the_gradient_is_averaged_over_the_steps_of_a_log():
    from sat.training.metrics import GradientNorm as Norms

    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=1, clip=0.01), 6, 0, choices)
    norms = []

    class Watched(Norms):
        def __call__(self, state):
            gradient = torch.cat([g.flatten() for g in state.gradients])
            norms.append(gradient.double().norm().item())
            return super().__call__(state)

    state = TrainState(small_network(), Method(PGD(20, 1), Adversarial()), plan, metrics=Watched())
    x, _, y = batch()
    for step in range(5):
        update(state, x.float() * (float("nan") if step == 2 else 1), y)
    del norms[2]
    told = state.read()
    assert told["train/gradient_norm"] == pytest.approx(sum(norms) / 4, rel=1e-6)
    assert told["train/gradient_norm"] > 0.01, "it is that before the gradient is clipped"
    assert set(state.read()) == {"train/learning_rate", "train/skipped_steps"}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_adversarial_is_cross_entropy_with_smoothed_labels(smoothing):
    x, x_adv, y = torch.rand(4, 3), torch.rand(4, 3), torch.tensor([0, 2, 1, 1])
    loss, logits = Adversarial(smoothing)(torch.nn.Identity(), x, x_adv, y)
    wanted = torch.full((4, 3), smoothing / 3)
    wanted[range(4), y] += 1 - smoothing
    assert torch.equal(logits, x_adv)
    assert loss == pytest.approx(-(wanted * x_adv.log_softmax(1)).sum(1).mean().item())


# MART, gradient norm, consistency -----------------------------------------------------------------


def nearly(found: torch.Tensor, wanted: torch.Tensor, *parameters: torch.Tensor) -> None:
    """Both losses, and their gradients by the parameters, are equal in float64."""
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    pairs = [torch.autograd.grad(loss, parameters) for loss in (found, wanted)]
    for mine, plain in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mart_is_its_formula(smoothing):
    """Image by image, as it is written in the paper, with the small numbers of the authors."""
    net, (x, x_adv, y) = small_network().double(), batch()
    found, logits = MART(4.0, smoothing)(net, x, x_adv, y)
    total = 0
    for p, q, label in zip(net(x).softmax(1), net(x_adv).softmax(1), y.tolist(), strict=True):
        smooth = torch.full((10,), smoothing / 10, dtype=torch.float64)
        smooth[label] += 1 - smoothing
        wrong = max((q[k] for k in range(10) if k != label), key=lambda value: value.item())
        total = total - (smooth * q.log()).sum() - (1.0001 - wrong + 1e-12).log()
        divergence = sum(p[k] * (p[k].log() - (q[k] + 1e-12).log()) for k in range(10))
        total = total + 4 * divergence * (1.0000001 - p[label])
    nearly(found, total / 6, *net.parameters())
    torch.testing.assert_close(logits, net(x_adv))


def test_mart_of_certain_answers_has_a_gradient():
    logits = nn.Parameter(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]))
    loss, _ = MART()(lambda x: logits * x, torch.ones(2, 1), -torch.ones(2, 1), torch.arange(2))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


ACTIVATIONS = {  # f and f' of z, written out
    "silu": (SiLU(), lambda z: z * z.sigmoid(), lambda z: z.sigmoid() * (1 + z - z * z.sigmoid())),
    "smoothrelu": (
        SmoothReLU(4.0, learnable=False),
        lambda z: z.clamp(min=0) - (1 + 4 * z.clamp(min=0)).log() / 4,
        lambda z: 4 * z.clamp(min=0) / (1 + 4 * z.clamp(min=0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
def test_gradient_norm_is_its_formula(activation, norm, dual):
    """The gradient of an image by hand, W1' (f'(W1 x) * (W2' (p - y))), in a network without batch
    norm: nothing here differentiates twice but the objective."""
    module, f, slope = ACTIVATIONS[activation]
    layers = nn.Flatten(), nn.Linear(64, 12), module, nn.Linear(12, 10)
    net, (x, x_adv, y) = nn.Sequential(*layers).double(), batch()
    objective = GradientNorm(30.0, norm, clean=0.7, beta=1.5, label_smoothing=0.1)
    epoch = torch.tensor(2.0, dtype=torch.float64)
    found, logits = objective(net, x, x_adv, y, epoch)
    z = net[1](x.flatten(1))
    p = net[3](f(z)).softmax(1)
    target = torch.full_like(p, 0.01).scatter_add(1, y[:, None], torch.full_like(p, 0.9))
    gradient = (slope(z) * ((p - target) @ net[3].weight)) @ net[1].weight
    size = gradient.norm(p=dual, dim=1).mean()
    entropy = -(target * p.log()).sum(1).mean()
    wanted = 0.7 * entropy + 1.5 * (2 / 5) * 30 / 255 * size
    nearly(found, wanted, *(p for p in net.parameters() if p.requires_grad))
    assert torch.equal(logits, net(x)) and not torch.equal(x, x_adv)


def test_the_strength_of_a_gradient_norm_rises_and_stays():
    net, (x, _, y) = small_network().double().eval(), batch()
    losses = [GradientNorm(30.0)(net, x, x, y, e)[0].item()
              for e in (torch.tensor(0.0), torch.tensor(2.5), torch.tensor(5.0), None)]  # fmt: skip
    entropy = 0.8 * nn.functional.cross_entropy(net(x), y).item()
    assert losses[0] == pytest.approx(entropy) and losses[2] == losses[3]
    assert losses[1] == pytest.approx((entropy + losses[2]) / 2)


def test_consistency_is_its_formula():
    net, (x, x_adv, y) = small_network().double(), batch()
    y = torch.cat([y[:3], y[:3]])
    found, logits = Consistency(2.0, 0.5, 0.1)(net, x, x_adv, y)
    answers = net(x_adv)
    target = torch.full_like(answers, 0.01).scatter_add(
        1, y[:, None], torch.full_like(answers, 0.9)
    )
    total = -(target * answers.softmax(1).log()).sum(1).mean()
    for one, two in zip(
        (answers[:3] / 0.5).softmax(1), (answers[3:] / 0.5).softmax(1), strict=True
    ):
        middle = (one + two) / 2
        jsd = ((one * (one / middle).log()).sum() + (two * (two / middle).log()).sum()) / 2
        total = total + 2 * jsd / 3
    nearly(found, total, *net.parameters())
    assert torch.equal(logits.softmax(1), answers.softmax(1))


# what it costs ------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts products with the 32x32 matrix of the network below, each by its share of a batch: a
    forward, a gradient of its input and one of its weight are a unit each."""

    units = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            one, two = args[-2:]
            sides = sorted([*one.shape, two.shape[1]])
            if sides.count(32) == 2:
                (images,) = {*sides} - {32}
                self.units += images / 6
        return func(*args, **(kwargs or {}))


K = 3
COSTS = {  # in units, with K steps of the attack
    "adversarial": (Adversarial(), None, 2 * K + 3),
    "trades": (TRADES(), None, 2 * K + 7),
    "trades as published": (TRADES(forwards=3), None, 2 * K + 10),
    "mart": (MART(), None, 2 * K + 6),
    "awp": (Adversarial(), AWP(), 2 * K + 6),
    "trades and awp": (TRADES(), AWP(), 2 * K + 13),
    "mart and awp": (MART(), AWP(), 2 * K + 12),
    "consistency": (Consistency(), None, 2 * (2 * K + 3)),
    "gradient norm": (GradientNorm(), None, 6),
}


@pytest.mark.parametrize("case", COSTS)
def test_a_step_costs_what_the_method_says(case):
    objective, weight_attack, units = COSTS[case]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), SiLU(), nn.Linear(32, 32), SiLU(),
                        nn.Linear(32, 10))  # fmt: skip
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=9, warmup_epochs=0), 6, 0, choices)
    attack = Clean() if case == "gradient norm" else training_attack(PGD(20, K), objective)
    method = Method(attack, objective, weight_attack=weight_attack or Unperturbed())
    state, (x, _, y) = TrainState(net, method, plan), batch()
    x, y = (torch.cat([part] * objective.views) for part in (x.float(), y))
    update(state, x, y)
    with Products() as counted:
        update(state, x, y)
    assert counted.units == pytest.approx(units)


# views --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
def test_both_views_of_an_image_are_in_one_part_with_noise_of_their_own(parts):
    """Each view is as a batch of its own would have it."""
    torch.manual_seed(0)
    net, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    choices = {"precision": "fp32", "channels_last": False, "compile": False}
    plan = Plan(Schedule(batch_size=6, epochs=9, accumulate=parts), 6, 0, choices)
    state, (x, other, y) = TrainState(net, Method(PGD(20, 1), Consistency()), plan), batch()
    attack = state.attack
    state.attack = lambda net, x, y, rng, p: seen.append((x, y, rng)) or attack(net, x, y, rng, p)
    both = torch.cat([x, other]).float()
    update(state, both, torch.cat([y, y]))
    assert len(seen) == parts
    for k, (images, labels, rng) in enumerate(seen):
        own = torch.arange(6).tensor_split(parts)[k]
        rows = torch.cat([own, own + 6])
        assert torch.equal(images, both[rows]) and torch.equal(labels, y[rows % 6])
        assert torch.equal(rng.rows, rows)


def test_parts_of_two_views_make_up_the_whole():
    weights = []
    for parts in (1, 3):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), SiLU(), nn.Linear(16, 10))
        choices = {"precision": "fp32", "channels_last": False, "compile": False}
        plan = Plan(Schedule(batch_size=6, epochs=9, accumulate=parts), 6, 0, choices)
        state, (x, other, y) = TrainState(net, Method(PGD(20, 1), Consistency(5.0)), plan), batch()
        for _ in range(3):
            update(state, torch.cat([x, other]).float(), torch.cat([y, y]))
        weights.append(torch.cat([p.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
