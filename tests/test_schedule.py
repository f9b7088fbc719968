"""The learning rate as a function of progress, and what is decayed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sat.activations import Keep, PReLU, PSSiLU, SmoothReLU
from sat.models.classifier import assemble
from sat.training.decay import Cosine, OneCycle, Step
from sat.training.optimizer import build_optimizer, decayed, set_momentum, set_rate
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.summary import training_line

N, B = 1000, 100


def rates(**given) -> list[float]:
    schedule = Schedule(epochs=10, batch_size=B, learning_rate=2.56, **given)
    return [schedule.rate(step, N) for step in range(schedule.steps(N))]


def test_learning_rate_is_for_256_images():
    assert rates(decay="constant") == pytest.approx([1.0] * 100)


def test_warm_up_rises_linearly_to_the_peak():
    rising = rates(decay="constant", warmup_epochs=2)
    assert rising[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert rising[20:] == pytest.approx([1.0] * 80)
    quick_look = rates(decay="constant", warmup_epochs=100)
    assert quick_look[19] == pytest.approx(1.0), "a fifth of the training at most"


def test_step_divides_by_ten_at_each_milestone():
    falling = rates(decay="step", milestones=(0.3, 0.6, 0.9))
    for milestone, value in ((0, 1.0), (30, 0.1), (60, 0.01), (90, 0.001)):
        assert falling[milestone] == pytest.approx(value)
        assert milestone == 0 or falling[milestone - 1] == pytest.approx(10 * value)


def test_cosine_and_one_cycle():
    cosine = rates(decay="cosine", warmup_epochs=2)
    assert cosine[20] == pytest.approx(1.0) and cosine[60] == pytest.approx(0.5)
    assert 0 < cosine[-1] < 0.01 and cosine[20:] == sorted(cosine[20:], reverse=True)
    cycle = rates(decay="one_cycle")
    assert cycle[29] == pytest.approx(1.0) and cycle[65] == pytest.approx(0.5)
    assert 0 < cycle[0] < 0.05 and 0 < cycle[-1] < 0.02


def torchs(scheduler, steps: int, **given) -> list[tuple[float, float]]:
    """Rate and momentum that a scheduler of torch sets for each of its steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    moved, found = scheduler(optimizer, **given), []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        found.append((group["lr"], group["momentum"]))
        optimizer.step()
        moved.step()
    return found


def ours(schedule: Schedule, images: int, step: int = 1) -> list[tuple[float, float]]:
    taken = range(0, schedule.steps(images), step)
    return [(schedule.rate(k, images), schedule.momentum_at(k, images)) for k in taken]


ONCE_AN_EPOCH = dict(anneal="cosine", start=0.04, end=4e-6, momentum=(0.95, 0.85), by="epoch")


@pytest.mark.parametrize("rise, epochs", [(0.3, 100), (0.025, 400)])
def test_one_cycle_once_an_epoch_is_torchs(rise, epochs):
    shape = OneCycle(rise=rise, **ONCE_AN_EPOCH)
    given = Schedule(epochs=epochs, batch_size=128, learning_rate=0.1, learning_rate_batch=128,
                     updates_per_epoch="whole", decay=shape)  # fmt: skip
    expected = torchs(torch.optim.lr_scheduler.OneCycleLR, epochs, max_lr=0.1, pct_start=rise,
                      total_steps=epochs)  # fmt: skip
    at_begin, at_end = ours(given, 1000, 8), ours(given, 1000)[7::8]
    for found in (at_begin, at_end):
        assert found == [pytest.approx(pair, rel=1e-9) for pair in expected]


def test_one_cycle_each_update_is_torchs_cyclic_one():
    given = Schedule(epochs=15, batch_size=128, learning_rate=0.2, learning_rate_batch=128,
                     updates_per_epoch=391, optimizer="momentum",
                     decay=OneCycle(rise=0.5, start=0.0, momentum=(0.9, 0.8)))  # fmt: skip
    expected = torchs(torch.optim.lr_scheduler.CyclicLR, 5865, base_lr=0.0, max_lr=0.2,
                      step_size_up=5865 / 2, step_size_down=5865 / 2)  # fmt: skip
    found = ours(given, 50_000)
    assert len(found) == 5865 and found[0][0] == 0.0
    assert found == [pytest.approx(pair, abs=1e-9) for pair in expected]


def test_cosine_ends_at_its_share():
    falling = rates(decay=Cosine(end=0.1))
    assert falling[0] == pytest.approx(1.0)
    assert falling[50] == pytest.approx(0.55) and 0.1 < falling[-1] < 0.101


def test_a_milestone_may_come_an_update_early_and_is_not_missed_by_rounding():
    """Rice et al. 2020: the last batch of epoch 99 has a tenth of the rate already."""
    given = dict(decay=Step(lead=1), milestones=(0.5, 0.75), updates_per_epoch="whole")
    rice = Schedule(epochs=200, batch_size=128, learning_rate=0.1, learning_rate_batch=128, **given)
    changes = [39098, 39099, 58648, 58649]
    assert [rice.rate(k, 50_000) for k in changes] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    seventh = Schedule(epochs=10, batch_size=10, decay="step", milestones=(0.07,))
    assert 0.07 * 100 > 7 and seventh.rate(7, 100) < seventh.rate(6, 100)


def test_an_epoch_may_have_any_number_of_updates():
    whole = Schedule(epochs=3, batch_size=128, updates_per_epoch="whole")
    assert (whole.steps(50_000), whole.epoch(782, 50_000)) == (3 * 391, 2.0)
    fixed = Schedule(epochs=3, batch_size=128, updates_per_epoch=98, warmup_epochs=0.5)
    assert (fixed.steps(50_000), fixed.epoch(49, 50_000)) == (294, 0.5)
    assert fixed.rate(48, 50_000) == pytest.approx(0.05) and fixed.rate(10, 50_000) < 0.02


def test_the_papers_recipe():
    """0.1 per 256 images, 5 epochs of warm-up, divided by 10 at epochs 30, 60, 90 of 100."""
    paper = Schedule(epochs=100, batch_size=512, learning_rate=0.1, warmup_epochs=5, decay="step",
                     milestones=(0.3, 0.6, 0.9), weight_decay=1e-4)  # fmt: skip
    n = 512 * 10
    at = lambda epoch: paper.rate(epoch * 10, n)  # noqa: E731
    assert paper.steps(n) == 1000
    assert [at(e) for e in (5, 29, 30, 60, 90)] == pytest.approx([0.2, 0.2, 0.02, 0.002, 0.0002])
    assert at(1) == pytest.approx(0.2 * 11 / 50)


def test_epochs_in_fractions():
    assert Schedule(epochs=0.5, batch_size=100).steps(1000) == 5
    assert Schedule(epochs=0.001, batch_size=100).steps(1000) == 1


@pytest.mark.parametrize(
    "epochs, told", [(40, "40"), (1.07, "1.07"), (0.001, "0.1"), (2.98, "2.98")]
)
def test_epochs_are_told_as_they_will_be(epochs, told):
    schedule = Schedule(epochs=epochs, batch_size=64 if epochs == 1.07 else 100)
    images = 6400 if epochs == 1.07 else 1000
    assert str(Plan(schedule, images, 0, {}).epochs) == told


def test_a_batch_of_more_than_all_images_is_told_with_the_epochs_that_it_makes():
    plan = Plan(Schedule(epochs=4, batch_size=128), 50, 0, {})
    line = training_line(SimpleNamespace(plan=plan))
    assert "2 steps of 128 images, 5.12 epochs" in line and "schedule.batch_size=25 or less" in line


def test_decay_falls_on_weights_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), SmoothReLU(), nn.PReLU(),
                          nn.Flatten(), nn.Linear(4, 2))  # fmt: skip
    optimizer = build_optimizer(model, Schedule(weight_decay=0.5))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model[0].weight), id(model[5].weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.5}
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)


class Mixed(nn.Module):
    """Two layers, which it tells timm of."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def group_matcher(self, coarse=False):
        return {"stem": "^stem|^norm", "blocks": r"^layer"}


def test_weight_decay_falls_where_it_is_asked():
    norms, biases = {"norm.weight", "norm.bias"}, {"stem.bias", "layer.bias", "head.bias"}
    every = {name for name, _ in Mixed().named_parameters()}
    assert decayed(Mixed(), "all") == every
    assert decayed(Mixed(), "all_but_norms") == every - norms
    assert decayed(Mixed(), "all_but_biases") == every - norms - biases
    assert decayed(Mixed(), "weights") == {"stem.weight", "head.weight"}
    for on in ("all", "all_but_norms", "all_but_biases", "weights"):
        model = Mixed()
        groups = build_optimizer(model, Schedule(weight_decay_on=on)).param_groups
        found = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert found == {id(p) for n, p in model.named_parameters() if n in decayed(model, on)}


class Bend(nn.Module):
    """An activation of a user's own, with what looks like a weight of a layer."""

    def __init__(self, inplace=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return x * torch.tanh(self.weight * x)


@pytest.mark.parametrize("build, scalars", [(SmoothReLU, 1), (PSSiLU, 2), (PReLU, 1), (Bend, 1)])
@pytest.mark.parametrize("on", ["weights", "all", "all_but_norms", "all_but_biases"])
def test_weight_decay_never_falls_on_what_activations_learn(build, scalars, on):
    """Neither on one that was put in, nor on a network's own."""
    for kept in (False, True):
        own = nn.PReLU() if kept else nn.ReLU()
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), own, nn.Flatten(), nn.Linear(16, 2)
        net = assemble(nn.Sequential(*layers), Keep if kept else build, [0], [1], (3, 4, 4))
        learned = {name for name, _ in net.named_parameters() if name.startswith("backbone.2.")}
        assert len(learned) == (1 if kept else scalars)
        every = {name for name, _ in net.named_parameters()}
        assert not decayed(net, on) & learned
        assert on != "all" or decayed(net, on) == every - learned


def test_layers_have_their_own_rate():
    model = Mixed()
    optimizer = build_optimizer(model, Schedule(layer_decay=0.5, optimizer="adamw"), fused=True)
    set_rate(optimizer, 0.8)
    found = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    names = {name: found[id(p)] for name, p in model.named_parameters()}
    assert names["stem.weight"] == names["norm.bias"] == pytest.approx(0.2)
    assert names["layer.weight"] == pytest.approx(0.4)
    assert names["head.weight"] == names["head.bias"] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="layer_decay: Sequential"):
        build_optimizer(nn.Sequential(nn.Linear(2, 2)), Schedule(layer_decay=0.5))


def test_momentum_and_betas_reach_the_optimiser():
    plain = build_optimizer(Mixed(), Schedule(optimizer="momentum", momentum=0.5), fused=True)
    assert all(g["momentum"] == 0.5 and not g["nesterov"] for g in plain.param_groups)
    set_momentum(plain, 0.7)
    assert all(g["momentum"] == 0.7 for g in plain.param_groups)
    adamw = build_optimizer(Mixed(), Schedule(optimizer="adamw", betas=(0.9, 0.95)))
    assert all(tuple(g["betas"]) == (0.9, 0.95) for g in adamw.param_groups)


@pytest.mark.parametrize("name", ["adamw", "lion", "momentum", "rmsprop", "lookahead_sgd"])
def test_any_optimiser_timm_has(name):
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, Schedule(optimizer=name, learning_rate=0.1))
    before = model.weight.clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"learning_rate": 0.0}, "learning_rate=0:"),
        ({"accumulate": 200}, "batch_size=128"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"milestones": (30.0, 60.0)}, "milestones="),
        ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        ({"optimizer": "adamv"}, "optimizer=adamv"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"learning_rate_batch": 0}, "learning_rate_batch=0"),
        ({"updates_per_epoch": 0}, "updates_per_epoch=0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": 0.0}, "momentum=0.0"),
        ({"betas": (0.9, 1.0), "optimizer": "adamw"}, "betas=[0.9, 1.0]"),
        ({"betas": (0.9, 0.95)}, "betas=[0.9, 0.95]: sgd has none"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"weight_decay_on": "biases"}, "weight_decay_on=biases"),
        ({"ema_ramp": True}, "ema_ramp=true: there is no average"),
        ({"ema_start": 0.5}, "ema_start=0.5: there is no average"),
        ({"ema": 0.9, "ema_start": 1.0}, "ema_start=1.0"),
        ({"swa_start": -0.5}, "swa_start=-0.5"),
        ({"swa_start": 0.5, "ema": 0.9}, "swa_start=0.5: and ema=0.9"),
        ({"swa_start": 0.5, "shard": True}, "swa_start=0.5"),
        ({"decay": OneCycle(momentum=(0.9, 0.8)), "optimizer": "adamw"}, "decay.momentum: adamw"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, key):
    with pytest.raises(ValueError) as refusal:
        Schedule(**wrong)
    assert str(refusal.value).startswith(key)


@pytest.mark.parametrize(
    "shape, wrong, key",
    [
        (OneCycle, {"rise": 1.0}, "rise=1.0"),
        (OneCycle, {"start": 1.5}, "start=1.5"),
        (OneCycle, {"end": -0.1}, "end=-0.1"),
        (OneCycle, {"momentum": (0.9, 1.0)}, "momentum=[0.9, 1.0]"),
        (OneCycle, {"by": "step"}, "by=step"),
        (Cosine, {"end": 2.0}, "end=2.0"),
        (Step, {"lead": -1}, "lead=-1"),
    ],
)
def test_bad_shapes_are_refused_by_name(shape, wrong, key):
    with pytest.raises(ValueError) as refusal:
        shape(**wrong)
    assert str(refusal.value).startswith(key)
