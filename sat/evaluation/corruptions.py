"""Accuracy under the corruptions of a published set: the mean over types and severities, which is
what RobustBench's `corruptions` counts (Hendrycks and Dietterich 2019)."""

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat.attacks.outcomes import is_right
from sat.data.batches import indexed
from sat.data.corrupted import SEVERITIES, TYPES, Corrupted, told_apart
from sat.data.fingerprint import of
from sat.data.sets import Split
from sat.distributed import World
from sat.errors import Refused
from sat.evaluation.measure import by_class
from sat.evaluation.store import read_file
from sat.loggers.pictures import plot_heat_map
from sat.loggers.screen import Progress, table
from sat.rundir.checkpoint import write_whole
from sat.rundir.result import CorruptionResult

Flags = tuple[Tensor, Tensor]  # right bool [5, N] at each severity, and labels int64 [5, N]


@dataclass(frozen=True)
class CorruptionStore:
    """Which images a network of the digest `weights` got right, a file for each type in `folder`:
    what a killed evaluation has measured is not measured again."""

    folder: Path
    weights: str

    def read(self, kind: str, images: str) -> Tensor | None:
        """The flags [5, N], if they are of these weights and of images of this digest."""
        found = read_file(self.folder / f"{kind}.npz") or {}
        if found.get("settings") != {"weights": self.weights, "images": images}:
            return None
        return torch.from_numpy(found["right"])

    def write(self, kind: str, images: str, right: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({"weights": self.weights, "images": images})
        content = {"settings": np.array(settings), "right": right.numpy()}
        path = self.folder / f"{kind}.npz"
        write_whole(path, lambda file: np.savez_compressed(file, **content))


def measure(
    model: nn.Module, images: Corrupted, store: CorruptionStore, size: int, world: World, what: str
) -> CorruptionResult:
    """Asks `model`, in eval mode, of every image, by batches of `size`; of several processes each
    takes some of the types. `what` stands beside the progress."""
    began, found = time.monotonic(), dict[str, Flags]()
    own, progress = TYPES[world.own], None
    try:
        for kind in own:
            splits = [images.split(kind, severity, model.mean.device) for severity in SEVERITIES]
            check_counts(images.root / kind, [len(split) for split in splits])
            count = sum(map(len, splits))
            progress = progress or Progress(what, len(own) * count)
            digest = of(*(split.digest() for split in splits))
            right = store.read(kind, digest)
            if right is None:
                right = torch.stack([_right(model, split, size) for split in splits])
                store.write(kind, digest, right)
            found[kind] = right, torch.stack([split.labels for split in splits])
            progress.advance(count)
    finally:
        if progress is not None:
            progress.close()
    flags = {kind: pair for part in world.gather(found) for kind, pair in part.items()}
    return corruption_result(flags, images, round(time.monotonic() - began, 3))


def check_counts(place: Path, counts: list[int]) -> None:
    """Raises Refused where severities have other numbers of images: each counts as much."""
    for severity, count in zip(SEVERITIES, counts, strict=True):
        if count != counts[0]:
            raise Refused(
                f"{place}: has {counts[0]} images of severity 1 and {count} of severity {severity};"
                " put the missing ones in their place"
            )


def _right(model: nn.Module, split: Split, size: int) -> Tensor:
    """Which images of the split are classified right, bool [N] on the CPU."""
    batches = indexed(split, torch.arange(len(split)), size)
    return torch.cat([is_right(model, x, y).cpu() for _, x, y in batches])


def corruption_result(
    flags: Mapping[str, Flags], images: Corrupted, seconds: float
) -> CorruptionResult:
    """The means over the images of each type and severity."""
    types = {kind: flags[kind][0].double().mean(1).tolist() for kind in TYPES}
    counts = {kind: flags[kind][0].shape[1] for kind in TYPES}
    if len({*counts.values()}) > 1:
        fewest = min(counts, key=lambda kind: counts[kind])
        raise Refused(
            f"{images.root}: {fewest} has {counts[fewest]} images, other types"
            f" {max(counts.values())}; put the missing ones in their place"
        )
    right, labels = (torch.cat([pair[k] for pair in flags.values()]) for k in (0, 1))
    return CorruptionResult(
        accuracy=float(np.mean([*types.values()])),
        types=types,
        images=right.shape[1],
        by_class=by_class(right.flatten(), labels.flatten(), images.data.classes),
        seconds=seconds,
        limit=images.limit,
        digest=told_apart(images.root),
    )


def text(label: str, name: str, found: CorruptionResult) -> str:
    """The table of a checkpoint: each type at each severity, and the means, in percent."""
    head = [f"{label}: {name}", *(f"severity {k}" for k in SEVERITIES), "mean"]
    rows = [
        [kind, *(f"{100 * share:.1f}" for share in (*shares, sum(shares) / len(shares)))]
        for kind, shares in found.types.items()
    ]
    means = [sum(column) / len(column) for column in zip(*found.types.values(), strict=True)]
    rows.append(["mean", *(f"{100 * share:.1f}" for share in (*means, found.accuracy))])
    return table(head, rows)


def write(folder: Path, name: str, title: str, found: CorruptionResult) -> Any:
    """`<name>.csv` and `<name>.png` in the folder; returns the figure."""
    folder.mkdir(exist_ok=True)
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow(["corruption", *(f"severity {k}" for k in SEVERITIES)])
    rows.writerows([kind, *(f"{share:.4f}" for share in v)] for kind, v in found.types.items())
    write_whole(folder / f"{name}.csv", lambda file: file.write(lines.getvalue().encode()))
    drawn = figure(title, found)
    write_whole(folder / f"{name}.png", lambda file: drawn.savefig(file, format="png", dpi=120))
    return drawn


def figure(title: str, found: CorruptionResult) -> Any:
    """Types and severities as a heat map."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):
        drawn = Figure(figsize=(6, 5.4), layout="constrained")
        ax = drawn.subplots()
        plot_heat_map(ax, [*found.types.values()], [*found.types], [str(k) for k in SEVERITIES])
        ax.set_xlabel("severity")
        mean = f"mean {100 * found.accuracy:.1f} % of {found.images:,} images each"
        ax.set_title(f"{title}: accuracy in %, {mean}", fontsize=9)
    return drawn
