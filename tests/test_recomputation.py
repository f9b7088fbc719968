"""Gradient checkpointing changes memory and time, and no number."""

import pytest
import torch
from conftest import small_network
from torch import nn

from sat.acceleration.recomputation import recompute
from sat.activations import SiLU
from sat.activations.surrogate import SurrogateReLU
from sat.activations.swap import swap_activations
from sat.attacks import PGD
from sat.models import CifarResNet, Classifier, EfficientNet, PreActResNet, ResNet, WideResNet
from sat.objectives import Adversarial, Method
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

FAMILIES = {
    "resnet": ResNet(10, 0.125), "cifar": CifarResNet(8, 0.5), "wide": WideResNet(10, 0.5),
    "preact": PreActResNet(18, 0.125), "dropout": EfficientNet("b0", dropout=0.5),
}  # fmt: skip


def trained(family, checkpointed: bool, activation=SiLU, attack=None, **schedule):
    """The state after two steps, and how often a block has been entered."""
    torch.manual_seed(0)
    net = family(3, 10, 16)
    swap_activations(net, activation)
    model = Classifier(net, [0.5] * 3, [0.25] * 3)
    if checkpointed:
        recompute(model)
    block = next(m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
                 or type(m).__name__ in ("BasicBlock", "PreActBasic"))  # fmt: skip
    runs = []
    block.register_forward_pre_hook(lambda *_: runs.append(1))  # it may be left before its end
    choices = {"precision": "fp32", "channels_last": False, "compile": False, "threads": 1}
    plan = Plan(Schedule(batch_size=4, learning_rate=1.0, **schedule), 1000, 0, choices)
    trainer = TrainState(model, Method(attack or PGD(8, 2), Adversarial()), plan)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        update(trainer, torch.rand(4, 3, 16, 16, generator=generator), torch.arange(4))
    return {**trainer.state_dict()["model"], "totals": trainer.totals.values}, len(runs)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_the_same_to_the_bit(name):
    (plain, once), (checkpointed, more) = (trained(FAMILIES[name], c) for c in (False, True))
    assert more == 2 * once, "nothing was computed again"
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        assert torch.equal(value, checkpointed[key]), key


@pytest.mark.parametrize(
    "given",
    [{"attack": PGD(8, 2, batch_norm="train")}, {"accumulate": 2}, {"ema": 0.5},
     {"activation": lambda: SurrogateReLU("silu")}],
    ids=["batch norm of the attack", "parts", "average", "surrogate"],
)  # fmt: skip
def test_so_it_is_beside_other_options(given):
    (plain, _), (checkpointed, _) = (trained(FAMILIES["resnet"], c, **given) for c in (False, True))
    assert all(torch.equal(value, checkpointed[key]) for key, value in plain.items())


def test_networks_without_it_are_refused():
    class Lacking(nn.Module):
        def set_grad_checkpointing(self, enable=True):
            assert not enable, "gradient checkpointing not supported"

    for net, name in ((small_network(), "Sequential"), (Lacking(), "Lacking")):
        with pytest.raises(ValueError, match=f"^grad_checkpointing=true: timm has none for {name}"):
            recompute(Classifier(net, [0.5], [0.25]))


def test_a_run_with_it_is_the_run_without(sat):
    first = sat("schedule.epochs=1", "schedule.grad_checkpointing=true")
    assert first.code == 0, first.err
    second = sat("schedule.epochs=1")
    assert second.code == 0 and second.runs == first.runs, "another identity"
    assert second.result["last"] == first.result["last"]


def test_a_run_that_cannot_have_it_is_refused(sat):
    given = ["model=timm", "model.name=vgg11_bn", "dataset.image_size=32"]
    answer = sat(*given, "schedule.grad_checkpointing=true", tiny=False)
    assert answer.code == 2 and not answer.runs
    assert "schedule.grad_checkpointing=true" in answer.err
