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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat import load
from sat.acceleration.precision import float32
from sat.attacks import PGD, FastAutoAttack
from sat.attacks.outcomes import STANDS
from sat.config import check
from sat.data import evaluation_batches
from sat.evaluation.store import digest_of
from sat.loggers.screen import table
from sat.rng import RowRng, seed_of
from sat.rundir.untrusted import read_yaml

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")  # the standard version, in its order


def images_of(run: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first test images of the run's dataset, and their labels, on the CPU."""
    spec = check(read_yaml(run / "config.yaml"))
    data = spec.dataset(torch.device("cpu"), spec.seed)
    batches = evaluation_batches(data.test_subset(count), 512)
    parts = list(data.test.stream(batches))
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


def read(kept: Path) -> dict[str, Any]:
    """What `theirs` has kept so far."""
    parts = np.load(kept, allow_pickle=False)
    return {"verdicts": torch.from_numpy(parts["verdicts"]), "seconds": parts["seconds"]}


def theirs(model: nn.Module, x: Tensor, y: Tensor, args: Any, kept: Path) -> dict[str, Any]:
    """pyautoattack's standard version, attack by attack: who fell to which (-1: nobody)."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2"}[args.norm]
    auto = AutoAttack(model, norm=norm, eps=args.eps / 255, version="standard", seed=args.seed)
    if kept.is_file():
        verdicts, seconds = read(kept).values()
    else:
        verdicts = torch.where(right(model, x, y), -1, len(ATTACKS)).to(torch.int8)
        seconds = np.zeros((0, 2))
    for k, attack in list(enumerate(ATTACKS))[len(seconds) :]:
        auto.attacks_to_run = [attack]
        left = (verdicts == -1).nonzero()[:, 0]
        spent = np.zeros(2)
        if len(left):
            run = lambda a=x[left], b=y[left]: auto.run_standard_evaluation(  # noqa: E731
                a, b, batch_size=args.batch_size
            )
            (x_adv, _), spent = timed(run)
            verdicts[left[~right(model, x_adv, y[left])]] = k
        seconds = np.vstack([seconds, spent])
        np.savez(kept, verdicts=verdicts.numpy(), seconds=seconds)
        print(f"{kept.stem}: {attack}: {(verdicts == -1).sum()} left, {spent[0]:.0f} s", flush=True)
    return {"verdicts": verdicts, "seconds": seconds}


def ours(model: nn.Module, x: Tensor, y: Tensor, args: Any) -> dict[str, Any]:
    """The same by `Strong`, which keeps no state: its times are of this call."""
    attack = FastAutoAttack(args.eps, args.norm, ATTACKS, args.batch_size)
    rng = RowRng(seed_of(args.seed, "agreement"), torch.arange(len(x)))
    verdicts, seconds = timed(lambda: attack.verdicts(model, x, y, rng))
    return {"verdicts": verdicts, "seconds": seconds[None]}


def both(model: nn.Module, x: Tensor, y: Tensor, args: Any, kept: Path) -> tuple[dict, dict]:
    """Ours before and after theirs, with the mean of its two times; then theirs."""
    first = ours(model, x, y, args)
    other = theirs(model, x, y, args, kept)
    second = ours(model, x, y, args)
    assert torch.equal(first["verdicts"], second["verdicts"])
    return {**first, "seconds": (first["seconds"] + second["seconds"]) / 2}, other


def pgd(model: nn.Module, x: Tensor, y: Tensor, args: Any) -> tuple[dict, dict]:
    """PGD of `args.pgd` steps by us and by torchattacks: verdicts, and times of batch after batch
    in turn."""
    from torchattacks import PGD as Theirs
    from torchattacks import PGDL2

    attack = PGD(args.eps, args.pgd, norm=args.norm)
    eps, step = args.eps / 255, attack.step_size / 255
    peer = {"linf": Theirs, "l2": PGDL2}[args.norm](model, eps, step, args.pgd)
    rng = RowRng(seed_of(args.seed, "agreement"), torch.arange(len(x)))
    torch.manual_seed(args.seed)
    found, seconds = {0: [], 1: []}, np.zeros((2, 2))
    for rows in torch.arange(len(x)).split(args.batch_size):
        a, b = x[rows], y[rows]
        calls = (
            lambda a=a, b=b, r=rows: attack(model, a, b, rng[r]),
            lambda a=a, b=b: peer(a, b),
        )
        for k, call in enumerate(calls):
            x_adv, spent = timed(call)
            seconds[k] += spent
            found[k].append(torch.where(right(model, x_adv, b) & right(model, a, b), -1, 0))
    mine, other = ({"verdicts": torch.cat(found[k]), "seconds": seconds[k][None]} for k in (0, 1))
    return mine, other


def compare(name: str, mine: dict[str, Any], other: dict[str, Any], clean: Tensor) -> dict:
    """Robust accuracies, disagreements in both directions, times."""
    stands, theirs_stands = mine["verdicts"] == STANDS, other["verdicts"] == STANDS
    wall, cpu = mine["seconds"].sum(0)
    their_wall, their_cpu = other["seconds"].sum(0)
    return {
        "run": name,
        "images": len(clean),
        "clean": clean.float().mean().item(),
        "ours": stands.float().mean().item(),
        "theirs": theirs_stands.float().mean().item(),
        "only_ours_stands": int((stands & ~theirs_stands).sum()),
        "only_theirs_stands": int((theirs_stands & ~stands).sum()),
        "felled_by_ours": [int((mine["verdicts"] == k).sum()) for k in range(len(ATTACKS))],
        "felled_by_theirs": [int((other["verdicts"] == k).sum()) for k in range(len(ATTACKS))],
        "seconds": {"ours": wall, "theirs": their_wall, "ratio": their_wall / wall},
        "processor_seconds": {"ours": cpu, "theirs": their_cpu, "ratio": their_cpu / cpu},
    }


def line(row: dict[str, Any]) -> list[str]:
    shares = [f"{100 * row[key]:.1f} %" for key in ("clean", "ours", "theirs")]
    counts = [str(row[key]) for key in ("only_ours_stands", "only_theirs_stands")]
    cost = row["processor_seconds"]
    times = [f"{cost['ours']:.0f} s", f"{cost['theirs']:.0f} s", f"{cost['ratio']:.1f}"]
    return [row["run"], str(row["images"]), *shares, *counts, *times]


HEAD = ["run", "images", "clean", "ours", "theirs", "only we spare", "only they", "our processor",
        "theirs", "ratio"]  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=8.0, help="in 1/255")
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--theirs", type=Path, default=Path("agreement"), help="where theirs is")
    parser.add_argument("--pgd", type=int, help="steps of PGD, against torchattacks")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    rows = []
    for run in args.runs:
        model, (x, y) = load(run), images_of(run, args.images)
        name = run.resolve().name
        if args.pgd:
            mine, other = pgd(model, x, y, args)
        else:
            args.theirs.mkdir(parents=True, exist_ok=True)
            of = f"{digest_of(model.state_dict())}-{args.norm}{args.eps:g}"
            kept = args.theirs / f"{name}-{of}-b{args.batch_size}s{args.seed}-{len(x)}.npz"
            with float32(model):
                mine, other = both(model, x, y, args, kept)
        rows.append(compare(name, mine, other, right(model, x, y)))
        print(table(HEAD, [line(row) for row in rows]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    print("processor seconds; only we, only they: images that the one spares and the other fells")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # no run, or none that can be read
        sys.exit(f"! {error}")
