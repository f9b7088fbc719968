"""Our verdicts against AutoAttack's own, on the same images, with the same threads and batch size:

    python scripts/agreement.py outputs/RUN... --images 1000 --threads 1

Theirs takes hours on a CPU: its verdicts and times are kept in the folder `--theirs` after each
attack, so that a second call goes on from there. Ours is timed before and after theirs.
"""

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat.acceleration.precision import float32
from sat.attacks import FastAutoAttack
from sat.attacks.outcomes import STANDS
from sat.config import check
from sat.data import evaluation_batches
from sat.evaluation.store import digest_of
from sat.loggers.screen import table
from sat.models.weights import load
from sat.rng import RowRng, seed_of
from sat.rundir.untrusted import read_yaml

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")  # the standard version, in its order
HEAD = ["run", "images", "clean", "ours", "theirs", "only we spare", "only they", "our processor",
        "theirs", "ratio"]  # fmt: skip
Found = tuple[Tensor, np.ndarray]  # who fell to which attack [N], and [wall, processor] seconds


def images_of(run: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first test images of the run's dataset, and their labels, on the CPU."""
    spec = check(read_yaml(run / "config.yaml"))
    data = spec.dataset(torch.device("cpu"), spec.seed)
    parts = list(data.test.stream(evaluation_batches(data.test_subset(count), 512)))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def timed(work: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What `work` returns, and [wall-clock, processor] seconds; the second ignores neighbours."""
    start = np.array([time.monotonic(), time.process_time()])
    result = work()
    return result, np.array([time.monotonic(), time.process_time()]) - start


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(x.split(256), y.split(256), strict=True)
    return torch.cat([model(part).argmax(1) == labels for part, labels in parts])


def theirs(model: nn.Module, x: Tensor, y: Tensor, own: Namespace, kept: Path) -> Found:
    """pyautoattack's standard version, attack by attack: who fell to which (-1: nobody)."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2"}[own.norm]
    auto = AutoAttack(model, norm=norm, eps=own.eps / 255, version="standard", seed=own.seed)
    if kept.is_file():
        parts = np.load(kept, allow_pickle=False)
        verdicts, seconds = torch.from_numpy(parts["verdicts"]), parts["seconds"]
    else:
        verdicts = torch.where(right(model, x, y), -1, len(ATTACKS)).to(torch.int8)
        seconds = np.zeros((0, 2))
    run = lambda a, b: auto.run_standard_evaluation(a, b, batch_size=own.batch_size)  # noqa: E731
    for k, attack in list(enumerate(ATTACKS))[len(seconds) :]:
        auto.attacks_to_run, spent = [attack], np.zeros(2)
        left = (verdicts == STANDS).nonzero()[:, 0]
        if len(left):
            (x_adv, _), spent = timed(partial(run, x[left], y[left]))
            verdicts[left[~right(model, x_adv, y[left])]] = k
        seconds = np.vstack([seconds, spent])
        np.savez(kept, verdicts=verdicts.numpy(), seconds=seconds)
        stand = int((verdicts == STANDS).sum())
        print(f"{kept.stem}: {attack}: {stand} left, {spent[0]:.0f} s", flush=True)
    return verdicts, seconds.sum(0)


def ours(model: nn.Module, x: Tensor, y: Tensor, own: Namespace) -> Found:
    attack = FastAutoAttack(own.eps, own.norm, ATTACKS, own.batch_size)
    rng = RowRng(seed_of(own.seed, "agreement"), torch.arange(len(x)))
    return timed(lambda: attack.verdicts(model, x, y, rng))


def line(name: str, mine: Found, other: Found, clean: Tensor) -> list[str]:
    """Robust accuracies, disagreements in both directions, processor seconds."""
    stands, stand = mine[0] == STANDS, other[0] == STANDS
    shares = [f"{100 * of.float().mean().item():.1f} %" for of in (clean, stands, stand)]
    counts = [str(int(only.sum())) for only in (stands & ~stand, stand & ~stands)]
    seconds = [mine[1][1], other[1][1]]
    times = [*(f"{each:.0f} s" for each in seconds), f"{seconds[1] / seconds[0]:.1f}"]
    return [name, str(len(clean)), *shares, *counts, *times]


def arguments(given: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(prog="agreement.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="run directories")
    add("--images", type=int, default=1000)
    add("--eps", type=float, default=8.0, help="in 1/255")
    add("--norm", choices=["linf", "l2"], default="linf")
    add("--batch-size", type=int, default=64)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--seed", type=int, default=0)
    add("--theirs", type=Path, default=Path("agreement"), help="where theirs is")
    return parser.parse_args(given)


def compared(run: Path, own: Namespace) -> list[str]:
    """A run's line: ours before and after theirs, with the mean of its two times."""
    model, (x, y) = load(run), images_of(run, own.images)
    name = run.resolve().name
    own.theirs.mkdir(parents=True, exist_ok=True)
    of = f"{digest_of(model.state_dict())}-{own.norm}{own.eps:g}"
    kept = own.theirs / f"{name}-{of}-b{own.batch_size}s{own.seed}-{len(x)}.npz"
    with float32(model):
        (first, before), other = ours(model, x, y, own), theirs(model, x, y, own, kept)
        second, after = ours(model, x, y, own)
        assert torch.equal(first, second)
        return line(name, (first, (before + after) / 2), other, right(model, x, y))


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 2 where there is no run, or none that can be read."""
    own, lines = arguments(given), []
    torch.set_num_threads(own.threads)
    for run in own.runs:
        try:
            lines.append(compared(run, own))
        except ValueError as error:
            print(f"! {error}", file=sys.stderr)
            return 2
        print(table(HEAD, lines), flush=True)
    print("processor seconds; only we, only they: images that the one spares and the other fells")
    return 0
