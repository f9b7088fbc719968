"""What was measured of each test image, on disk: all of it, or as far as a kill let it come."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sat.attacks.outcomes import WRONG, AttackOutcomes
from sat.errors import Refused
from sat.identity import Settings
from sat.rundir.checkpoint import write_whole
from sat.rundir.files import regular
from sat.rundir.result import CHECKPOINTS

OF_EVALUATION = {"attack", "restarts", "limit", "subset_seed", "search"}  # beside an attack's own
LARGEST = 2**30  # bytes; a million images have about 12 million


@dataclass(frozen=True)
class Measurement:
    """What outcomes are of: a checkpoint under an attack or a curve, with all of its settings;
    `weights` is a digest of what was measured."""

    checkpoint: str
    attack: str
    settings: Settings
    weights: str


class OutcomeStore:
    """The outcomes in a run's directory, `<checkpoint>-<attack>.npz`: of the test images `indices`
    [N] of a set whose test images have the digest `images`. What was measured with other settings
    or on other weights or images is never taken for them."""

    def __init__(self, folder: Path, indices: Tensor, images: str):
        self.folder, self.indices, self.images = folder, indices, images

    def read(self, of: Measurement) -> AttackOutcomes | None:
        """The outcomes, or those of another checkpoint with the same weights; None where there are
        none. Raises Refused when its own are of something else, or damaged."""
        path = self.folder / f"{of.checkpoint}-{of.attack}.npz"
        if (found := read_file(path)) is None:
            path, found = self._of_same_weights(of)
        if found is None:
            return None
        if changed := changes(found["settings"], of.settings):
            raise Refused(taken(of.attack, changed, of.settings))
        for key, now in (("weights", of.weights), ("images", self.images)):
            if str(found.get(key)) != now:
                raise Refused(
                    f"{path}: was measured on other {key} than the run has now; move it away to"
                    " measure again"
                )
        rows = self._rows(of, found)
        return None if rows is None else self._outcomes(path, found, rows)

    def _of_same_weights(self, of: Measurement) -> tuple[Path, dict[str, Any] | None]:
        for path in (self.folder / f"{which}-{of.attack}.npz" for which in CHECKPOINTS):
            with suppress(Refused):  # damaged, and not asked for
                found = read_file(path)
                if found is not None and str(found.get("weights")) == of.weights:
                    return path, found
        return path, None

    def _rows(self, of: Measurement, found: Mapping[str, Any]) -> np.ndarray | None:
        """Where the images of this evaluation stand among those of a file [N]; None where this
        evaluation has all of them and more, and takes their place. Raises Refused for others."""
        now, before = self.indices.numpy(), found.get("indices")
        if not isinstance(before, np.ndarray) or before.ndim != 1:
            return np.arange(len(now))  # damaged; `_outcomes` says so
        if np.isin(now, before).all():
            return np.flatnonzero(np.isin(before, now))
        if np.isin(before, now).all():
            return None
        raise Refused(taken(of.attack, ["limit or subset_seed"], of.settings))

    def holds(self, of: Measurement) -> bool:
        """Whether the checkpoint has a file of its own, and not only another of its weights."""
        return (self.folder / f"{of.checkpoint}-{of.attack}.npz").exists()

    def write(self, of: Measurement, outcomes: AttackOutcomes) -> None:
        """Keeps complete outcomes."""
        self._write(self.folder / f"{of.checkpoint}-{of.attack}.npz", of, outcomes)
        for path in self._partials(of):
            path.unlink()
        with suppress(OSError):  # others lie there, or it never was
            (self.folder / "partial").rmdir()

    def write_partial(self, of: Measurement, outcomes: AttackOutcomes, process: int) -> None:
        """Keeps outcomes as far as they came, in that process of the measurement."""
        self._write(self._partial(of, process), of, outcomes)

    def _write(self, path: Path, of: Measurement, outcomes: AttackOutcomes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": np.array(json.dumps(of.settings, sort_keys=True)),
            "weights": np.array(of.weights), "images": np.array(self.images),
            "indices": self.indices.numpy(), "attacks": np.array(outcomes.names),
            "clean": outcomes.clean.numpy(), "robust": outcomes.robust.numpy(),
            "fell": outcomes.fell.numpy(), "passed": outcomes.passed.numpy(),
            "tied": outcomes.tied.numpy(), "attack_seconds": outcomes.seconds.numpy(),
            "seconds": float(outcomes.seconds.sum()),
        }  # fmt: skip
        write_whole(path, lambda file: np.savez_compressed(file, **content))

    def read_partial(self, of: Measurement) -> dict[str, Tensor] | None:
        """What a killed measurement of just this left, all its processes together, who need be as
        many no longer: `fell`, `passed`, `tied` and `seconds` of its outcomes."""
        if not (paths := self._partials(of)):
            return None
        rows, parts = np.arange(len(self.indices)), []
        for path in paths:
            found = read_file(path) or {}
            if changes(found.get("settings", {}), of.settings):  # a default has moved since
                path.unlink()
            else:
                parts.append(self._outcomes(path, found, rows))
        if not parts:
            return None
        whole = reduce(AttackOutcomes.joined, parts)
        self.write_partial(of, whole, process=0)
        for path in paths:  # the first process may have had none
            if path != self._partial(of, process=0):
                path.unlink(missing_ok=True)
        return {key: getattr(whole, key) for key in ("fell", "passed", "seconds", "tied")}

    def _partials(self, of: Measurement) -> list[Path]:
        first = self._partial(of, process=0)
        return sorted(first.parent.glob(f"{first.stem}*.npz"), key=lambda path: len(path.name))

    def _partial(self, of: Measurement, process: int) -> Path:
        text = json.dumps([of.settings.difference(), of.weights, self.images], sort_keys=True)
        name = f"{of.checkpoint}-{of.attack}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return self.folder / "partial" / (name + f".{process}" * (process > 0) + ".npz")

    def _outcomes(self, path: Path, found: Mapping[str, Any], rows: np.ndarray) -> AttackOutcomes:
        """The outcomes in a file, of its images `rows`. Raises Refused where it is damaged."""
        names, (fell, passed, tied, seconds) = outcomes_in(path, found)
        there = found["indices"]
        known = rows.max(initial=-1) < len(there)
        if not known or not np.array_equal(there[rows], self.indices.numpy()):
            raise Refused(damaged(path, ValueError("not one verdict for each image")))
        chosen = torch.from_numpy(rows)
        return AttackOutcomes(names, fell[chosen], passed[chosen], seconds, tied=tied[chosen])


def outcomes_in(path: Path, found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Tensor]]:
    """The attacks of a file of outcomes, and `fell`, `passed`, `tied` [N] and `seconds`. Raises
    Refused where it is damaged."""
    try:
        images, names = len(found["indices"]), tuple(str(name) for name in found["attacks"])
        arrays = [found[key] for key in ("fell", "passed", "tied", "attack_seconds")]
        kept = [torch.from_numpy(array) for array in arrays]
        whole = [t.shape for t in kept] == [(images,)] * 3 + [(len(names),)]
        kinds = [t.dtype for t in kept[:3]] == [torch.int16, torch.int16, torch.bool]
        kinds = kinds and found["indices"].dtype.kind == "i" and found["indices"].ndim == 1
        values = WRONG <= int(kept[0].min()) and int(kept[0].max()) < len(names)
        if not (whole and kinds and values):
            raise ValueError("not one verdict for each image")
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise Refused(damaged(path, error)) from None
    return names, kept


def read_file(path: Path) -> dict[str, Any] | None:
    """The arrays of a file of outcomes, its settings as a dict; None where there is none.

    Raises Refused where it is damaged.
    """
    if not path.exists():
        return None
    try:
        with (
            open(path, "rb", opener=regular) as opened,
            np.load(opened, allow_pickle=False) as file,
        ):
            if sum(member.file_size for member in file.zip.infolist()) > LARGEST:
                raise ValueError("unfolds to more than 1 GB")
            content = {key: file[key] for key in file.files}
            content["settings"] = json.loads(str(content["settings"]))
            if not isinstance(content["settings"], dict):
                raise ValueError("settings are no settings")
            return content
    except Exception as error:  # zipfile, NumPy and json each have their own
        raise Refused(damaged(path, error)) from None


def damaged(path: Path, error: Exception) -> str:
    return f"{path}: is damaged ({why(error)}); move it away to measure again"


def why(error: Exception) -> str:
    """Why an archive of arrays can't be read."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    # NumPy advises to load it
    return "it holds objects, or is no archive of arrays" if "pickle" in reason else reason


def taken(attack: str, changed: list[str], now: Settings) -> str:
    """The refusal of settings that are not those that the run has of an attack of this name, with
    the words that add one of the attacks here under a name that is free."""
    told = [key for key in now if key in {*now.difference(), *changed} - OF_EVALUATION]
    plain = not any(isinstance(now[key], dict) for key in ("attack", *told))
    words = ""
    if plain and {*changed} <= {*told} and "eps" in now and ":" not in now["attack"]:
        size = f"{now.get('eps') or 0:g}".replace(".", "_")  # a dot would be a key within a key
        name = f"{attack}_{size}" if "eps" in changed else f"{attack}_2"
        own = "".join(f", {key}: {json.dumps(now[key])}" for key in told)
        words = f": '+evaluation.attacks.{name}={{_target_: sat.attacks.{now['attack']}{own}}}'"
    return (
        f"evaluation.attacks: {attack!r} was measured in this run with other settings"
        f" ({', '.join(changed)}); leave it as it was, and give the new one another name{words}"
    )


def changes(before: Mapping[str, Any], now: Settings) -> list[str]:
    """The deciding settings that differ, but for those that only choose images."""
    return sorted({*now.changes(before)} - {"limit", "subset_seed"})


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Eight hex digits of the tensors of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(key for key, value in weights.items() if isinstance(value, Tensor)):
        value = weights[key].detach().cpu()
        value = value if value.layout is torch.strided else value.to_dense()
        digest.update(key.encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:8]
