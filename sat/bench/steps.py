"""One step of adversarial training as different people write it, timed side by side over the number
of attack steps."""

import textwrap
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat.acceleration.auto import GRAPH_PAYS_BELOW, settle
from sat.attacks import Clean
from sat.bench.book import Measurements, Row, left_out
from sat.bench.case import RATE, Case, units
from sat.bench.counting import limits
from sat.bench.stopwatch import COPY, Stopwatch, Timed, peak, plain, row_of, spread
from sat.training.step import update

PEERS = ("published", "torchattacks")
TRICKS = ("channels_last", "fold", "fused", "tf32")


def steps(case: Case, own: Namespace, watch: Stopwatch) -> Measurements:
    """Whole steps of every loop over the number of attack steps, against the limits of the machine.

    The peak is the fastest large matrix product; a step of PGD-k is 2k + 3 units of work whatever a
    loop computes. Limits are by the roofline: each operation of our eager step takes as long as
    that product's rate or a copy's lets it, whichever is longer; `fused` moves what products and
    convolutions read and write, and nothing else. Ratios are medians of those of a round. Memory is
    that of a step beside weights and optimiser; busy is the share of the time in which a GPU works.
    """
    loops, notes = loops_of(case, own.compile)
    if notes:
        yield "left out", 0, lambda: [{"note": note} for note in notes]
    order = sorted(own.steps, key=lambda k: k == 0)
    for k in order:
        # on a GPU ceilings and least times take most of a row, whatever k
        cost = 1 if case.device.type == "cuda" else units(k)
        yield f"k={k}", cost, partial(measure, case, loops, k, watch, k == order[0])


def measure(
    case: Case, loops: Sequence["Loop"], k: int, watch: Stopwatch, first: bool
) -> list[Row]:
    """A step of each loop, and the machine's limits and ceilings, round by round."""
    images = case.images()
    calls = {c.name: Timed(partial(c.step, k, *images), choices=c.choices) for c in loops}
    times, rates = watch.beside_ceilings(calls)
    best, copy = peak(rates), rates[COPY]
    bounds = limits(calls["sat"].counted().each, float(np.median(best)), float(np.median(copy)))
    rows: list[Row] = []
    for name, call in calls.items():
        mine, choices = times[name], call.choices
        rate = units(k) * case.unit / mine
        row = row_of(name, case.batch, mine) | {"k": k}
        row |= {"TFLOP/s": float(np.median(rate)) / 1e12, "% of peak": spread(100 * rate / best),
                "% of limit": 100 * bounds["limit, fused"][0] / float(np.median(mine))}  # fmt: skip
        if (share := watch.busy(call)) is not None:
            row["busy, %"] = share
        row |= {f"times {peer}": spread(times[peer] / mine) for peer in PEERS if peer in times}
        if first and not (choices["compile"] or choices["graph"]):
            row["MiB an image"] = call.counted().most / case.batch / 2**20
        rows.append(row | {"about": {"choices": choices, "seconds": mine.tolist()}})
    for name, (seconds, memory) in bounds.items():
        binds = f"memory, {memory:.0%}" if memory > 0.5 else f"product, {1 - memory:.0%}"
        rate = case.batch / seconds
        rows.append({"name": name, "k": k, "ms": 1e3 * seconds, "images/s": rate, "binds": binds})
    for name, rates_of in rates.items():
        unit, size = ("GB/s", 1e9) if name == COPY else ("TFLOP/s", 1e12)
        rows.append({"name": name, "k": k, unit: spread(rates_of / size)})
    return rows


def draw(rows: Sequence[Row], title: str, folder: Path) -> None:
    """`steps.png`: medians and quartiles of each loop, and the limits, over k."""
    from matplotlib.figure import Figure

    rows = sorted((row for row in rows if "images/s" in row), key=lambda row: row["k"])
    figure = Figure(figsize=(6.3, 4.0), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        ks = [row["k"] for row in mine]
        if "binds" in mine[0]:
            axes.plot(ks, [row["ms"] for row in mine], "--", label=name)
            continue
        middle, low, high = ([row["ms"][q] for row in mine] for q in ("median", "low", "high"))
        (line,) = axes.plot(ks, middle, marker="o", label=name)
        axes.vlines(ks, low, high, color=line.get_color())
    axes.set(yscale="log", xlabel="attack steps k", ylabel="ms a step (logarithmic)")
    axes.set_xticks(sorted({row["k"] for row in rows}))
    figure.suptitle(textwrap.fill(title, 88), fontsize=9, x=0.01, ha="left")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(folder / "steps.png", dpi=200)


# the loops --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """`step(k, x, y)` takes one step of PGD-k on a model of the loop's own."""

    name: str
    step: Callable[[int, Tensor, Tensor], object]
    choices: dict[str, Any]  # precision, layout, compilation, threads


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
