"""Values, derivatives, precision and memory of every activation, against formulas in float64."""

import functools
import importlib
import inspect
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from sat import activations as A
from sat.activations import functions
from sat.activations.surrogate import is_flat

FOLDER = Path(__file__).parents[1] / "conf" / "activation"
# Those that keep one tensor and are exact in half precision: the tests below ask it of each.
# surrogate_relu is tested in test_surrogate.py, keep in test_models.py; gelu_tanh is gelu.
OPTIONS = {
    "relu": A.ReLU,
    "softplus": A.Softplus,
    "parametric_softplus": A.ParametricSoftplus,
    "smoothrelu": A.SmoothReLU,
    "silu": A.SiLU,
    "gelu": A.GELU,
    "elu": A.ELU,
    "celu": A.CELU,
    "mish": A.Mish,
    "leaky_relu": A.LeakyReLU,
    "prelu": A.PReLU,
    "pssilu": A.PSSiLU,
    "squareplus": A.Squareplus,
    "smelu": A.SmeLU,
    "bent_identity": A.BentIdentity,
    "rcr_af": A.CappedSoftplus,
}
every_option = pytest.mark.parametrize("build", OPTIONS.values(), ids=OPTIONS)
custom = pytest.mark.parametrize("build", [A.SmoothReLU, A.PSSiLU])
IN_PLACE = {A.ReLU, A.LeakyReLU, A.ELU, A.CELU}


def gradient(module, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(module(x).sum(), x)[0]


def sigma(x):
    return 1 / (1 + torch.exp(-x))


def phi(x):
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def derivative_of_tanh_gelu(x):
    k = math.sqrt(2 / math.pi)
    t = torch.tanh(k * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * k * (1 + 3 * 0.044715 * x**2)


def derivative_of_mish(x):
    t = torch.tanh(torch.log1p(torch.exp(x)))
    return t + x * (1 - t**2) * sigma(x)


def derivative_of_pssilu(x, a=2.0, b=0.3):
    s = sigma(a * x)
    return (s - b + a * x * s * (1 - s)) / (1 - b)


def derivative_of_capped_softplus(x, a=3.0, cap=0.9):
    below = torch.log1p(torch.exp((a * x).clamp(max=100))) / a < cap
    return torch.where(below, sigma(a * x), 0.0)


def test_gelu_tanh_is_the_approximation_of_the_papers_code():
    assert yaml.safe_load((FOLDER / "gelu_tanh.yaml").read_text()) == {
        "_target_": "sat.activations.GELU",
        "approximate": "tanh",
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_a_yaml_file_gives_every_argument_its_default_but_inplace(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    module, _, attribute = config.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), attribute)
    assert target is OPTIONS[name]
    parameters = inspect.signature(target).parameters
    assert list(parameters)[-1] == "inplace" and parameters["inplace"].default is False
    assert config == {k: p.default for k, p in parameters.items() if k != "inplace"}


@pytest.mark.parametrize(
    "module, values, slopes",
    [  # f at -1, -0.1, 0, 0.1, 1, 2 and f'(0-), f'(0+), as in the tables for Xie et al. 2020
        (A.ReLU(), [0, 0, 0, 0.1, 1, 2], (0, 1)),
        (A.Softplus(), [0.31326, 0.64440, 0.69315, 0.74440, 1.31326, 2.12693], (0.5, 0.5)),
        (A.ParametricSoftplus(), [4.54e-6, 0.03133, 0.06931, 0.13133, 1, 2], (0.5, 0.5)),
        (A.SiLU(), [-0.26894, -0.04750, 0, 0.05250, 0.73106, 1.76159], (0.5, 0.5)),
        (A.GELU(), [-0.15866, -0.04602, 0, 0.05398, 0.84134, 1.95450], (0.5, 0.5)),
        (A.ELU(2.0), [-1.26424, -0.19033, 0, 0.1, 1, 2], (2, 1)),
        (A.ELU(), [math.expm1(-1), math.expm1(-0.1), 0, 0.1, 1, 2], (1, 1)),
        (A.CELU(2.0), [-0.78694, -0.09754, 0, 0.1, 1, 2], (1, 1)),
        (A.SmoothReLU(), [0, 0, 0, 0.09072, 0.98502, 1.98329], (0, 0)),
        (A.SmoothReLU(1.0), [0, 0, 0, 0.00469, 0.30685, 0.90139], (0, 0)),
        (A.SmoothReLU(1.0, learnable=False), [0, 0, 0, 0.00469, 0.30685, 0.90139], (0, 0)),
        (A.PSSiLU(), [-0.26894, -0.04750, 0, 0.05250, 0.73106, 1.76159], (0.5, 0.5)),
        (A.Squareplus(), [0.61803, 0.95125, 1, 1.05125, 1.61803, 2.41421], (0.5, 0.5)),
        (A.SmeLU(), [0, 0.2025, 0.25, 0.3025, 1, 2], (0.5, 0.5)),
        (A.SmeLU(0.5), [0, 0.08, 0.125, 0.18, 1, 2], (0.5, 0.5)),
        (A.BentIdentity(), [-0.79289, -0.09751, 0, 0.10249, 1.20711, 2.61803], (1, 1)),
        (A.CappedSoftplus(), [4.54e-6, 0.03133, 0.06931, 0.13133, 1, 2], (0.5, 0.5)),
        (A.CappedSoftplus(1.0, 1.0), [0.31326, 0.64440, 0.69315, 0.74440, 1, 1], (0.5, 0.5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_published_values_and_the_derivative_on_both_sides_of_0(module, values, slopes):
    module.double()
    x = torch.tensor([-1, -0.1, 0, 0.1, 1, 2], dtype=torch.float64)
    expected = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(module(x), expected, rtol=0, atol=5.1e-6)
    sides = torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
    expected = torch.tensor(slopes, dtype=torch.float64)
    assert torch.allclose(gradient(module, sides), expected, rtol=0, atol=1e-6)


DERIVATIVES = {
    "relu": (A.ReLU(), lambda x: (x > 0).double()),
    "softplus": (A.Softplus(), sigma),
    "parametric_softplus": (A.ParametricSoftplus(3.0), lambda x: sigma(3 * x)),
    "smoothrelu": (A.SmoothReLU(400.0), lambda x: 1 - 1 / (1 + 400 * x.clamp_min(0))),
    "silu": (A.SiLU(), lambda x: sigma(x) * (1 + x * (1 - sigma(x)))),
    "gelu": (A.GELU(), lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * phi(x)),
    "gelu_tanh": (A.GELU("tanh"), derivative_of_tanh_gelu),
    "elu": (A.ELU(1.7), lambda x: torch.where(x > 0, 1.0, 1.7 * torch.exp(x))),
    # torch's backward pass of CELU rounds alpha to float32, which holds 1.75 exactly
    "celu": (A.CELU(1.75), lambda x: torch.where(x > 0, 1.0, torch.exp(x / 1.75))),
    "mish": (A.Mish(), derivative_of_mish),
    "leaky_relu": (A.LeakyReLU(0.2), lambda x: 1 - 0.8 * (x < 0).double()),
    "prelu": (A.PReLU(0.5), lambda x: 1 - 0.5 * (x < 0).double()),
    "pssilu": (A.PSSiLU(2.0, 0.3), derivative_of_pssilu),
    "squareplus": (A.Squareplus(0.7), lambda x: (1 + x / (x**2 + 0.7).sqrt()) / 2),
    "smelu": (A.SmeLU(1.7), lambda x: ((x + 1.7) / 3.4).clamp(0, 1)),
    "bent_identity": (A.BentIdentity(), lambda x: 1 + x / (2 * (x**2 + 1).sqrt())),
    "rcr_af": (A.CappedSoftplus(3.0, 0.9), derivative_of_capped_softplus),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_the_gradient_is_the_closed_derivative(name):
    assert set(DERIVATIVES) - {"gelu_tanh"} == set(OPTIONS)
    module, derivative = DERIVATIVES[name]
    x = torch.linspace(-45, 45, 2000, dtype=torch.float64)  # an even count: 0 is not among them
    rounded = {"pssilu": 1e-6}.get(name, 1e-8)  # its float32 parameters hold 0.3 to 1e-8
    assert torch.allclose(gradient(module.double(), x), derivative(x), rtol=0, atol=rounded)


def second(module, x, along):
    """The gradient of <module'(x), along> by x."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    return torch.autograd.grad((slope * along).sum(), x, allow_unused=True)[0]


@every_option
def test_it_can_be_differentiated_twice(build):
    """In the input and in what is learned; the gradient by finite differences of the first."""
    module = build().double()
    x = torch.tensor([[-3, -0.5, -0.02], [0.02, 0.7, 4]], dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    start = [p.detach().abs().clamp(1e-3, 20).requires_grad_() for p in named.values()]

    def call(x, *scalars):
        return functional_call(module, dict(zip(named, scalars, strict=True)), (x,))

    assert gradgradcheck(call, (x, *start))


@every_option
def test_its_second_derivative_in_bf16_is_that_of_float64(build):
    x, along = torch.linspace(-3, 3, 40), torch.linspace(0.5, 2, 40)
    exact = second(build().double(), x.double(), along)
    coarse = second(build(), x.bfloat16(), along.bfloat16())
    exact, coarse = (torch.zeros(40) if t is None else t for t in (exact, coarse))
    sharp = build in (A.SmoothReLU, A.ParametricSoftplus)  # 200 and 2.5 at 0
    away = x.abs() > (0.5 if sharp else 0.1)
    if build is A.SmeLU:  # its second derivative jumps there
        away &= (x.abs() - 1).abs() > 0.02
    assert torch.allclose(coarse.double()[away], exact.double()[away], rtol=0.05, atol=0.05)


@every_option
def test_what_bends_nowhere_is_known(build):
    assert is_flat(build()) == (build in (A.ReLU, A.LeakyReLU, A.PReLU))


@pytest.mark.parametrize("x", [20.5, 30.0, 39.0, 41.0])
def test_softplus_is_exact_on_both_sides_of_the_threshold(x):
    value = A.Softplus()(torch.tensor(x, dtype=torch.float64)).item()
    assert value == pytest.approx(x + math.log1p(math.exp(-x)), rel=1e-15)


def test_parametric_softplus_keeps_its_small_values():
    value = A.ParametricSoftplus()(torch.tensor(-1.0, dtype=torch.float64)).item()
    assert value == pytest.approx(4.54e-6, rel=1e-3)


@pytest.mark.parametrize(
    "module",
    [
        A.SmoothReLU(0.5),
        A.SmoothReLU(3.0),
        A.SmoothReLU(),
        A.PSSiLU(1.0, 0.01),
        A.PSSiLU(3.0, 0.4),
        A.PSSiLU(0.2, 0.85),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("sign", [1, -1])
def test_gradcheck_in_the_input_and_in_the_learned_scalars(module, sign):
    x = torch.tensor([[-3, -0.5, 0.02], [0.7, 2, 9]], dtype=torch.float64, requires_grad=True)
    names, start = zip(*module.double().named_parameters(), strict=True)
    scalars = [(sign * p.detach()).requires_grad_() for p in start]

    def call(x, *scalars):
        return functional_call(module, dict(zip(names, scalars, strict=True)), (x,))

    assert gradcheck(call, (x, *scalars))
    assert torch.equal(call(x, *scalars), module(x))  # the sign of a scalar says nothing


@custom
def test_frozen_scalars_cost_no_gradient_of_theirs(build, monkeypatch):
    def refuse(*_):
        raise AssertionError("summed a gradient that nobody asked for")

    module, x = build(), torch.randn(50)
    whole = gradient(module, x)
    monkeypatch.setattr("sat.activations.functions._total", refuse)
    with pytest.raises(AssertionError):
        gradient(module, x)
    detached = {name: p.detach() for name, p in module.named_parameters()}
    x.requires_grad_()
    frozen = torch.autograd.grad(functional_call(module, detached, (x,)).sum(), x)[0]
    assert torch.equal(frozen, whole)


@custom
def test_fixed_scalars_are_no_parameters_but_stay_in_the_state(build):
    fixed, learned = build(learnable=False), build()
    assert not list(fixed.parameters())
    assert fixed.state_dict() == learned.state_dict()
    x = torch.randn(50)
    assert torch.equal(fixed(x), learned(x))
    assert torch.equal(gradient(fixed, x), gradient(learned, x))


@every_option
def test_every_layer_learns_scalars_of_its_own(build):
    factory = functools.partial(build)
    first, second = factory(inplace=True), factory(inplace=True)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.ndim <= 1 and one.numel() == 1 and one.dtype == torch.float32
        assert one.data_ptr() != other.data_ptr()
    assert bool(list(first.parameters())) == (build in {A.SmoothReLU, A.PReLU, A.PSSiLU})


def test_smoothrelu_learns_the_root_of_alpha():
    assert A.SmoothReLU().beta.item() == 20 and A.SmoothReLU().beta.shape == ()


def test_whole_numbers_will_do_as_start_values():
    assert A.PSSiLU(alpha=1).alpha.dtype == A.SmoothReLU(alpha=4).beta.dtype == torch.float32


def test_pssilu_stays_away_from_its_pole():
    module, x = A.PSSiLU(1.0, 0.9), torch.linspace(-5, 5, 11)
    edge = module(x)
    for beta in (1.0, -1.0, 7.0):
        module.beta.data.fill_(beta)
        assert torch.equal(module(x), edge)


@every_option
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_finite_and_near_the_formula(build, dtype):
    x = torch.cat([torch.linspace(-6, 6, 201), torch.tensor([-1e4, -200, 200, 1e4, 6e4])]).to(dtype)
    module = build().requires_grad_(False)
    y, slope = module(x), gradient(module, x)
    assert y.dtype == slope.dtype == dtype
    exact = module.double()(x.double())
    fits = exact.abs() <= torch.finfo(dtype).max  # bent identity exceeds its input
    assert torch.allclose(y.double()[fits], exact[fits], rtol=2**-7, atol=2**-7)
    exact = gradient(module, x.double())
    assert torch.allclose(slope.double(), exact, rtol=2**-7, atol=2**-6)


def test_pssilu_of_what_overflows_in_float16_has_a_gradient():
    """alpha x beyond 65504, and x^2 on the side where the slope is 0."""
    module = A.PSSiLU(5.0, 0.1)
    x = torch.tensor([13200.0, -13200.0, 300.0, -300.0], dtype=torch.float16, requires_grad=True)
    exact = module(double := x.detach().double().requires_grad_()).sum()
    wanted = torch.autograd.grad(exact, [double, *module.parameters()])
    found = torch.autograd.grad(module(x).float().sum(), [x, *module.parameters()])
    for half, full in zip(found, wanted, strict=True):
        torch.testing.assert_close(half.double(), full.double(), rtol=2e-3, atol=1e-4)


@custom
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scalar_gradients_of_half_inputs_are_summed_in_float32(build, dtype):
    module, x = build(), torch.rand(4000, 32) + 0.5
    scale = 16  # lifts the sums over 65504, where fp16 ends
    full = torch.autograd.grad(scale * module(x).sum(), module.parameters())
    y = module(x.to(dtype)).float()
    for half, expected in zip(
        torch.autograd.grad(scale * y.sum(), module.parameters()), full, strict=True
    ):
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(expected.item(), rel=2**-7)


@every_option
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(build, value):
    hidden = build is A.CappedSoftplus and value == math.inf  # the cap is its value there
    assert build()(torch.tensor([1.0, value])).isfinite().all() == hidden


@every_option
def test_at_most_one_tensor_of_the_input_size_is_kept(build):
    kept = []
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda _: None):
        build()(x)
    assert sum(n > 1 for n in kept) == 1 and max(kept) == x.numel()


@every_option
def test_inplace_is_accepted_and_changes_no_result(build):
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    leaf = x.clone().requires_grad_()
    before = leaf * 1
    after = build(inplace=True)(before)
    assert (after.data_ptr() == before.data_ptr()) == (build in IN_PLACE)
    assert torch.equal(after, build()(x)) and after.stride() == x.stride()
    slope = torch.autograd.grad(after.sum(), leaf)[0]
    assert torch.allclose(slope, gradient(build(), x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [A.ParametricSoftplus, A.SmoothReLU, A.ELU, A.CELU,
                                   A.PSSiLU, A.CappedSoftplus])  # fmt: skip
def test_alpha_must_be_above_0_and_finite(build):
    for alpha in (-1, 0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"^alpha={alpha:g}: must be above 0"):
            build(alpha=alpha)


def test_other_values_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="^negative_slope=0: "):
        A.LeakyReLU(0)
    with pytest.raises(ValueError, match="^init=nan: "):
        A.PReLU(math.nan)
    for build, key in ((A.Squareplus, "b"), (A.SmeLU, "beta"), (A.CappedSoftplus, "cap")):
        for value in (0, -1, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"^{key}={value:g}: "):
                build(**{key: value})
    for beta in (-0.1, 0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"^beta={beta:g}: "):
            A.PSSiLU(beta=beta)
    A.PSSiLU(beta=0.0, learnable=False)


@pytest.mark.parametrize(
    "module",
    [A.Squareplus(0.3), A.SmeLU(1.5), A.BentIdentity(), A.CappedSoftplus(2.0, 3.0)],
    ids=lambda module: type(module).__name__,
)
def test_those_since_2020_are_differentiated_twice(module):
    x = torch.tensor([[-3, -0.5, 0.02], [0.7, 2, 9]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(module, x) and gradgradcheck(module, x)


@pytest.mark.parametrize("build", [A.Squareplus, A.BentIdentity, A.SmeLU])
def test_what_cancels_keeps_its_digits(build):
    """Small values of large negative x, and of small ones, in float32 as in float64."""
    x = torch.tensor([-3e4, -300, -7, -1e-3, 1e-3, 5, 3e4])
    module = build()
    torch.testing.assert_close(module(x).double(), module(x.double()), rtol=1e-6, atol=0)


def test_one_compiled_graph_with_frozen_scalars():
    """Dynamo's graph capture alone (backend aot_eager): no C++ compiler, a few seconds."""
    model = nn.Sequential(
        A.SmoothReLU(), A.PSSiLU(beta=0.2), A.ParametricSoftplus(), A.PReLU(), A.Mish(),
        A.GELU("tanh"), A.Squareplus(), A.SmeLU(), A.BentIdentity(), A.CappedSoftplus(),
    )  # fmt: skip
    detached = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    frozen = torch.compile(
        lambda x: functional_call(model, detached, (x,)), fullgraph=True, backend="aot_eager"
    )
    learning = torch.compile(model, fullgraph=True, backend="aot_eager")
    targets = [x, *model.parameters()]
    expected = torch.autograd.grad(model(x).sum(), targets)
    for one, other in zip(torch.autograd.grad(learning(x).sum(), targets), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    slope = torch.autograd.grad(frozen(x).sum(), x)[0]
    assert torch.allclose(slope, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [A.SmoothReLU, lambda: A.PSSiLU(beta=0.2)])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_captured_gradient_is_the_plain_one(build, backend):
    """torch 2.11 loses that of a function whose result was made in place."""
    module, x = build(), torch.linspace(-3, 3, 61).requires_grad_()
    call = torch.compile(module, fullgraph=True, backend=backend)
    targets = [x, *module.parameters()]
    plain, captured = (torch.autograd.grad(f(x).sum(), targets) for f in (module, call))
    assert plain[0].abs().max() > 0.5
    for one, other in zip(captured, plain, strict=True):
        assert torch.allclose(one, other, 1e-5, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mish", "prelu", "gelu_tanh"])
def test_a_compiled_form_of_its_own_is_the_same_function(name, dtype, monkeypatch):
    """Far out as well, where exponentials overflow."""
    module = {"mish": A.Mish(), "prelu": A.PReLU(), "gelu_tanh": A.GELU("tanh")}[name]
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e4, 1e4])]).to(dtype)

    def both():
        at = x.clone().requires_grad_()
        y = module(at)
        return y.detach(), torch.autograd.grad(y.sum(), at)[0]

    plain = both()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for one, other in zip(both(), plain, strict=True):
        assert one.dtype == dtype and torch.allclose(one, other, tolerance, tolerance)


def test_mish_by_one_exponential_is_mish():
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e30, 1e30])]).double()
    found = []
    for call in (functions._Mish.apply, nn.functional.mish):
        at = x.clone().requires_grad_()
        y = call(at)
        found.append((y.detach(), *torch.autograd.grad(y.sum(), at)))
    for own, torchs in zip(*found, strict=True):
        assert torch.allclose(own, torchs, 1e-13, 1e-13)
    assert type(A.Mish()(x.bfloat16().requires_grad_()).grad_fn).__name__ == "_MishBackward"


@pytest.mark.parametrize("frozen", [False, True])
def test_prelu_on_a_cpu_has_torchs_gradients(frozen):
    x = torch.linspace(-2, 2, 401, dtype=torch.float64).view(1, 1, 1, 401)
    grads = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = A.PReLU(0.3).double().requires_grad_(not frozen)
    found = []
    for call in (module, lambda x: torch.prelu(x, module.weight)):
        at = x.clone().requires_grad_()
        targets = [at] if frozen else [at, module.weight]
        found.append(torch.autograd.grad(call(at), targets, grads))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, 1e-12, 1e-12)
