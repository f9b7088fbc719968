"""The network that attacks search: the model's own function; and the model is not touched."""

import copy
from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sat.acceleration.folding
from sat import activations as A
from sat.acceleration.folding import fold
from sat.activations.surrogate import SurrogateReLU, phase, phased
from sat.attacks import PGD, Clean
from sat.attacks.base import input_gradient
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import Series
from sat.models.backbones import EfficientNet, PreActResNet, ResNet, WideResNet
from sat.models.classifier import Classifier, assemble
from sat.objectives import Adversarial, Method
from sat.rng import RowRng
from sat.training.optimizer import load_optimizer
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

SHAPE = (3, 16, 16)
# family, activation, batch norms in all, and those that directly follow a convolution
FAMILIES = {
    "resnet": (ResNet(10, 0.125), A.SiLU, 12, 12),
    "bottleneck": (ResNet(26, 0.0625), A.ReLU, 29, 29),
    "preact": (PreActResNet(18, 0.125), A.ELU, 17, 8),
    "wide": (WideResNet(10, 1), A.SmoothReLU, 7, 3),
    "efficientnet": (EfficientNet("b0"), A.GELU, 49, 49),
}
families = pytest.mark.parametrize("name", FAMILIES)


def trained(name: str) -> nn.Module:
    """A model with batch-norm statistics of images, and scales off their starting points."""
    family, activation, *_ = FAMILIES[name]
    torch.manual_seed(0)
    model = assemble(family(3, 4, SHAPE[1]), activation, [0.5] * 3, [0.25] * 3, SHAPE).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(20):
        model(images(8))
    return model.eval()


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


@families
def test_logits_and_gradients_are_the_models(name):
    model, x, y = trained(name), images(), torch.arange(4)
    folded = fold(model, x[:2])
    norms = [m for m in folded.net.modules() if isinstance(m, nn.BatchNorm2d)]
    *_, of, merged = FAMILIES[name]
    assert len(norms) == of - merged
    with torch.no_grad():
        assert apart(folded.net(x), model(x)) < 1e-5
    assert apart(input_gradient(folded.net, x, y), input_gradient(model, x, y)) < 1e-4


@families
def test_it_follows_an_update_and_only_when_told(name):
    model, x = trained(name), images()
    folded = fold(model, x[:2])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    F.cross_entropy(model(x), torch.arange(4)).backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert apart(folded.net(x), model(x)) > 1e-3
        folded.follow()
        assert apart(folded.net(x), model(x)) < 1e-5


def test_nothing_of_the_model_is_touched_and_weights_are_held_once():
    model, x = trained("wide"), images()
    model.train()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    folded = fold(model, x[:2])
    input_gradient(folded.net, x, torch.arange(4))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training for m in model.modules()) and not folded.net.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(p.requires_grad for p in folded.net.parameters())
    own = {p.data_ptr() for p in model.parameters()}
    extra = [n for n, p in folded.net.named_parameters() if p.data_ptr() not in own]
    merged = FAMILIES["wide"][3]
    assert len(extra) == 2 * merged  # weight and bias of the merged convolutions alone


def test_weights_are_cast_once_to_what_autocast_computes_in():
    model, x, y = trained("preact"), images(), torch.arange(4)
    model.autocast = torch.bfloat16
    folded = fold(model, x[:2], torch.bfloat16)
    layers = [m for m in folded.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    ours, plain = (input_gradient(net, x, y).sign() for net in (folded.net, model))
    assert (ours == plain).float().mean() > 0.9
    assert folded.net(x).dtype == torch.float32


class CarefulHead(nn.Module):
    """Its head, and a convolution before it, compute in float32 whatever the rest does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(self.last(x.float())).mean((2, 3))
            return self.head(x) + F.linear(x, self.head.weight)


def test_a_layer_that_is_kept_out_of_autocast_keeps_its_precision():
    torch.manual_seed(0)
    model = Classifier(CarefulHead(), [0.5] * 3, [0.25] * 3).eval()
    model.autocast = torch.bfloat16
    folded = fold(model, images(2), torch.bfloat16)
    net = folded.net.backbone
    assert isinstance(net.norm, nn.Identity)
    assert {net.last.weight.dtype, net.head.weight.dtype} == {torch.float32}
    assert net.first.weight.dtype == torch.bfloat16
    assert torch.allclose(folded.net(images(4)), model(images(4)), atol=1e-5)


def test_float16_is_cast_and_not_merged():
    folded = fold(trained("resnet"), images(2), torch.float16)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.net.modules()) == 12


class Twice(nn.Module):
    """A convolution whose output goes past its batch norm as well."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.zeros_(self.norm.weight)  # as residual branches begin: the norm gives 0 either way

    def forward(self, x):
        y = self.convolution(x)
        return (self.norm(y) + y).mean((2, 3))


class Again(Twice):
    """A pair that is called twice, on what it has made."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.convolution(self.norm(self.convolution(x)))).mean((2, 3))


class Between(Twice):
    """An activation between the two, in place; and a head of zeros, as some begin."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(self.norm(self.convolution(x).relu_()).mean((2, 3)))


@pytest.mark.parametrize("kind", [Twice, Again, Between])
def test_what_is_no_pair_is_left_alone(kind):
    model, x = kind().eval(), images()
    folded = fold(model, x[:2])
    assert any(isinstance(m, nn.BatchNorm2d) for m in folded.net.modules())
    assert torch.equal(folded.net(x), model(x))


class Headed(Twice):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(super().forward(x))


def test_a_wrong_pair_shows_behind_a_head_of_zeros(monkeypatch):
    """Were the graph misread, the logits would tell."""
    monkeypatch.setattr(sat.acceleration.folding, "_uses", lambda end: defaultdict(lambda: 1))
    folded = fold(Headed().eval(), images(2))
    assert any(isinstance(m, nn.BatchNorm2d) for m in folded.net.modules())


def test_norms_of_several_processes_are_merged_as_well():
    from timm.layers import convert_sync_batchnorm

    for name in ("resnet", "efficientnet"):
        model, x = trained(name), images()
        logits = model(x).detach()
        shared = convert_sync_batchnorm(model)
        folded = fold(shared, x[:2])
        norms = [m for m in folded.net.modules() if isinstance(m, nn.SyncBatchNorm)]
        assert not norms and any(isinstance(m, nn.SyncBatchNorm) for m in shared.modules())
        assert apart(folded.net(x).detach(), logits) < 1e-5


class Keeping(nn.Module):
    """Keeps, in eval mode, what follows from its weights, until it trains again."""

    def __init__(self):
        super().__init__()
        self.linear, self.kept = nn.Linear(3, 3), None

    def train(self, mode: bool = True):
        super().train(mode)
        if mode:
            self.kept = None  # and returns nothing, as some of timm's do

    def forward(self, x):
        if self.kept is None or self.training:
            self.kept = self.linear.weight * 2
        return F.linear(x.mean((2, 3)), self.kept)


def test_what_a_network_keeps_in_eval_mode_is_renewed():
    model, x = Keeping(), images()
    model.eval()
    folded = fold(model, x[:2])
    with torch.no_grad():
        folded.net(x)
        model.linear.weight.mul_(3)
        folded.follow()
        assert torch.equal(folded.net(x), model(x))


def trainer(**choices) -> TrainState:
    model = trained("resnet")
    given = {"precision": "fp32", "channels_last": True, "compile": False, **choices}
    return TrainState(model, Method(PGD(8, 2), Adversarial()), Plan(Schedule(), 64, 0, given))


def after(trainer: TrainState, steps: int = 3) -> torch.Tensor:
    for _ in range(steps):
        update(trainer, images(8), torch.arange(8) % 4)
    return torch.cat([value.flatten() for value in trainer.model.state_dict().values()])


def test_a_training_that_folds_is_the_plain_one():
    """A sign of a gradient near 0 may turn, and turns few."""
    plain, folding, unfused = (
        trainer(fold=f, fused=u) for f, u in ((False, True), (True, True), (True, False))
    )
    start = after(plain, 0).clone()
    moved = (after(plain) - start).norm()
    assert (after(folding) - after(plain, 0)).norm() < 0.02 * moved
    assert (after(unfused) - after(folding, 0)).abs().max() < 1e-5
    assert plain._folded is None and folding._folded is not None


def test_an_attack_in_train_mode_is_not_folded():
    training = trainer(fold=True)
    training.attack = PGD(8, 2, batch_norm="train")
    after(training)
    assert training._folded is None


def test_the_phase_of_a_training_reaches_the_folded_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), SurrogateReLU("softplus"),
                          nn.Flatten(), nn.LazyLinear(4))  # fmt: skip
    x, y, seen = images(), torch.arange(4), []
    model(x)

    class Watched(PGD):
        def __call__(self, net, *given):
            seen.append((getattr(net, "at_rest", False), [m.phase for m in phased(net)]))
            return super().__call__(net, *given)

    choices = {"precision": "fp32", "channels_last": False, "compile": False, "fold": True}
    plan = Plan(Schedule(), 64, 0, choices)
    update(TrainState(model, Method(Watched(8, 1), Adversarial()), plan), x, y)
    assert seen == [(True, ["inner"])]
    folded = fold(model.eval(), x[:2]).net
    plain = input_gradient(folded, x, y)
    with phase(phased(folded), "inner"):
        assert apart(input_gradient(folded, x, y), plain) > 1e-3


def test_an_evaluation_searches_the_folded_network_and_the_model_decides():
    model, x, y = trained("resnet"), images(), torch.arange(4)
    with torch.no_grad():
        y = model(x).argmax(1)
    judged, seen = [], []

    @dataclass(frozen=True)
    class Attack(Clean):
        def __call__(self, net, x, y, rng=None, progress=None):
            seen.append(net)
            return x

    model.register_forward_hook(lambda *given: judged.append(1))
    outcomes = AttackOutcomes.new(("a",), 4)
    Series(("a",), [Attack()], 2).run(model, x, y, RowRng(0, torch.arange(4)), outcomes)
    assert len(seen) == 2 and seen[0] is seen[1] and seen[0].at_rest
    assert judged and (outcomes.fell == -1).all()


def test_what_an_optimizer_keeps_gets_the_layout_of_its_weight():
    """A fused step takes memory as it lies: of another layout it would move other weights."""
    weights = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))

    def step(fused: bool, kept: torch.memory_format) -> torch.Tensor:
        weight = nn.Parameter(weights.clone(memory_format=torch.channels_last))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=fused)
        momentum = torch.arange(288.0).view(8, 4, 3, 3)
        other = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=not fused).state_dict()
        other["state"] = {0: {"momentum_buffer": momentum.to(memory_format=kept)}}
        load_optimizer(optimizer, other)
        assert optimizer.param_groups[0]["fused"] is fused
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return weight.detach()

    plain = step(False, torch.contiguous_format)
    for kept in (torch.contiguous_format, torch.channels_last):
        assert (step(True, kept) - plain).abs().max() < 1e-5


def test_a_model_is_tried_once_and_has_its_weights_of_now(monkeypatch):
    model, x = trained("resnet"), images()
    first = fold(model, x)
    monkeypatch.setattr(sat.acceleration.folding, "_pairs", None)  # not callable
    with torch.no_grad():
        model.backbone.bn1.bias.add_(1)
        again = fold(model, x)
        assert len(again._folds) == len(first._folds) > 0
        assert apart(again.net(x), model(x)) < 1e-4 < apart(first.net(x), model(x))
