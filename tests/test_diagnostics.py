"""The preflight stops what is wrong, with a sentence, and lets pass what is right."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sat.attacks import FGSM, PGD, Clean
from sat.errors import Refused
from sat.training.preflight import preflight, warn_of_short_steps


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )  # fmt: skip


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(16, 1, 8, 8, generator=generator), torch.arange(16) % 4


@pytest.mark.parametrize(
    "attack", [PGD(8, 2), PGD(100, 2, norm="l2"), FGSM(8), Clean(), PGD(8, batch_norm="train")],
    ids=str,
)  # fmt: skip
def test_a_sound_set_up_passes_and_nothing_changes(attack, caplog):
    model, (x, y) = network().train(), batch()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    preflight(model, attack, x, y)
    assert caplog.records == []
    assert model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@dataclass(frozen=True)
class Overshooting:
    """Projects nothing."""

    eps: float = 8.0
    norm: str = "linf"
    batch_norm: str = "eval"
    loss: str = "ce"

    def __call__(self, model, x, y, rng=None, progress=None):
        return (x + 0.1).clamp(0, 1)


@dataclass(frozen=True)
class Unclamped(Overshooting):
    def __call__(self, model, x, y, rng=None, progress=None):
        return x + self.eps / 255


@dataclass(frozen=True)
class Restless(Overshooting):
    """Attacks in train mode, as some published probes do."""

    def __call__(self, model, x, y, rng=None, progress=None):
        model.train()
        model(x)
        model.eval()
        return x


@dataclass(frozen=True)
class Unprojected(Overshooting):
    """Adds its noise whatever eps is."""

    def __call__(self, model, x, y, rng=None, progress=None):
        return (x + 0.01).clamp(0, 1)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"x": lambda x: (x - 0.5) / 0.25}, "normalised"),
        ({"x": lambda x: x * 255}, "0 to 255"),
        ({"x": lambda x: x / 255}, "divided by 255"),
        ({"x": lambda x: x.half()}, "float16"),
        ({"y": lambda y: y + 1}, "the label 4"),
        ({"model": lambda m: m[:-1]}, "logits of shape"),
        ({"model": lambda m: nn.Sequential(*m, nn.Threshold(1e9, float("nan")))}, "finite"),
        ({"attack": Overshooting()}, "attack.eps=8"),
        ({"attack": Unclamped()}, "range [0, 1]"),
        ({"attack": Restless()}, "statistics"),
        ({"attack": Unprojected()}, "eps=0"),
    ],
)
def test_a_wrong_set_up_is_refused_with_a_sentence(change, says):
    x, y = batch()
    x[0, 0, 0, 0] = 1.0
    given = {"model": network(), "attack": PGD(8, 2), "x": x, "y": y}
    for key, value in change.items():
        given[key] = value if key == "attack" else value(given[key])
    if says == "logits of shape":
        given["model"] = nn.Sequential(*given["model"][:-2])
    with pytest.raises(Refused) as refusal:
        preflight(given["model"], given["attack"], given["x"], given["y"])
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_masked_gradient_is_warned_of(caplog):
    class Masked(nn.Module):
        inner = network().eval()

        def forward(self, x):
            return self.inner((x * 4).round() / 4)  # the gradient of rounding is 0

    x, y = batch()
    preflight(Masked(), PGD(8, 2), (x * 4).round() / 4, y)
    assert "does not raise the loss" in caplog.text


@pytest.mark.parametrize("attack, warned", [
    (PGD(38, 1, step=10), True), (PGD(8, 10, step=0.5, start="none"), True),
    (PGD(8, 2, step=0.9), True), (PGD(8, 3), False), (PGD(8, 3, start="none"), False),
    (PGD(8, 10, step=0.5), False), (PGD(8, 1, step="1.25*eps"), False),
    (PGD(8, 1, step=8, noise=2, project=False), False), (PGD(1275, 1, step=1, norm="l1"), False),
])  # fmt: skip
def test_steps_that_do_not_reach_the_edge_of_the_ball_are_warned_of(attack, warned, caplog):
    warn_of_short_steps(attack)
    assert ("attack.steps=N takes more" in caplog.text) == warned


def test_an_attack_is_asked_for_the_loss_that_it_ascends(caplog):
    @dataclass(frozen=True)
    class Helpful(PGD):  # moves the answer, and towards the label: KL rises, cross-entropy falls
        def __call__(self, model, x, y, rng=None, progress=None):
            return 2 * x - PGD(self.eps, 2, loss="ce")(model, x, y, rng)

    x, y = batch()
    x = x.clamp(0.1, 0.9)
    preflight(network(), Helpful(8, loss="kl"), x, y)
    assert not caplog.text
    preflight(network(), Helpful(8, loss="ce"), x, y)
    assert caplog.text.count("raise the loss") == len(caplog.records) == 1
