"""Our verdict against AutoAttack's own, on the same images, with the same threads and batch size:

    python scripts/agreement.py outputs/RUN... --images 1000 --threads 1 --json agreement.json

Needs `pip install pyautoattack`. Their part takes hours on a CPU: its flags and times are kept in
the folder `--theirs` after each attack, so that a second call goes on from there.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from sat import load
from sat.config import check
from sat.console import table
from sat.data import evaluation_batches

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")  # the standard version, in its order


def images_of(run: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first test images of the run's dataset, and their labels, on the CPU."""
    spec = check(yaml.safe_load((run / "config.yaml").read_text()))
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


def theirs(model: nn.Module, x: Tensor, y: Tensor, args: Any, kept: Path) -> dict[str, Any]:
    """pyautoattack's standard version, attack by attack: who fell to which (-1: nobody)."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2"}[args.norm]
    auto = AutoAttack(model, norm=norm, eps=args.eps / 255, version="standard", seed=args.seed)
    if kept.is_file():
        verdicts, seconds = (torch.from_numpy(part) for part in np.load(kept).values())
        seconds = seconds.numpy()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=8.0, help="in 1/255")
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--theirs", type=Path, default=Path("agreement"))
    args = parser.parse_args()
    args.theirs.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        x, y = images_of(run, args.images)
        kept = args.theirs / f"{run.resolve().name}-{args.norm}{args.eps:g}-{args.images}.npz"
        theirs(load(run), x, y, args, kept)


if __name__ == "__main__":
    main()
