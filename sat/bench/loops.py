"""One step of adversarial training as different people write it, to be timed side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.acceleration.auto import GRAPH_PAYS_BELOW, settle
from sat.attacks import Clean
from sat.bench.book import left_out
from sat.bench.case import RATE, Case
from sat.bench.stopwatch import plain
from sat.training.step import update

PEERS = ("published", "torchattacks")
TRICKS = ("channels_last", "fold", "fused", "tf32")


@dataclass(frozen=True)
class Loop:
    """`step(k, x, y)` takes one step of PGD-k training on a model of the loop's own."""

    name: str
    step: Callable[[int, Tensor, Tensor], object]
    choices: dict[str, Any]  # precision, layout, compilation, threads


def ours(case: Case, name: str, **choices: Any) -> Loop:
    """This program's trainer, with what `auto` chooses unless it is given here."""
    state, pgd = case.state(Clean(), **choices), cache(case.pgd)

    def step(k: int, x: Tensor, y: Tensor) -> None:
        if state.attack is not pgd(k):
            state.attack = pgd(k)
            state.graph.forget()
        update(state, x, y)
        if state.plan.choices["graph"] and not state.graph.on:
            raise RuntimeError(state.news[-1])  # it says why none could be captured

    return Loop(name, step, state.plan.choices)


def theirs(case: Case, name: str, attack: Callable[[nn.Module, int, Tensor, Tensor], Any]) -> Loop:
    """A plain float32 loop around `attack(model, k, x, y) -> x_adv`."""
    model = case.model().train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4)

    def step(k: int, x: Tensor, y: Tensor) -> None:
        x_adv = attack(model, k, x, y) if k else x
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()

    return Loop(name, step, {"precision": "fp32", "compile": False, "graph": False, **plain()})


def published(case: Case) -> Loop:
    """float32, NCHW; the attack calls `loss.backward()`, which computes the gradients of the
    weights and throws them away, and the network stays in training mode: what most published code
    does (Madry's, TRADES', fast adversarial training's)."""
    eps, start = case.spec.attack.eps / 255, case.spec.attack.start == "uniform"

    def attack(model: nn.Module, k: int, x: Tensor, y: Tensor) -> Tensor:
        step_size, x_adv = case.pgd(k).step_size / 255, x
        if start:
            x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(k):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(model(x_adv), y).backward()
            moved = x_adv.detach() + step_size * x_adv.grad.sign()
            x_adv = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        return x_adv.detach()

    return theirs(case, "published", attack)


def torchattacks(case: Case) -> Loop:
    """`torchattacks.PGD` in a plain float32 loop. Raises ImportError where it isn't installed."""
    from torchattacks import PGD

    @cache
    def pgd(model: nn.Module, k: int) -> Any:
        own = case.pgd(k)
        sizes = {"eps": own.eps / 255, "alpha": own.step_size / 255}
        return PGD(model, **sizes, steps=k, random_start=own.start == "uniform")

    return theirs(case, "torchattacks", lambda model, k, x, y: pgd(model, k)(x, y))


def loops_of(case: Case, compiled: bool) -> tuple[list[Loop], list[str]]:
    """All that can be compared here, and a line for each that can't: not every network can be
    compiled or captured as a CUDA graph."""
    kinds: dict[str, dict[str, Any]] = {"sat": {}}
    if compiled:
        kinds["sat, compiled"] = {"compile": True}
    if case.device.type == "cuda" and case.cost.multiply_adds * case.batch < GRAPH_PAYS_BELOW:
        kinds |= {f"{name}, one graph": {**kind, "graph": True} for name, kind in kinds.items()}
    kinds["sat, no trick"] = {"precision": "fp32", **dict.fromkeys(TRICKS, False)}
    found, notes = [], []
    for name, kind in kinds.items():
        loop = ours(case, name, **kind)
        try:
            if "compile" in kind or "graph" in kind:
                try_out(loop, case)
            found.append(loop)
        except Exception as error:  # torch's compiler raises many kinds
            notes.append(left_out(name, error))
    found.append(published(case))
    try:
        found.append(torchattacks(case))
    except ImportError as error:
        notes.append(f"torchattacks is left out: it can't be imported ({error})")
    return found, notes


def try_out(loop: Loop, case: Case) -> None:
    """Takes a few steps, by the fourth of which a graph is captured; raises whatever they raise."""
    settle(loop.choices)  # what is compiled is for these
    for k in (1, 1, 1, 1, 2):
        loop.step(k, *case.images())
