"""Where the time of a step goes, measured with the program's own parts; what can't be timed by
itself is the difference of two times of one round."""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F

from sat.activations.surrogate import phase
from sat.attacks.pgd import frozen, input_gradient
from sat.bench.case import Case, units
from sat.bench.loading import fed, origin, pixels, training_images
from sat.bench.loops import left_out
from sat.bench.part import Measurements, Part, Row, quartiles
from sat.bench.stopwatch import Timed, interleaved, paired, products, settings, spread
from sat.bench.units import digits
from sat.data.sets import Data
from sat.rng import RowRng
from sat.training.state import TrainState
from sat.training.step import update

HEAD = ["stage", "ms a step", "quartiles", "of the step", "units", "share of peak"]
NOTE = """\
Parts by themselves, and differences of such times; on a GPU one may wait for its launches where the
whole step does not. Logging: its share of a step. Shares are of the fastest matrix product."""


def stages_of(k: int, log_every: int, t: dict[str, float]) -> dict[str, tuple[int, float]]:
    """Units of work and seconds of each part, by the seconds `t` of the calls in one round; they
    add up to a step of PGD-k with its batch and its share of a log. Where processes read the images
    beside the step (`fed`), it has only what it waits for."""
    found = {"data": (0, t["data"])}
    if "fed" in t:
        found = {"data: waited for": (0, t["fed"] - t["step"])}
    if k:
        backward = t["attack gradient"] - t["attack forward"]
        rest = t["attack"] - k * t["attack gradient"] - t["fold"]
        found |= {
            "attack: forwards": (k, k * t["attack forward"]),
            "attack: backwards": (k, k * backward),
            "attack: weights folded": (0, t["fold"]),
            "attack: start, steps, ball": (0, rest),
        }
    rest = t["step"] - t["attack"] - t["gradients"] - t["optimizer"]
    return found | {
        "update: forward": (1, t["forward"]),
        "update: backward": (2, t["gradients"] - t["forward"]),
        "update: optimizer": (0, t["optimizer"]),
        "update: checks and sums": (0, rest),
        "logging": (0, t["log"] / log_every),
    }


def measurements(case: Case, own: Namespace) -> Measurements:
    k = 2 if 2 in own.steps else own.steps[-1]
    yield f"PGD-{k}", partial(measure, case, k, own.rounds, False)
    if own.compile:
        yield f"PGD-{k}, compiled", partial(compiled, case, k, own.rounds)


def compiled(case: Case, k: int, rounds: int) -> list[Row]:
    try:
        return measure(case, k, rounds, True)
    except Exception as error:  # torch's compiler raises many kinds
        return [{"note": left_out("the compiled step", error)}]


def measure(case: Case, k: int, rounds: int, compile: bool) -> list[Row]:
    state, tops = case.state(k, compile=compile), products(case.device)
    with ExitStack() as stack:
        stack.enter_context(settings(state.plan.choices))
        images = training_images(case, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        calls = attack_calls(case, state) | update_calls(case, state)
        calls |= {"data": fed(case, images), "log": stack.enter_context(logged(case, state))}
        if read := origin(images, case):
            calls["fed"] = fed(case, images, partial(update, state))
        times = interleaved(calls | {top.name: top.call for top in tops}, case.device, rounds)
    every, by_round = (
        state.plan.log_every,
        [dict(zip(times, each, strict=True)) for each in zip(*times.values(), strict=True)],
    )
    found = [stages_of(k, every, seconds) for seconds in by_round]
    best = min(tops, key=lambda top: min(times[top.name]) / top.flop)
    unit = 2 * case.cost.multiply_adds * case.batch / best.flop
    wholes = [sum(seconds for _, seconds in parts.values()) for parts in found]
    rows: list[Row] = []
    for name, (work, _) in found[0].items():
        mine = [parts[name][1] for parts in found]
        share = paired(lambda top, own, n=work: n * unit * top / own, times[best.name], mine)
        rows.append({"stage": name, "units": work, "seconds": spread(mine),
                     "share": paired(lambda a, b: a / b, mine, wholes),
                     "share_of_peak": share if work else None})  # fmt: skip
    name = f"PGD-{k}{', compiled' * compile}: all"
    rows.append({"stage": name, "units": units(k), "seconds": spread(wholes),
                 "share": spread([1.0]), "share_of_peak": None,
                 "choices": state.plan.choices})  # fmt: skip
    if read:
        rate = paired(lambda t: case.batch / t, times["data"])
        note = "{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**rate)
        rows.append({"note": f"\n{note} images/s are read where nothing else is done, from {read}"})
    return rows


def attack_calls(case: Case, state: TrainState) -> dict[str, Timed]:
    """The attack and its parts; `attack gradient` is a forward and its backward to the images,
    `fold` brings the folded network's weights up to date."""
    x, y = case.images()
    net, rows = state.attack_model(x), torch.arange(len(x), device=x.device)

    @contextmanager
    def attacking() -> Iterator[None]:
        with frozen(net, case.spec.attack.batch_norm), inner():
            yield

    inner = lambda: phase(state.phased, "inner")  # noqa: E731
    images = x.clone().requires_grad_()
    state.model.train()
    return {
        "attack": Timed(lambda: state.attack(state.attack_model(x), x, y, RowRng(0, rows)), inner),
        "fold": Timed(lambda: state.attack_model(x)),
        "attack gradient": Timed(lambda: input_gradient(net, x, y), attacking),
        "attack forward": Timed(
            lambda: F.cross_entropy(net(images), y, reduction="sum"), attacking
        ),
    }


def update_calls(case: Case, state: TrainState) -> dict[str, Timed]:
    """The update and its parts; `step` is all of it, the attack included."""
    (x, y), net, objective = case.images(), state.net, state.objective
    outer = lambda: phase(state.phased, "outer")  # noqa: E731

    def gradients() -> None:
        objective(net, x, x, y)[0].backward()
        state.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def with_gradients() -> Iterator[None]:
        for parameter in state.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-9)
        yield
        state.optimizer.zero_grad(set_to_none=True)

    state.model.train()
    return {
        "step": Timed(lambda: update(state, x, y)),
        "forward": Timed(lambda: objective(net, x, x, y), outer),
        "gradients": Timed(gradients, outer),
        "optimizer": Timed(state.optimizer.step, with_gradients),
    }


@contextmanager
def logged(case: Case, state: TrainState) -> Iterator[Timed]:
    """A line of metrics and the points of the curves, as in a run, in a folder of its own."""
    from sat.loggers import About, Loggers
    from sat.rundir.record import claim
    from sat.training.callbacks import Callbacks

    images, sizes, steps = pixels(case, case.batch), case.sizes, count(1)
    names, half = tuple(map(str, range(sizes.classes))), (0.5,) * sizes.channels
    data = Data("random", names, sizes.channels, sizes.pixels, half, half, images, images, images,
                canonical=True)  # fmt: skip

    def log() -> None:
        state.totals.values.fill_(1.0)  # as after steps, without which there is nothing to tell
        state.step = next(steps)
        callbacks.log(state)

    with tempfile.TemporaryDirectory() as folder:
        record = replace(case.spec.record, root=folder)
        with claim(record, "benchmark", case.spec.yaml()) as run:
            run.track(Loggers(case.spec.logger, About(run.directory, "benchmark", "")))
            callbacks = Callbacks(case.spec, run, data)
            with callbacks.open(state, "", lambda step: iter(())):
                yield Timed(log)
                callbacks.saved_step = state.step  # no checkpoint at the end


def cells(row: Row) -> list[str]:
    peak = row["share_of_peak"]
    share = [f"{row['share']['median']:.1%}", str(row["units"] or "-")]
    time = [digits(1e3 * row["seconds"]["median"]), quartiles(row["seconds"], 1e3)]
    return [row["stage"], *time, *share, f"{peak['median']:.1%}" if peak else "-"]


PART = Part("Stages", NOTE, HEAD, measurements, cells)
