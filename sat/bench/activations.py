"""What a smooth activation costs inside a network, beside ReLU: whether it is free."""

from argparse import Namespace
from functools import partial

import torch

from sat.bench.case import Case, side_by_side
from sat.bench.costs import build, saved_bytes
from sat.bench.loops import left_out
from sat.bench.part import Measurements, Part, Row
from sat.bench.stages import attack_calls, update_calls
from sat.bench.stopwatch import Timed, interleaved, paired, spread, under
from sat.bench.units import size
from sat.config import options

HEAD = ["activation", "eager: attack", "eager: update", "compiled: attack", "compiled: update",
        "saved an image"]  # fmt: skip
NOTE = """\
Time of the network's attack step (forward, gradient of the images) and update (forward, backward),
relative to the same network with ReLU in the same round: medians and quartiles. Saved: what
autograd keeps of an update's forward in float32."""
Calls = dict[tuple[str, str], Timed]  # of an activation's attack and update


def measurements(case: Case, own: Namespace) -> Measurements:
    """Networks differ in nothing but the activation."""
    names = sorted(options()["activation"], key=lambda name: (name != "relu", name))
    relu: dict[bool, Calls] = {}
    broken: list[str] = []
    for kind in [False, True][: 1 + own.compile]:
        with side_by_side(kind):
            for name in names:
                measure = partial(beside_relu, case, name, kind, own.rounds)
                yield f"{name}{', compiled' * kind}", partial(measure, relu, broken)


def beside_relu(
    case: Case, name: str, compiled: bool, rounds: int, relu: dict[bool, Calls], broken: list[str]
) -> list[Row]:
    if broken:
        return [{"note": f"{name}, compiled: left out as well"}]
    try:
        if compiled not in relu:
            relu[compiled] = calls_of(case.varied("activation=relu"), "relu", compiled)
        mine = case.varied(f"activation={name}")
        calls = relu[compiled] | ({} if name == "relu" else calls_of(mine, name, compiled))
        times = interleaved(calls, case.device, rounds)
    except Exception as error:  # torch's compiler raises many kinds
        if not compiled:
            raise
        broken.append(left_out("compiled", error))
        return [{"note": broken[0]}]
    model = build(mine.spec, mine.sizes, "meta")
    saved = saved_bytes(model, torch.zeros(2, *case.sizes.shape, device="meta")) / 2
    row: Row = {"activation": name, "compiled": compiled, "saved": saved}
    for what in ("attack", "update"):
        own, other = times[name, what], times["relu", what]
        row[what] = {"seconds": spread(own), "to_relu": paired(lambda a, b: a / b, own, other)}
    return [row]


def calls_of(case: Case, name: str, compiled: bool) -> Calls:
    state = case.state(1, compile=compiled)
    parts = attack_calls(case, state) | update_calls(case, state)
    chosen = {"attack": parts["attack gradient"], "update": parts["gradients"]}
    return {(name, what): under(state.plan.choices, call) for what, call in chosen.items()}


def cells(row: Row) -> list[str]:
    ratios = [row[what]["to_relu"] for what in ("attack", "update")]
    told = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in ratios]
    told = ["-", "-", *told] if row["compiled"] else [*told, "-", "-"]
    return [row["activation"], *told, size(row["saved"])]


PART = Part("Activations", NOTE, HEAD, measurements, cells)
