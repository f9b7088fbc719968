"""Two runs on the same test images, image by image: what `sat-report --compare` prints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sat.errors import Refused
from sat.evaluation.measure import accuracy
from sat.evaluation.store import damaged, read_file
from sat.report.pages import grid, plain
from sat.rundir.result import RunResult
from sat.statistics import mcnemar, paired

HEAD = ["", "images", "A, %", "B, %", "A - B, points", "only A", "only B", "p"]
LEGEND = """\
Intervals at 95 %: Wilson's, and Newcombe's of the paired difference. only A, only B: images that
one run alone got right; p: McNemar's exact test on these, each line for itself. It tells these two
networks apart, not their configurations: for that, train several seeds of each."""
WHICH_IMAGES = {"limit", "subset_seed"}  # the settings that decide no image's flag
Flags = Mapping[str, Any]  # `indices`, `clean`, `robust`, all [N], and `settings`


def compare(a: Path, b: Path, checkpoint: str) -> str:
    """The comparison as Markdown: clean, and every attack that both were measured with alike.

    Raises Refused where a path is no run, holds no flags or damaged ones, or the images differ.
    """
    facts = [dataset_of(run) for run in (a, b)]
    for key in ("name", "classes", "test", "test_content"):
        if len({one.get(key) for one in facts}) > 1:
            told = ", ".join(str(one.get(key)) for one in facts)
            raise Refused(
                f"{a}, {b}: were measured on other images (dataset {key}: {told}); only the same"
                " images can be compared one by one"
            )
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
            notes.append(f"- {plain(f'{name}: left out, {error}')}")
    runs = f"- A: {plain(str(a))}\n- B: {plain(str(b))}\n- checkpoint: {checkpoint}"
    return "\n\n".join(filter(None, [runs, grid(HEAD, rows), "\n".join(notes), LEGEND]))


def line(name: str, which: str, a: Flags, b: Flags) -> list[str]:
    """One line of the table, of the flags `which`: clean or robust."""
    found = mcnemar(a[which], b[which])
    low, high = (100 * end for end in found["ci95"])
    shares = [accuracy(flags[which]) for flags in (a, b)]
    told = [(100 * s["accuracy"], *(100 * end for end in s["ci95"])) for s in shares]
    difference = f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
    both = (f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in told)
    counts = (f"{found[key]:,}" for key in ("only_a", "only_b"))
    return [name, f"{found['images']:,}", *both, difference, *counts, f"{found['p']:.2g}"]


def dataset_of(run: Path) -> dict[str, Any]:
    """What a run's result tells of its images."""
    if not (run / "config.yaml").is_file():
        raise Refused(f"{run}: is no run; a run's directory has a config.yaml")
    if (result := RunResult.read(run)) is None:
        raise Refused(f"{run}: has no result yet; run it to its end")
    return result.dataset


def flags_of(run: Path, checkpoint: str) -> dict[str, Flags]:
    """The flags files of one checkpoint, by the attack's name, without worst cases over several.
    Raises Refused without any, and for one that has not just one flag for each image."""
    files = sorted((run / "flags").glob(f"{checkpoint}-*.npz"))
    if not files:
        raise Refused(f"{run}: holds no flags of {checkpoint!r}; evaluate it with an attack first")
    found: dict[str, Flags] = {}
    for path in files:
        whole = read_file(path) or {}
        try:
            flags = {key: whole[key] for key in ("indices", "clean", "robust")}
            shapes = {flag.shape for flag in flags.values()}
            kinds = [flag.dtype.kind for flag in flags.values()]
            if shapes != {np.unique(flags["indices"]).shape} or kinds != ["i", "b", "b"]:
                raise ValueError("not one flag for each image")
            if "over" not in dict(settings := whole["settings"]):
                found[path.stem.removeprefix(f"{checkpoint}-")] = {**flags, "settings": settings}
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise Refused(damaged(path, error)) from None
    return found


def clean_of(flags: Mapping[str, Flags]) -> Flags:
    """Clean flags of all images that any attack's file of a run holds."""
    both = [np.concatenate([f[key] for f in flags.values()]) for key in ("indices", "clean")]
    indices, first = np.unique(both[0], return_index=True)
    return {"indices": indices, "clean": both[1][first]}


def alike(name: str, of_a: Mapping[str, Flags], of_b: Mapping[str, Flags]) -> tuple[Flags, Flags]:
    """The flags of an attack on the images that both runs have. Raises ValueError where they were
    not measured alike."""
    if name not in of_a or name not in of_b:
        raise ValueError(f"measured in {'A' if name in of_a else 'B'} alone")
    a, b = of_a[name]["settings"], of_b[name]["settings"]
    if keys := sorted(k for k in {*a, *b} - WHICH_IMAGES if a.get(k) != b.get(k)):
        changed = "; ".join(f"{key}: {a.get(key)}, {b.get(key)}" for key in keys)
        raise ValueError(f"measured with other settings ({changed})")
    return paired(of_a[name], of_b[name])
