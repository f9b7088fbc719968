"""Our verdicts against the peers' own, on the same images, with the same threads and batch size:

    python scripts/agreement.py outputs/RUN... --images 1000 --threads 1 --json agreement.json
    python scripts/agreement.py outputs/RUN... --pgd 20  # torchattacks.PGD, not AutoAttack

AutoAttack's part takes hours on a CPU: its flags and times are kept in the folder `--theirs` after
each attack, so that a second call goes on from there. Ours is timed before and after theirs.
`--pgd` needs `pip install --no-deps torchattacks`.
"""

import argparse
import json
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
from sat.attacks import PGD, FastAutoAttack
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


def autoattack(
    model: nn.Module, x: Tensor, y: Tensor, own: Namespace, kept: Path
) -> tuple[Found, Found]:
    """Ours before and after theirs, with the mean of its two times; then theirs."""
    attack = FastAutoAttack(own.eps, own.norm, ATTACKS, own.batch_size)
    rng = RowRng(seed_of(own.seed, "agreement"), torch.arange(len(x)))
    ours = lambda: timed(lambda: attack.verdicts(model, x, y, rng))  # noqa: E731
    with float32(model):
        (first, before), other, (second, after) = ours(), theirs(model, x, y, own, kept), ours()
    assert torch.equal(first, second)
    return (first, (before + after) / 2), other


def pgd(model: nn.Module, x: Tensor, y: Tensor, own: Namespace) -> tuple[Found, Found]:
    """PGD of `own.pgd` steps by us and by torchattacks: verdicts, and times of batch after batch
    in turn."""
    from torchattacks import PGD as Theirs
    from torchattacks import PGDL2

    attack = PGD(own.eps, own.pgd, norm=own.norm)
    sizes = (own.eps / 255, attack.step_size / 255, own.pgd)
    peer = {"linf": Theirs, "l2": PGDL2}[own.norm](model, *sizes)
    rng = RowRng(seed_of(own.seed, "agreement"), torch.arange(len(x)))
    torch.manual_seed(own.seed)
    calls = (lambda a, b, rows: attack(model, a, b, rng[rows]), lambda a, b, rows: peer(a, b))
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    seconds = np.zeros((2, 2))
    for rows in torch.arange(len(x)).split(own.batch_size):
        a, b = x[rows], y[rows]
        for k, call in enumerate(calls):
            x_adv, spent = timed(partial(call, a, b, rows))
            seconds[k] += spent
            stands = right(model, x_adv, b) & right(model, a, b)
            found[k].append(torch.where(stands, STANDS, 0))
    return (torch.cat(found[0]), seconds[0]), (torch.cat(found[1]), seconds[1])


def compare(name: str, ours: Found, theirs: Found, clean: Tensor) -> dict[str, Any]:
    """Robust accuracies, disagreements in both directions, times."""
    stands, other = ours[0] == STANDS, theirs[0] == STANDS
    felled = lambda found: [int((found[0] == k).sum()) for k in range(len(ATTACKS))]  # noqa: E731
    times = [
        dict(zip(("wall", "processor"), map(float, s), strict=True)) for _, s in (ours, theirs)
    ]
    return {
        "run": name, "images": len(clean), "clean": clean.float().mean().item(),
        "ours": stands.float().mean().item(), "theirs": other.float().mean().item(),
        "only_ours_stands": int((stands & ~other).sum()),
        "only_theirs_stands": int((other & ~stands).sum()),
        "felled_by_ours": felled(ours), "felled_by_theirs": felled(theirs),
        "our_seconds": times[0], "their_seconds": times[1],
    }  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    shares = [f"{100 * row[key]:.1f} %" for key in ("clean", "ours", "theirs")]
    counts = [str(row[key]) for key in ("only_ours_stands", "only_theirs_stands")]
    ours, theirs = (row[key]["processor"] for key in ("our_seconds", "their_seconds"))
    times = [f"{ours:.0f} s", f"{theirs:.0f} s", f"{theirs / ours:.1f}"]
    return [row["run"], str(row["images"]), *shares, *counts, *times]


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
    add("--pgd", type=int, help="steps of PGD, against torchattacks")
    add("--json", type=Path, help="a file for all numbers")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 2 where there is no run, or none that can be read."""
    own, rows = arguments(given), []
    torch.set_num_threads(own.threads)
    for run in own.runs:
        try:
            model, (x, y) = load(run), images_of(run, own.images)
        except ValueError as error:
            print(f"! {error}", file=sys.stderr)
            return 2
        name = run.resolve().name
        if own.pgd:
            found = pgd(model, x, y, own)
        else:
            own.theirs.mkdir(parents=True, exist_ok=True)
            of = f"{digest_of(model.state_dict())}-{own.norm}{own.eps:g}"
            kept = own.theirs / f"{name}-{of}-b{own.batch_size}s{own.seed}-{len(x)}.npz"
            found = autoattack(model, x, y, own, kept)
        rows.append(compare(name, *found, right(model, x, y)))
        print(table(HEAD, [line(row) for row in rows]), flush=True)
        if own.json:
            own.json.write_text(json.dumps(rows, indent=1))
    print("processor seconds; only we, only they: images that the one spares and the other fells")
    return 0
