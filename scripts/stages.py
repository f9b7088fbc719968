"""Where the time of a step goes, measured with the program's own parts; what can't be timed by
itself is the difference of two times of one round."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case
from loading import about, fed, pixels, training_images
from pages import grid
from steps import digits
from stopwatch import Product, Timed, interleaved, paired, settings

from sat.activations.surrogate import phase
from sat.attacks.base import frozen, input_gradient
from sat.data.sets import Data
from sat.loggers import About, Loggers
from sat.rng import RowRng
from sat.training.loop import Trainer


@dataclass(frozen=True)
class Stage:
    """A part of the step: of which calls it is made, and how many units of work it does."""

    name: str
    calls: tuple[str, ...]
    seconds: Callable[..., float]  # of the times of `calls` in one round
    units: int = 0


def stages_of(k: int, log_every: int, streamed: bool = False) -> list[Stage]:
    """They add up to a step of PGD-k with its batch and its share of a log. Where processes read
    the images beside the step, it has only what it waits for."""
    data = Stage("data", ("data",), lambda t: t)
    if streamed:
        data = Stage("data: waited for", ("fed", "step"), lambda f, s: f - s)
    gradients = [
        Stage("attack: forwards", ("attack forward",), lambda f: k * f, k),
        Stage("attack: backwards", ("attack gradient", "attack forward"),
              lambda g, f: k * (g - f), k),
        Stage("attack: weights folded", ("fold",), lambda f: f),
        Stage("attack: start, steps, ball", ("attack", "attack gradient", "fold"),
              lambda a, g, f: a - k * g - f),
    ]  # fmt: skip
    return [
        data,
        *(gradients if k else []),
        Stage("update: forward", ("forward",), lambda f: f, 1),
        Stage("update: backward", ("gradients", "forward"), lambda g, f: g - f, 2),
        Stage("update: optimizer", ("optimizer",), lambda o: o),
        Stage("update: checks and sums", ("step", "attack", "gradients", "optimizer"),
              lambda s, a, g, o: s - a - g - o),
        Stage("logging", ("log",), lambda t: t / log_every),
    ]  # fmt: skip


def measure_stages(
    case: Case, products: list[Product], rounds: int, progress: Callable[[str], object],
    k: int, compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    trainer = case.trainer(k, compile=compiled)
    with ExitStack() as stack:
        stack.enter_context(settings(trainer.plan.choices))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = training_images(case, folder)
        calls = _attack(case, trainer) | _update(case, trainer)
        calls |= {"data": fed(case, images), "log": stack.enter_context(logged(case, trainer))}
        if (source := about(images, case)) is not None:
            calls["fed"] = fed(case, images, trainer.update)
        calls |= {product.name: product.call for product in products}
        times = interleaved(calls, case.device, rounds, progress=progress)
    best = min(products, key=lambda product: min(times[product.name]) / product.flop)
    unit = 2 * case.cost.multiply_adds * case.batch
    rows = []
    for stage in stages_of(k, trainer.plan.log_every, streamed=source is not None):
        mine = [times[call] for call in stage.calls]
        row = {"stage": stage.name, "units": stage.units,
               "seconds": paired(stage.seconds, *mine).json()}  # fmt: skip
        if stage.units:
            rate = lambda product, *own, s=stage: (  # noqa: E731
                s.units * unit / s.seconds(*own) / (best.flop / product)
            )
            row["share_of_peak"] = paired(rate, times[best.name], *mine).json()
        rows.append(row)
    parts = ["fed"] if source else ["step", "data"]
    whole = paired(lambda log, *rest: sum(rest) + log / trainer.plan.log_every,
                   times["log"], *(times[part] for part in parts))  # fmt: skip
    if source:
        source["images_per_second"] = paired(lambda t: case.batch / t, times["data"]).json()
    return {"k": k, "device": case.device.type, "choices": trainer.plan.choices,
            "log_every": trainer.plan.log_every, "whole": whole.json(), "limit": best.name,
            "read": source, "rows": rows}  # fmt: skip


def _attack(case: Case, trainer: Trainer) -> dict[str, Timed]:
    """The attack and its parts; `attack gradient` is a forward and its backward to the images,
    `fold` brings the folded network's weights up to date."""
    x, y = case.images()
    net, rows = trainer.attack_model(x), torch.arange(len(x), device=x.device)

    @contextmanager
    def attacking() -> Iterator[None]:
        with frozen(net, case.spec.attack.batch_norm), inner():
            yield

    inner = lambda: phase(trainer.phased, "inner")  # noqa: E731
    images = x.clone().requires_grad_()
    trainer.model.train()
    return {
        "attack": Timed(
            lambda: trainer.attack(trainer.attack_model(x), x, y, RowRng(0, rows)), inner
        ),
        "fold": Timed(lambda: trainer.attack_model(x)),
        "attack gradient": Timed(lambda: input_gradient(net, x, y), attacking),
        "attack forward": Timed(
            lambda: F.cross_entropy(net(images), y, reduction="sum"), attacking
        ),
    }


def _update(case: Case, trainer: Trainer) -> dict[str, Timed]:
    """The update and its parts; `step` is all of it, the attack included."""
    (x, y), net, objective = case.images(), trainer.net, trainer.objective
    smoothing = trainer.plan.schedule.label_smoothing
    outer = lambda: phase(trainer.phased, "outer")  # noqa: E731

    def gradients() -> None:
        objective(net, x, x, y, smoothing)[0].backward()
        trainer.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def with_gradients() -> Iterator[None]:
        for parameter in trainer.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-9)
        yield
        trainer.optimizer.zero_grad(set_to_none=True)

    trainer.model.train()
    return {
        "step": Timed(lambda: trainer.update(x, y)),
        "forward": Timed(lambda: objective(net, x, x, y, smoothing), outer),
        "gradients": Timed(gradients, outer),
        "optimizer": Timed(trainer.optimizer.step, with_gradients),
    }


@contextmanager
def logged(case: Case, trainer: Trainer) -> Iterator[Timed]:
    """A line of metrics and the points of the curves, by the journal of a run in a folder of its
    own."""
    from sat.rundir.record import claim
    from sat.training.callbacks import Callbacks

    images, sizes = pixels(case, case.batch), case.sizes
    names, half = tuple(map(str, range(sizes.classes))), (0.5,) * sizes.channels
    data = Data("random", names, sizes.channels, sizes.pixels, half, half, images, images, images,
                canonical=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        record = replace(case.spec.record, root=str(Path(folder)))
        with claim(record, "benchmark", case.spec.yaml()) as run:
            run.track(Loggers(case.spec.logger, About(run.directory, "benchmark", "")))
            journal, steps = Callbacks(case.spec, run, data), count(1)
            with journal.open(trainer, ""):
                yield Timed(lambda: _log(journal, trainer, next(steps)))
                journal.saved_step = trainer.step  # no checkpoint at the end


def _log(journal: Any, trainer: Trainer, step: int) -> None:
    trainer.totals.fill_(1.0)  # as after steps, without which there is nothing to tell
    trainer.step = step
    journal.log(trainer)


def stages_text(found: dict[str, Any]) -> str:
    whole = found["whole"]
    rows = []
    for row in found["rows"]:
        ms = {key: 1e3 * value for key, value in row["seconds"].items()}
        share = row.get("share_of_peak")
        rows.append([
            row["stage"], digits(ms["median"]), f"{digits(ms['low'])} to {digits(ms['high'])}",
            f"{row['seconds']['median'] / whole['median']:.1%}", str(row["units"] or "-"),
            f"{share['median']:.1%}" if share else "-",
        ])  # fmt: skip
    rows.append(["all", digits(1e3 * whole["median"]),
                 f"{digits(1e3 * whole['low'])} to {digits(1e3 * whole['high'])}", "100.0%",
                 str(2 * found["k"] + 3), "-"])  # fmt: skip
    head = ["stage", "ms a step", "quartiles", "of the step", "units", "share of peak"]
    text = f"## Stages of a PGD-{found['k']} step{', compiled' * bool(found['choices']['compile'])}"
    note = f"Logging: every {found['log_every']} steps. Shares are of {found['limit']}'s peak."
    if found["device"] == "cuda":
        note += " A part by itself may wait for its launches where the whole step does not."
    if read := found["read"]:
        rate = "{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**read["images_per_second"])
        note += f"\n\n{rate} images/s are read where nothing else is done, from {read['files']},"
        note += f" by {read['processes']} processes."
    return "\n".join([text, "", note, "", grid(head, rows)])
