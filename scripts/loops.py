"""The same step of adversarial training as different people write it, to be timed side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.attacks import PGD, Clean
from sat.hardware import auto_precision, depthwise
from sat.models import Classifier
from sat.objectives import Adversarial
from sat.schedule import Schedule
from sat.train import Plan, Trainer

EPS = 8.0  # in 1/255
Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Loop:
    """A way to take steps: `build(model, k)` gives the step of PGD-k training on a model of its
    own. `backwards` says whether its attack computes the gradients of the weights as well."""

    name: str
    build: Callable[[Classifier, int], Step]
    backwards: bool = False


def trainer(model: Classifier, k: int, **choices: Any) -> Trainer:
    """This program's, with what `auto` chooses for a network of some size."""
    kind = next(model.parameters()).device.type
    auto = {"precision": auto_precision(kind, depthwise(model)), "channels_last": True}
    given = {**auto, "compile": False, "threads": torch.get_num_threads(), **choices}
    attack = PGD(EPS, k) if k else Clean()
    # a learning rate of nearly nothing: images and labels mean nothing, and weights stay finite
    schedule = Schedule(learning_rate=1e-6, batch_size=2)
    return Trainer(model, attack, Adversarial(), Plan(schedule, 10**9, 0, given))


def ours(**choices: Any) -> Callable[[Classifier, int], Step]:
    def build(model: Classifier, k: int) -> Step:
        training = trainer(model, k, **choices)

        def step(x: Tensor, y: Tensor) -> None:
            training.rows = [torch.arange(len(x), device=x.device)]
            training.update(x, y)

        return step

    return build


def published(model: nn.Module, k: int) -> Step:
    """float32, NCHW; the attack calls `loss.backward()`, which computes the gradients of the
    weights and throws them away, and the network stays in training mode: what most published code
    does (Madry's, TRADES', fast adversarial training's)."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
    eps, step_size = EPS / 255, EPS / 255 * max(1 / max(k, 1), 1 / 4)

    def step(x: Tensor, y: Tensor) -> None:
        model.train()
        x_adv = x
        if k:
            x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(k):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(model(x_adv), y).backward()
            moved = x_adv.detach() + step_size * x_adv.grad.sign()
            x_adv = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv.detach()), y).backward()
        optimizer.step()

    return step


def torchattacks(model: nn.Module, k: int) -> Step:
    """`torchattacks.PGD` in a plain float32 loop."""
    import torchattacks as peers

    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
    attack = None
    if k:
        attack = peers.PGD(model, EPS / 255, EPS / 255 * max(1 / k, 1 / 4), k, random_start=True)

    def step(x: Tensor, y: Tensor) -> None:
        model.train()
        x_adv = attack(x, y) if attack else x
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()

    return step


def loops(names: list[str]) -> list[Loop]:
    """Those asked for, without what is not installed here."""
    known = [
        Loop("sat", ours()),
        Loop("sat, compiled", ours(compile=True)),
        Loop("sat, float32", ours(precision="fp32", channels_last=False)),
        Loop("published loop", published, backwards=True),
        Loop("torchattacks", torchattacks),
    ]
    return [loop for loop in known if not names or loop.name in names]
