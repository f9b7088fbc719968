"""ReLU with a smooth function's gradient: which phase of a training uses which."""

import copy
import inspect
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.autograd import gradgradcheck

import sat as package
from sat import activations as A
from sat.activations.surrogate import Smooth, SurrogateReLU, is_flat, phase, phased
from sat.attacks import PGD, Attack
from sat.attacks.base import input_gradient
from sat.objectives import Adversarial, Method
from sat.rng import RowRng
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

SMOOTH = {
    "parametric_softplus": A.ParametricSoftplus,
    "softplus": A.Softplus,
    "smoothrelu": lambda *alpha: A.SmoothReLU(*alpha, learnable=False),
    "silu": A.SiLU,
    "gelu": A.GELU,
    "elu": A.ELU,
    "celu": A.CELU,
    "mish": A.Mish,
}
both = pytest.mark.parametrize("inner", [False, True])
and_both = pytest.mark.parametrize("outer", [False, True])


def test_the_option_gives_every_argument_its_default_and_names_every_function():
    path = Path(__file__).parents[1] / "conf/activation/surrogate_relu.yaml"
    config = yaml.safe_load(path.read_text())
    parameters = inspect.signature(SurrogateReLU).parameters
    assert config.pop("_target_") == "sat.activations.SurrogateReLU"
    assert config == {k: p.default for k, p in parameters.items() if k != "inplace"}
    assert set(typing.get_args(Smooth)) == set(SMOOTH)
    assert all(name in path.read_text() for name in SMOOTH)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name, alpha", [(name, None) for name in SMOOTH]
                         + [("parametric_softplus", 3.0), ("smoothrelu", 4.0), ("elu", 1.5),
                            ("celu", 2.0)])  # fmt: skip
def test_forward_is_relu_and_backward_the_smooth_derivative(name, alpha, dtype):
    module = SurrogateReLU(name, alpha)
    smooth = SMOOTH[name](*() if alpha is None else (alpha,)).to(dtype)
    x = torch.linspace(-6, 6, 400, dtype=dtype).requires_grad_()
    weight = torch.linspace(-1, 2, 400, dtype=dtype)
    with phase([module], "inner"):
        y = module(x)
    assert torch.equal(y, x.relu())
    expected = torch.autograd.grad(smooth(x), x, weight)[0]
    rounded = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(torch.autograd.grad(y, x, weight)[0], expected, rtol=0, atol=rounded)
    assert not torch.allclose(expected, (x > 0) * weight, atol=0.01) or name == "smoothrelu"


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_that_stands_in_can_be_differentiated(name):
    """It is that of the smooth function, whose second derivative it then has."""
    module, smooth = SurrogateReLU(name), SMOOTH[name]().double()
    x = torch.linspace(-3, 3, 40, dtype=torch.float64).requires_grad_()
    with phase([module], "outer"):
        assert gradgradcheck(module, x)
        firsts = [torch.autograd.grad(f(x).sum(), x, create_graph=True) for f in (module, smooth)]
    found, wanted = (torch.autograd.grad(first.sum(), x)[0] for (first,) in firsts)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6) and found.any()
    assert is_flat(SurrogateReLU(name, outer=False)) and not is_flat(module)


def test_one_tensor_is_saved():
    module, saved = SurrogateReLU(), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        with phase([module], "inner"):
            module(torch.randn(5, requires_grad=True))
    assert len(saved) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gradient_has_the_type_of_the_input_and_stays_finite(dtype):
    for name in SMOOTH:
        module = SurrogateReLU(name)
        x = torch.tensor([-300.0, -20, 0, 20, 300], dtype=dtype, requires_grad=True)
        with phase([module], "outer"):
            (gradient,) = torch.autograd.grad(module(x).sum(), x)
        assert gradient.dtype == dtype and torch.isfinite(gradient).all(), name


@both
@and_both
def test_each_phase_uses_the_gradient_it_was_given(inner, outer):
    module = SurrogateReLU(inner=inner, outer=outer)
    x = torch.tensor([-0.1, 0.05], requires_grad=True)
    relu, smooth = torch.tensor([0.0, 1.0]), torch.sigmoid(10 * x.detach())
    for name, asked in (("inner", inner), ("outer", outer)):
        with phase([module], name):
            y = module(x)
        gradient = torch.autograd.grad(y.sum(), x)[0]
        assert torch.allclose(gradient, smooth if asked else relu)
    assert torch.equal(torch.autograd.grad(module(x).sum(), x)[0], relu)


def test_a_phase_ends_with_an_exception_too():
    module = SurrogateReLU()
    with pytest.raises(RuntimeError), phase([module], "inner"):
        raise RuntimeError
    assert module.phase is None


@pytest.mark.parametrize("given, says", [
    ({"backward": "silu", "alpha": 2.0}, "alpha=2: silu has none; write null"),
    ({"alpha": 0.0}, r"alpha=0\.0: "),
    ({"backward": "celu", "alpha": float("inf")}, "alpha=inf: "),
])  # fmt: skip
def test_an_alpha_that_means_nothing_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        SurrogateReLU(**given)


# In a training --------------------------------------------------------------------------------


def network(activation) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), activation(), nn.Flatten(), nn.Linear(216, 4))


def hand_made(net: nn.Module, smooth: bool) -> nn.Module:
    """The same weights with an activation whose value is ReLU's and whose gradient is written by
    hand: softplus' through softplus itself, ReLU's value put over it."""

    class ByHand(nn.Module):
        def forward(self, x):
            value = F.relu(x)
            if not smooth:
                return value
            shape = F.softplus(x, beta=10, threshold=40)
            return shape + (value - shape).detach()

    twin = copy.deepcopy(net)
    twin[1] = ByHand()
    return twin


class Recorded(Attack):
    """An attack that keeps the gradient it saw; the images move with its sign."""

    def __init__(self):
        self.gradients = []

    def __call__(self, model, x, y, rng=None, progress=None):
        self.gradients.append(input_gradient(model, x, y))
        return (x + 0.1 * self.gradients[-1].sign()).clamp(0, 1)


def trainer_of(net, attack) -> TrainState:
    schedule = replace(Schedule(), epochs=1.0, batch_size=16, warmup_epochs=0.0, weight_decay=0.0)
    choices = {"precision": "fp32", "channels_last": False, "compile": False, "threads": 1}
    return TrainState(net, Method(attack, Adversarial()), Plan(schedule, 16, 0, choices))


@both
@and_both
def test_attack_update_and_evaluation_each_get_the_gradient_they_are_due(inner, outer):
    net = network(lambda: SurrogateReLU(inner=inner, outer=outer))
    draw = torch.Generator().manual_seed(1)
    x, y = torch.rand(16, 1, 8, 8, generator=draw), torch.randint(4, (16,), generator=draw)
    attacked, updated, plain = (hand_made(net, smooth) for smooth in (inner, outer, False))
    trainer = trainer_of(net, Recorded())
    before = copy.deepcopy(net.state_dict())
    rate = trainer.plan.schedule.rate(0, 16)
    evaluated = input_gradient(net, x, y)
    assert torch.allclose(evaluated, input_gradient(plain, x, y), atol=1e-7)
    update(trainer, x, y)
    expected = input_gradient(attacked, x, y)
    assert torch.allclose(trainer.attack.gradients[0], expected, atol=1e-7)
    x_adv = (x + 0.1 * expected.sign()).clamp(0, 1)
    F.cross_entropy(updated(x_adv), y).backward()
    for name, p in updated.named_parameters():  # Nesterov's first step is 1.9 times the gradient
        moved = before[name] - net.state_dict()[name]
        assert torch.allclose(moved, 1.9 * rate * p.grad, atol=1e-5), name
    now = input_gradient(hand_made(net, False), x, y)
    assert torch.allclose(input_gradient(net, x, y), now, atol=1e-7)


def test_the_two_gradients_differ_on_the_network_of_that_test():
    net = network(SurrogateReLU)
    x, y = torch.rand(16, 1, 8, 8), torch.randint(4, (16,))
    smooth, plain = (input_gradient(hand_made(net, s), x, y) for s in (True, False))
    assert (smooth - plain).abs().max() > 1e-3


def test_neither_phase_is_plain_relu_to_the_bit_in_a_whole_run(sat):
    fast = ["schedule.epochs=2", "validation.attack.steps=1"]
    neither = ["activation=surrogate_relu", "activation.inner=false", "activation.outer=false"]
    assert sat(*fast, "activation=relu").code == 0
    assert sat(*fast, *neither).code == 0
    answer = sat(*fast, "activation=surrogate_relu")
    assert answer.code == 0, answer.err
    states = {run.name: package.load(run, "last").state_dict() for run in answer.runs}
    assert len(states) == 3
    (relu,) = (s for name, s in states.items() if "-relu-pgd" in name)
    (nowhere,) = (s for name, s in states.items() if "softplus-nowhere" in name)
    (everywhere,) = (s for name, s in states.items() if "softplus-inner-outer" in name)
    assert all(torch.equal(relu[key], nowhere[key]) for key in relu)
    assert not all(torch.equal(relu[key], everywhere[key]) for key in relu)


def test_a_trained_model_is_attacked_as_the_relu_network_it_is(sat):
    answer = sat("activation=surrogate_relu", "schedule.epochs=1")
    model = package.load(answer.run)
    assert phased(model) and all(m.phase is None for m in phased(model))
    plain = copy.deepcopy(model)
    for module in plain.modules():
        for key, child in module._modules.items():
            if isinstance(child, SurrogateReLU):
                module._modules[key] = nn.ReLU()
    x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
    rng = [RowRng(0, torch.arange(8)) for _ in range(2)]
    attack = PGD(38.0, 3)
    assert torch.equal(attack(model, x, y, rng[0]), attack(plain, x, y, rng[1]))


def test_an_alpha_of_another_function_is_refused_by_the_command(sat):
    answer = sat("activation=surrogate_relu", "activation.backward=silu", "activation.alpha=2")
    assert answer.code == 2 and "activation.alpha=2: " in answer.err
    answer = sat("activation=surrogate_relu", "activation.backward=sin")
    assert answer.code == 2 and "activation.backward=sin" in answer.err and not answer.runs
