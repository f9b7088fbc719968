"""Weights that are perturbed for an update: against the formula, and restored whatever happens."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from conftest import small_network
from torch import nn

from sat.attacks import PGD
from sat.errors import Refused
from sat.objectives import (
    AWP,
    MART,
    TRADES,
    Adversarial,
    Consistency,
    Method,
    Unperturbed,
    WeightAttack,
)
from sat.objectives import GradientNorm as SmallGradient
from sat.training.plan import Plan
from sat.training.preflight import check_method
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

BATCH = 12


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(BATCH, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (BATCH,), generator=generator)


def smooth_network() -> nn.Module:
    """Without batch norm, so that parts of a batch make up the whole."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 10))


def state_of(weight_attack, net=None, objective=None, **schedule) -> TrainState:
    words = {"epochs": 4, "learning_rate": 1.0, "decay": "constant", "warmup_epochs": 0.0}
    plan = Plan(Schedule(batch_size=BATCH, **{**words, **schedule}), BATCH, 0,
                {"precision": "fp32", "channels_last": False, "compile": False})  # fmt: skip
    method = Method(PGD(20, 2, loss="ce"), objective or Adversarial(), weight_attack=weight_attack)
    return TrainState(net or small_network(), method, plan)


def perturbed(net: nn.Module, gradients: dict[str, torch.Tensor], gamma: float) -> dict:
    """w + gamma |w| g / |g| of matrices and filters, by name."""
    return {
        name: w + gamma * w.norm() * gradients[name] / gradients[name].norm() if w.ndim > 1 else w
        for name, w in net.named_parameters()
    }


def test_each_weight_goes_up_the_loss_by_its_share():
    net, (x, y) = small_network().double(), batch()
    before = copy.deepcopy(net)
    gradients = dict(zip(dict(net.named_parameters()),
                         torch.autograd.grad(F.cross_entropy(net(x.double()), y), net.parameters()),
                         strict=True))  # fmt: skip
    with torch.no_grad():
        loss = torch.enable_grad()(lambda: F.cross_entropy(net(x.double()), y).backward())
        AWP(0.03).perturb(net, loss, torch.zeros(()))
    for name, wanted in perturbed(before, gradients, 0.03).items():
        torch.testing.assert_close(net.get_parameter(name), wanted, rtol=1e-12, atol=0)
    moved = (net[0].weight - before[0].weight).norm() / before[0].weight.norm()
    assert moved.item() == pytest.approx(0.03) and torch.equal(net[1].weight, before[1].weight)


@pytest.mark.parametrize("objective", [Adversarial(), TRADES(), MART()])
def test_a_step_descends_where_the_weights_stood_and_they_are_restored(objective):
    """By the published order: gradient and weight decay are those of the perturbed weights, on the
    whole loss; what the optimiser adds there is added to the weights from before."""
    words = {"weight_decay": 0.1, "optimizer": "momentum"}  # whose first step is the gradient's
    state = state_of(AWP(0.05), objective=objective, **words)
    plain, (x, y), seen, attack = copy.deepcopy(state.model).double(), batch(), [], state.attack
    state.attack = lambda *given: seen.append(attack(*given)) or seen[-1]
    update(state, x, y)
    x, x_adv = x.double(), seen[0].double()
    named = dict(plain.named_parameters())
    before = {name: w.detach().clone() for name, w in named.items()}
    statistics = copy.deepcopy(plain[1].state_dict())

    def gradients():
        loss, _ = objective(plain, x, x_adv, y)
        return dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))

    there = perturbed(plain, gradients(), 0.05)
    plain[1].load_state_dict(statistics)
    with torch.no_grad():
        for name, w in named.items():
            w.copy_(there[name])
    for name, g in gradients().items():
        rate = state.plan.rate(0)
        decay = 0.1 * there[name] if before[name].ndim > 1 else 0.0
        wanted = before[name] - rate * (g + decay)
        found = state.model.get_parameter(name).double()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
    for name, value in plain[1].named_buffers():  # the ascent has moved none
        torch.testing.assert_close(state.model[1].get_buffer(name).double(), value.double())


@dataclass(frozen=True)
class Failing(Adversarial):
    """Not finite from its call number `at` on, for `times` calls."""

    at: int = 0
    times: int = 1

    def __post_init__(self):
        object.__setattr__(self, "calls", [])

    def __call__(self, *given):
        loss, logits = super().__call__(*given)
        self.calls.append(1)
        return loss * (
            float("nan") if 0 <= len(self.calls) - self.at - 1 < self.times else 1
        ), logits


@pytest.mark.parametrize("at, where", [(2, "ascent"), (3, "descent")])
def test_a_skipped_step_restores_every_bit(at, where):
    """The second step's, whose ascent has a NaN, which then is in every weight, or its descent."""
    state = state_of(AWP(0.05), objective=Failing(at=at), ema=0.9)
    for step in range(2):
        if step:
            before = copy.deepcopy(state.state_dict())
        update(state, *batch(step))
    after = state.state_dict()
    assert state.skips.counts[1] == 1, where
    for part in ("model", "average"):
        for key, value in before[part].items():
            assert torch.equal(after[part][key], value), (where, key)


def test_subtracting_the_perturbation_would_not_restore_every_bit():
    w = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    d = 0.01 * w.norm() / 100 * torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    assert not torch.equal((w + d) - d, w)


@pytest.mark.parametrize("at", [2, 3])
def test_an_exception_amid_a_step_restores_the_weights(at):
    from sat.training.memory import attempt

    class Breaking(Failing):
        def __call__(self, *given):
            if len(self.calls) == self.at:
                raise RuntimeError("broken")
            return super().__call__(*given)

    state = state_of(AWP(0.05), objective=Breaking(at=at, times=0))
    attempt(state, *batch(0))
    before = copy.deepcopy(state.state_dict())
    with pytest.raises(RuntimeError, match="broken"):
        attempt(state, *batch(1))
    for key, value in before["model"].items():
        assert torch.equal(state.state_dict()["model"][key], value), key


def test_the_average_sees_restored_weights():
    state, raw = state_of(AWP(0.05), ema=0.5), []
    for step in range(3):
        update(state, *batch(step))
        raw.append(state.model[3].weight.detach().clone())
    wanted = (raw[0] * 0.5 + raw[1] * 0.5) * 0.5 + raw[2] * 0.5
    torch.testing.assert_close(state.average.module[3].weight, wanted)


def test_parts_of_a_batch_perturb_as_the_whole_does():
    whole, parts = (state_of(AWP(0.1), smooth_network(), accumulate=k) for k in (1, 3))
    none = state_of(AWP(1e-6), smooth_network())
    for state in (whole, parts, none):
        for step in range(3):
            update(state, *batch(step))
    weights = [torch.cat([p.flatten() for p in s.model.parameters()]) for s in (whole, parts, none)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    assert (weights[0] - weights[2]).abs().max() > 1e-3, "the measure can tell a perturbation"


@pytest.mark.parametrize(
    "objective, attack",
    [(TRADES(), AWP(0.05, 2)), (MART(), AWP()), (Consistency(), AWP()), (SmallGradient(), None)],
)
def test_loaded_it_goes_on_as_if_never_stopped(objective, attack):
    given = {"objective": objective, "ema": 0.9, "accumulate": 2}
    whole, again = (state_of(attack or Unperturbed(), **given) for _ in range(2))
    views = objective.views
    for step in range(4):
        x, y = batch(step)
        if step == 2:
            again.load_state_dict(copy.deepcopy(whole.state_dict()))
        for state in (whole, again)[: 1 + (step > 1)]:
            update(state, torch.cat([x, x.flip(3)][:views]), torch.cat([y] * views))
    for part in ("model", "average"):
        one, two = (state.state_dict()[part] for state in (whole, again))
        assert all(torch.equal(one[key], two[key]) for key in one), part
    assert again.step == 4


def test_it_begins_after_the_warm_up():
    """In whose epochs it changes no bit; one update is an epoch here."""
    warm, plain = state_of(AWP(0.05, warmup_epochs=2)), state_of(Unperturbed())
    for step in range(3):
        for state in (warm, plain):
            update(state, *batch(step))
        pairs = zip(warm.model.parameters(), plain.model.parameters(), strict=True)
        assert all(map(torch.equal, *zip(*pairs, strict=True))) == (step < 2), step


def test_where_no_weight_is_of_its_kind_it_moves_none():
    net = nn.BatchNorm2d(1)
    with torch.no_grad():
        AWP().perturb(net, lambda: None, torch.zeros(()))
    assert torch.equal(net.weight, torch.ones(1))


def test_an_ascent_of_the_warm_up_that_is_not_finite_skips_no_step():
    state = state_of(AWP(0.05, warmup_epochs=9), objective=Failing(at=2))
    for step in range(2):
        update(state, *batch(step))
    assert state.skips.counts[1] == 0


@pytest.mark.parametrize(
    "given, says",
    [
        ((-0.1,), "gamma=-0.1: must be above 0"),
        ((0.0,), "gamma=0.0: .*weight_attack=none"),
        ((float("nan"),), "gamma=nan"),
        ((0.1, -1.0), "warmup_epochs=-1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(given, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        AWP(*given)


def test_shared_out_weights_are_refused():
    method = Method(PGD(8), Adversarial(), weight_attack=AWP())
    with pytest.raises(Refused, match="^schedule.shard=true: .*weight_attack=none"):
        check_method(method, Schedule(shard=True), {})
    check_method(Method(PGD(8), Adversarial()), Schedule(shard=True), {})


def test_the_command_refuses_in_one_line(sat):
    done = sat("weight_attack=awp", "weight_attack.gamma=-1")
    assert done.code == 2 and not done.runs and done.err.count("\n") == 1
    assert done.err.startswith("! weight_attack.gamma=-1")


def test_the_protocol_asks_for_no_more_than_perturb():
    assert [name for name in vars(WeightAttack) if not name.startswith("_")] == ["perturb"]
