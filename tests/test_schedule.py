"""The learning rate as a function of progress, and what is decayed."""

import pytest
import torch
from torch import nn

from sat.training.optimizer import build_optimizer
from sat.training.schedule import Schedule

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


def test_decay_falls_on_weights_alone():
    from sat.activations import SmoothReLU

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), SmoothReLU(), nn.PReLU(),
                          nn.Flatten(), nn.Linear(4, 2))  # fmt: skip
    optimizer = build_optimizer(model, Schedule(weight_decay=0.5))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model[0].weight), id(model[5].weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.5}
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)


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
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"accumulate": 200}, "batch_size=128"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"milestones": (30.0, 60.0)}, "milestones="),
        ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        ({"optimizer": "adamv"}, "optimizer=adamv"),
        ({"clip": float("nan")}, "clip=nan"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, key):
    with pytest.raises(ValueError) as refusal:
        Schedule(**wrong)
    assert str(refusal.value).startswith(key)
