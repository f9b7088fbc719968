"""What a smooth activation costs inside a network, beside ReLU: whether it is free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from cases import Case, side_by_side
from costs import build, saved_bytes
from loops import left_out
from pages import grid
from stopwatch import Timed, interleaved, paired, settings, spread
from torch import nn
from units import size

from sat.activations.surrogate import phase
from sat.attacks.base import frozen, input_gradient
from sat.config import options
from sat.training.loop import Trainer


def measure_activations(
    case: Case, rounds: int, progress: Callable[[str], object], compiled: bool
) -> dict[str, Any]:
    """For each activation, relative to ReLU in the same round: an attacker's step (a forward and
    the gradient of the images) and an update's forward and backward. Networks differ in nothing
    else. `saved` counts what autograd keeps of an update's forward in float32."""
    names = sorted(options()["activation"], key=lambda name: (name != "relu", name))
    cases = {name: case.varied(f"activation={name}") for name in names}
    kinds = [False, True] if compiled else [False]
    rows: list[dict[str, Any]] = [
        {"activation": name, "saved": _saved(each)} for name, each in cases.items()
    ]
    for kind in kinds:
        calls: dict[tuple[str, str], Timed] = {}
        for name, each in cases.items():
            calls |= {(name, what): call for what, call in _calls(each, kind).items()}
        try:
            with side_by_side(kind):
                times = interleaved(calls, case.device, rounds, progress=progress)
        except Exception as error:  # torch's compiler raises many kinds
            if not kind:
                raise
            return {"choices": case.choices, "rows": rows, "notes": [left_out("compiled", error)]}
        for row in rows:
            row["compiled" if kind else "eager"] = _beside_relu(times, row["activation"])
    return {"choices": case.choices, "rows": rows, "notes": []}


def _beside_relu(times: dict[tuple[str, str], list[float]], name: str) -> dict[str, Any]:
    found = {}
    for what in ("attack", "update"):
        own, relu = times[name, what], times["relu", what]
        ratio = paired(lambda mine, other: mine / other, own, relu)
        found[what] = {"seconds": spread(own).json(), "to_relu": ratio.json()}
    return found


def _saved(case: Case) -> float:
    model = build(case.spec, case.sizes, "meta")
    return saved_bytes(model, torch.zeros(2, *case.sizes.shape, device="meta")) / 2


def _calls(case: Case, compiled: bool) -> dict[str, Timed]:
    trainer, (x, y) = case.trainer(compile=compiled), case.images()
    trainer.attack = case.attack(1)
    net = trainer.attack_model(x)

    def update() -> None:
        trainer.objective(trainer.net, x, x, y)[0].backward()
        trainer.optimizer.zero_grad(set_to_none=True)

    trainer.model.train()
    gradient = partial(input_gradient, net, x, y)
    return {
        "attack": Timed(gradient, partial(_attacking, trainer, net)),
        "update": Timed(update, partial(_updating, trainer)),
    }


@contextmanager
def _attacking(trainer: Trainer, net: nn.Module) -> Iterator[None]:
    with settings(trainer.plan.choices), frozen(net, "eval"), phase(trainer.phased, "inner"):
        yield


@contextmanager
def _updating(trainer: Trainer) -> Iterator[None]:
    with settings(trainer.plan.choices), phase(trainer.phased, "outer"):
        yield


def activations_text(found: dict[str, Any]) -> str:
    """The table, in Markdown."""
    kinds = [kind for kind in ("eager", "compiled") if kind in found["rows"][0]]
    relu = found["rows"][0]["saved"]
    head = ["activation", *(f"{kind}: {what}" for kind in kinds for what in ("attack", "update")),
            "saved, to ReLU", "saved an image"]  # fmt: skip
    rows = []
    for row in found["rows"]:
        ratios = [row[kind][what]["to_relu"] for kind in kinds for what in ("attack", "update")]
        told = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in ratios]
        rows.append([row["activation"], *told, f"{row['saved'] / relu:.2f}", size(row["saved"])])
    note = (
        "Time of the network's attack step (forward, gradient of the images) and update (forward,"
        " backward), relative to the same network with ReLU: medians and quartiles."
    )
    return "\n".join(["## Activations", "", note, "", grid(head, rows), *found["notes"]])
