"""Whether two runs are equal to the bit, times apart."""

import json
from pathlib import Path
from typing import Any

TIMES = {"seconds", "train/images_per_second", "wall_seconds", "images_per_second"}
# Who measured it, and when; the overrides are the same command's, or a sweep's.
ABOUT = TIMES | {"environment", "lengths", "checksum", "overrides"}


def differences(one: Path, two: Path) -> list[str]:
    """What tells two runs apart: weights, metrics, TensorBoard, flags, result; times apart."""
    pairs: list[tuple[str, Any, Any]] = []
    names = ["checkpoints/*.pt", "flags/*.npz", "*.json", "*.jsonl", "**/.*.tmp"]
    files = [{str(p.relative_to(r)) for name in names for p in r.glob(name)} for r in (one, two)]
    # A kill between the result and the end leaves the checkpoint before the last.
    files = [found - {"checkpoints/previous.pt"} for found in files]
    pairs.append(("files", *map(sorted, files)))
    readers = {".pt": tensors, ".npz": arrays, ".json": result, ".jsonl": rows}
    for name in sorted(files[0] & files[1]):
        read = readers[Path(name).suffix]
        pairs.append((name, read(one / name), read(two / name)))
    pairs.append(("TensorBoard", curves(one), curves(two)))
    found = [f"{name} differs" for name, a, b in pairs if a != b]
    for run in (one, two):
        steps = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
        found += [f"{run}: a step twice"] * (steps != sorted(set(steps)))
    return found


def tensors(path: Path) -> Any:
    """Weights, average and optimiser of a checkpoint, to the bit."""
    import torch

    def bits(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            tree = tree.contiguous().view(-1)
            return str(tree.dtype), tree.view(torch.uint8).numpy().tobytes()
        if isinstance(tree, dict):
            return {key: bits(value) for key, value in tree.items() if key not in ABOUT}
        return [bits(item) for item in tree] if isinstance(tree, list | tuple) else tree

    return bits(torch.load(path, map_location="cpu", weights_only=True))


def arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        return {key: file[key].tolist() for key in file.files if "seconds" not in key}


def result(path: Path) -> Any:
    return timeless(json.loads(path.read_text()))


def rows(path: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in ABOUT}
    return [timeless(item) for item in tree] if isinstance(tree, list) else tree


def curves(run: Path) -> dict[str, Any]:
    """Every point of every tag, by step: (step, value), of texts and images the step alone; two
    writers share a folder, and whose come first is no promise."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    events = EventAccumulator(str(run), everything, purge_orphaned_data=False).Reload()
    tags = events.Tags()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    points |= {tag: [e.step for e in events.Images(tag)] for tag in tags["images"]}
    points |= {tag: [e.step for e in events.Tensors(tag)] for tag in tags["tensors"]}
    return {tag: sorted(found) for tag, found in points.items() if tag not in TIMES}
