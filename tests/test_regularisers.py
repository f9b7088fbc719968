"""Regularisers against their formulas in plain float64; what learns from the steps, and what takes
a batch several times."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_network
from torch import nn

from sat.attacks import PGD, Clean, Free, Multi
from sat.config import composed
from sat.errors import Refused
from sat.models import Classifier
from sat.objectives import AWP, ELLE, TRADES, AdaptiveELLE, Adversarial, GradAlign, Method
from sat.rng import RowRng
from sat.training.plan import Plan
from sat.training.preflight import check_method, check_objective, check_processes
from sat.training.resume import check_memories
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

B = 5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(),
        nn.Linear(6 * 16, 4),
    ).double().train()  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(B, 2, 4, 4, generator=generator, dtype=torch.float64)
    x[0] = 0.0
    return x, torch.randint(0, 4, (B,), generator=generator)


def rng(key: int = 3) -> RowRng:
    return RowRng(key, torch.arange(B))


def misalignment(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean of 1 - cos, as it is written, in float64."""
    noise = 8 / 255 * (2 * rng().uniform("gradalign", 2, 4, 4).double() - 1)

    def slope(at, graph=False):
        at = at.clone().requires_grad_()
        total = F.cross_entropy(model(at), y)  # its mean: a factor
        return torch.autograd.grad(total, at, create_graph=graph)[0].flatten(1)

    here, there = slope(x).detach(), slope(x + noise, graph=True)
    cosine = (here * there).sum(1) / (here.norm(dim=1) * there.norm(dim=1))
    return (1 - cosine).mean()


def test_gradalign_is_its_formula(batch):
    """1 - cos of two gradients, the first held still; its gradient by the weights by differences of
    the second."""
    x, y = batch
    model, term = network(), GradAlign(0.2, 8)
    plain = network()
    expected = misalignment(plain, x, y)
    found = term(model, x, x, y, rng())
    assert found.item() == pytest.approx(expected.item(), abs=1e-7) and found > 0
    found.backward()
    expected.backward()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        assert own.grad is None or (own.grad - other.grad).abs().max() < 1e-6
    assert model[1].num_batches_tracked == 2 and model[0].weight.grad.abs().max() > 1e-4
    linear = nn.Sequential(nn.Flatten(), nn.Linear(32, 1, bias=False)).double()
    two = lambda x: torch.cat([z := linear(x), -z], 1)  # noqa: E731
    assert term(two, x, x, torch.zeros_like(y), rng()).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bias", [10, 31, 45])
def test_gradalign_sees_the_direction_of_small_gradients(bias):
    """Of answers that are sure: in float32 as in float64, down to gradients of 1e-20. The likely
    logit has no share in them: that would be 1 - 1 in float32."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(B, 2, 4, 4, generator=generator), torch.zeros(B, dtype=torch.long)
    model, plain = network().float(), network()
    with torch.no_grad():
        for net in (model, plain):
            net[-1].bias[0] += bias
            net[-1].weight[0] = 0
    found, expected = GradAlign()(model, x, x, y, rng()), misalignment(plain, x.double(), y)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3) and 1e-4 < found < 0.1
    slopes = [torch.autograd.grad(e, n[0].weight)[0].double()
              for e, n in ((found, model), (expected, plain))]  # fmt: skip
    torch.testing.assert_close(*slopes, rtol=1e-2, atol=1e-4)
    assert slopes[0].abs().max() > 1e-3


def test_gradalign_leaves_out_images_without_a_gradient(batch):
    """As the published code does; of none that has one it says nothing."""
    x, y = (part[1:4] for part in batch)
    scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def model(images, sure=()):
        logits = torch.stack([scale * images.flatten(1).square().sum(1), images[:, 0, 0, 0]], 1)
        pushed = torch.zeros_like(logits)
        for row in sure:
            pushed[row, 0] = 1e4
        return logits + pushed

    y, draws = torch.zeros_like(y), RowRng(3, torch.arange(3))
    alone = GradAlign()(model, x[2:], x[2:], y[2:], RowRng(3, torch.arange(2, 3)))
    beside = GradAlign()(lambda images: model(images, (0, 1)), x, x, y, draws)
    assert alone > 1e-6 and beside.item() == pytest.approx(alone.item(), rel=1e-6)
    none = GradAlign()(lambda images: model(images, (0, 1, 2)), x, x, y, draws)
    (slope,) = torch.autograd.grad(none, scale)
    assert none == 0 and slope == 0


def test_elle_is_its_formula(batch):
    x, y = batch
    model, plain, eps = network(), network(), 8 / 255
    first, second = (
        x + eps * (2 * rng().uniform(f"elle:{k}", 2, 4, 4).double() - 1) for k in (1, 2)
    )
    share = rng().uniform("elle:share", 1, 1, 1).double()
    points = torch.cat([first, second, (1 - share) * first + share * second])
    z = plain(points)
    losses = [z[k].exp().sum().log() - z[k, y[k % B]] for k in range(3 * B)]
    expected = (
        sum(
            (
                losses[2 * B + k]
                - (1 - share[k, 0, 0, 0]) * losses[k]
                - share[k, 0, 0, 0] * losses[B + k]
            )
            ** 2
            for k in range(B)
        )
        / B
    )
    found = ELLE(1000.0)(model, x, x, y, rng())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6) and found > 0
    found.backward()
    expected.backward()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (own.grad - other.grad).abs().max() < 1e-6 * other.grad.abs().max() + 1e-9
    assert model[1].num_batches_tracked == 1 and first.min() < 0  # uncut, as published


def test_the_adaptive_weight_is_its_rule():
    term, history, weight = AdaptiveELLE(4000.0), [], 0.0
    errors = [*np.random.default_rng(0).uniform(1, 2, 20), 9.0, 1.5, 1.2, 1.1]
    for error in errors:
        assert float(term.strength) == pytest.approx(weight, rel=1e-6)
        term.learn(torch.tensor([math.nan, 0.0, math.nan, 64.0]), torch.tensor(True))  # skipped
        term.learn(torch.tensor([1.0, 3.0, 64 * error, 64.0]), torch.tensor(False))
        bent = len(history) > 2 and error > np.mean(history) + 2 * np.std(history)
        weight = 4000.0 if bent else 0.99 * weight
        history.append(error)
    assert 3800 < weight < 4000  # it stood out once, near the end
    again = AdaptiveELLE(4000.0)
    again.load_state_dict(term.state_dict())
    assert again.strength == term.strength and again.state_dict()["memory"][1] == len(errors)


@pytest.mark.parametrize("make", [
    lambda: Multi({"linf": 8, "l1": 400}), lambda: AdaptiveELLE(20.0), lambda: Free(8),
])  # fmt: skip
def test_a_memory_of_something_else_is_no_checkpoint(make):
    part = make()
    name = "regulariser" if isinstance(part, AdaptiveELLE) else "attack"
    method = Method(**{"attack": Clean(), "objective": Adversarial(), name: part})
    check_memories({name: part.state_dict()}, method)
    for wrong in ({}, {name: {"delta": 3, "counts": 3, "memory": 3}}):
        with pytest.raises(ValueError, match=name):
            check_memories(wrong, method)


# in a training ------------------------------------------------------------------------------------

BATCH = 12


def started(attack, regulariser=None, **words) -> TrainState:
    schedule = Schedule(batch_size=BATCH, epochs=6, **{"learning_rate": 0.5, **words})
    choices = {"precision": "fp32", "channels_last": False, "compile": False, "fold": False,
               "fused": False}  # fmt: skip
    torch.manual_seed(0)
    model = Classifier(small_network(), [0.5], [0.25])
    method = Method(attack, Adversarial(), *([regulariser] if regulariser else []))
    return TrainState(model, method, Plan(schedule, BATCH, 0, choices))


def images(step: int):
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(BATCH, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (BATCH,), generator=generator)


def weights(state: TrainState):
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


def learned(state: TrainState) -> list[torch.Tensor]:
    """Weights, and what was learned beside them."""
    return [weights(state), *(v for part in state.learners.all for v in part.state_dict().values())]


MAKE = {
    "multi": lambda: (Multi({"linf": 20, "l1": 400}, 2), None),
    "free": lambda: (Free(20, 3), None),
    "elle-a": lambda: (PGD(20), AdaptiveELLE(20.0)),
}


@pytest.mark.parametrize("name", MAKE)
def test_what_was_learned_is_in_the_checkpoint(name):
    """A training that was stopped ends equal to the bit; without its memory it would not."""
    whole = started(*MAKE[name]())
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save(whole.state_dict(), file)
            kept = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        update(whole, *images(step))
    for forget in (False, True):
        other = started(*MAKE[name]())
        part = "regulariser" if name == "elle-a" else "attack"
        new = {part: getattr(other, part).state_dict()} if forget else {}
        other.load_state_dict({**kept, **new})
        for step in range(3, 6):
            update(other, *images(step))
        pairs = zip(learned(whole), learned(other), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) != forget


@pytest.mark.parametrize("name", MAKE)
def test_a_skipped_step_teaches_nothing(name):
    state = started(*MAKE[name]())
    update(state, *images(0))
    before = [value.clone() for value in learned(state)]
    x, y = images(1)
    x[0, 0, 0, 0] = math.nan
    update(state, x, y)
    assert len(before) == 2
    assert all(torch.equal(*pair) for pair in zip(learned(state), before, strict=True))
    update(state, *images(2))
    assert not any(torch.equal(*pair) for pair in zip(learned(state), before, strict=True))


@pytest.mark.parametrize("name", MAKE)
def test_parts_of_a_batch_learn_alike(name):
    """Without batch norm what is drawn and learned is that of the whole batch."""
    found = []
    for parts in (1, 3):
        state = started(*MAKE[name](), accumulate=parts)
        for module in state.model.modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
        state.model.training = True
        for step in range(3):
            update(state, *images(step))
        found.append(learned(state))
    for one, three in zip(*found, strict=True):
        assert (one - three).abs().max() < 1e-4 * max(1.0, float(one.abs().max()))


def test_free_is_the_published_loop():
    """m updates a batch, each with the gradient that moves the perturbation too, which the next
    batch begins with."""
    state, eps = started(Free(20, 3)), 20 / 255
    plain = started(Clean())
    model, optimizer = plain.model.train(), plain.optimizer
    delta = torch.zeros(BATCH, 1, 8, 8)
    for step in range(3):
        x, y = images(step)
        update(state, x, y)
        for group in optimizer.param_groups:
            group["lr"] = state.plan.rate(step)
        for _ in range(3):
            noise = delta.clone().requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(model((x + noise).clamp(0, 1)), y).backward()
            delta = (delta + eps * noise.grad.sign()).clamp(-eps, eps)
            optimizer.step()
        assert (state.attack.state_dict()["delta"] - delta).abs().max() < 1e-6
    assert (weights(state) - weights(plain)).abs().max() < 1e-5
    assert delta.abs().max() == pytest.approx(eps) and state.step == 3


NAMES = {"objective": "pairs", "attack": "mine", "weight_attack": "awp"}  # of options


def test_what_makes_no_sense_together_is_refused():
    """One line that names the key, or the option as the user knows it."""
    loose = PGD(batch_norm="train", update_statistics=True)
    assert loose.update_statistics
    moving = Method(Free(), Adversarial(), weight_attack=AWP())
    bent = Method(PGD(), Adversarial(), GradAlign())
    cases = [
        (lambda: check_method(moving, Schedule(), NAMES), "weight_attack=awp: .* attack=mine"),
        (lambda: check_method(Method(loose, Adversarial()), Schedule(grad_checkpointing=True), {}),
         "schedule.grad_checkpointing=true"),
        (lambda: check_method(bent, Schedule(compile=True), {}), "schedule.compile=True"),
        (lambda: check_objective(Free(), TRADES(), NAMES), "objective=pairs: .* attack=mine only"),
        (lambda: check_processes(composed(["attack=free"]), False, 2), "attack=free: keeps"),
    ]  # fmt: skip
    for call, said in cases:
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: GradAlign(0.0), "weight=0.0"),
        (lambda: GradAlign(eps=0), "eps=0: there is nothing"),
        (lambda: ELLE(math.inf), "weight=inf"),
        (lambda: ELLE(eps=0.03), "eps=0.03"),
        (lambda: AdaptiveELLE(decay=0.0), "decay=0.0"),
        (lambda: AdaptiveELLE(sensitivity=-1.0), "sensitivity=-1.0"),
        (lambda: Free(replays=0), "replays=0"),
        (lambda: Free(step=0), "step=0"),
        (lambda: Free(eps=0.03), "eps=0.03"),
    ],
)
def test_bad_settings_are_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("build", [ELLE, AdaptiveELLE, GradAlign])
def test_noise_of_another_norm_than_the_attacks_is_refused(build):
    method = Method(PGD(128.0, norm="l2"), Adversarial(), build())
    said = "^regulariser=elle_a: its noise fills a ball of linf, and the attack's is of l2"
    with pytest.raises(Refused, match=said):
        check_method(method, Schedule(), {"regulariser": "elle_a"})
    check_method(Method(PGD(8.0), Adversarial(), build()), Schedule(), {})
