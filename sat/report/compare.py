"""Two runs on the same test images, image by image: what `sat-report --compare` prints."""

from pathlib import Path
from typing import Any

import numpy as np

from sat.errors import Refused
from sat.evaluation.measure import accuracy
from sat.evaluation.store import damaged, read_file
from sat.loggers.screen import percent, table
from sat.rundir.result import RunResult
from sat.statistics import mcnemar, paired

HEAD = ["", "images", "A", "B", "A - B in points", "only A", "only B", "p"]
LEGEND = """\
Intervals at 95 %: Wilson's, and Newcombe's of the paired difference. only A, only B: images that
one run alone got right; p: McNemar's exact test on these, each line for itself. It tells these two
networks apart, not their configurations: for that, train several seeds of each."""
WHICH_IMAGES = {"limit", "subset_seed"}  # the settings that decide no image's flag


def compare(a: Path, b: Path, checkpoint: str) -> str:
    """The table, clean and for every attack that both runs were measured with alike.

    Raises Refused where a path is no run, holds no flags or damaged ones, or the images differ.
    """
    same_images(a, b)
    of_a, of_b = flags_of(a, checkpoint), flags_of(b, checkpoint)
    try:
        rows = [line("clean", "clean", *paired(clean_of(of_a), clean_of(of_b)))]
    except ValueError:
        raise Refused(f"{a}, {b}: no test image was measured in both") from None
    notes = []
    for name in sorted({*of_a, *of_b}):
        try:
            rows.append(line(name, "robust", *alike(name, of_a, of_b)))
        except ValueError as error:
            notes.append(f"{name}: left out, {error}")
    runs = f"A: {a}\nB: {b}\ncheckpoint: {checkpoint}\n"
    return "\n".join([runs, table(HEAD, rows), "", *notes, LEGEND])


def line(name: str, which: str, a: Any, b: Any) -> list[str]:
    """One line of the table, of the flags `which`: clean or robust."""
    found = mcnemar(a[which], b[which])
    low, high = found["ci95"]
    difference = f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    both = (percent(accuracy(flags[which])) for flags in (a, b))
    counts = (f"{found[key]:,}" for key in ("only_a", "only_b"))
    return [name, f"{found['images']:,}", *both, difference, *counts, f"{found['p']:.2g}"]


def same_images(a: Path, b: Path) -> None:
    """Raises Refused where the runs were not measured on the same test set."""
    facts_a, facts_b = (dataset_of(run) for run in (a, b))
    for key in ("name", "classes", "test", "test_content"):
        if facts_a.get(key) != facts_b.get(key):
            raise Refused(
                f"{a}, {b}: were measured on other images (dataset {key}: {facts_a.get(key)},"
                f" {facts_b.get(key)}); only the same images can be compared one by one"
            )


def dataset_of(run: Path) -> dict[str, Any]:
    """What a run's result tells of its images."""
    if not (run / "config.yaml").is_file():
        raise Refused(f"{run}: is no run; a run's directory has a config.yaml")
    if (result := RunResult.read(run)) is None:
        raise Refused(f"{run}: has no result yet; run it to its end")
    return result.dataset


def flags_of(run: Path, checkpoint: str) -> dict[str, dict[str, Any]]:
    """The flags files of one checkpoint, by the attack's name. Raises Refused without any."""
    files = sorted((run / "flags").glob(f"{checkpoint}-*.npz"))
    if not files:
        raise Refused(f"{run}: holds no flags of {checkpoint!r}; evaluate it with an attack first")
    found = {path.stem.removeprefix(f"{checkpoint}-"): read_flags(path) for path in files}
    return {name: flags for name, flags in found.items() if "over" not in flags["settings"]}


def read_flags(path: Path) -> dict[str, Any]:
    """A file of outcomes. Raises Refused for one without just one flag for each image."""
    found = read_file(path) or {}
    try:
        flags = {key: found[key] for key in ("indices", "clean", "robust", "settings")}
        shapes = {flags[key].shape for key in ("indices", "clean", "robust")}
        kinds = [flags[key].dtype.kind for key in ("indices", "clean", "robust")]
        if shapes != {np.unique(flags["indices"]).shape} or kinds != ["i", "b", "b"]:
            raise ValueError("not one flag for each image")
    except (KeyError, AttributeError, ValueError) as error:
        raise Refused(damaged(path, error)) from None
    return flags


def clean_of(flags: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Clean flags of all images that any attack's file of a run holds."""
    indices = np.concatenate([file["indices"] for file in flags.values()])
    clean = np.concatenate([file["clean"] for file in flags.values()])
    indices, first = np.unique(indices, return_index=True)
    return {"indices": indices, "clean": clean[first]}


def alike(name: str, of_a: dict[str, Any], of_b: dict[str, Any]) -> tuple[Any, Any]:
    """The flags of an attack on the images that both runs have. Raises ValueError where they were
    not measured alike."""
    if name not in of_a or name not in of_b:
        raise ValueError(f"measured in {'A' if name in of_a else 'B'} alone")
    a, b = of_a[name]["settings"], of_b[name]["settings"]
    if keys := sorted(k for k in {*a, *b} - WHICH_IMAGES if a.get(k) != b.get(k)):
        changed = "; ".join(f"{key}: {a.get(key)}, {b.get(key)}" for key in keys)
        raise ValueError(f"measured with other settings ({changed})")
    return paired(of_a[name], of_b[name])
