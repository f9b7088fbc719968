"""What was measured of each test image, on disk: all of it, or as far as a kill let it come."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sat.attacks.outcomes import STANDS, WRONG, AttackOutcomes
from sat.errors import Refused
from sat.identity import deciding
from sat.rundir import checkpoint

LARGEST = 2**30  # bytes; a million images have about 12 million


class OutcomeStore:
    """The flags in a run's directory, of the test images `indices` [N] of a set whose test images
    have the digest `images`. Each file holds the settings of its attack and a digest of the weights
    that it was measured on; what was measured otherwise is never taken for it."""

    def __init__(self, folder: Path, indices: Tensor, images: str):
        self.folder, self.indices, self.images = folder, indices, images

    def read(
        self, name: str, settings: Mapping[str, Any], weights: str | None
    ) -> AttackOutcomes | None:
        """The flags under that name; None where there are none, `weights` None for any.

        Raises Refused when they are of other settings, weights or images, or damaged.
        """
        path = self.folder / f"{name}.npz"
        if (found := read_file(path)) is None:
            return None
        if changed := changes(found["settings"], settings):
            raise Refused(taken(name, changed))
        for key, now in (("weights", weights), ("images", self.images)):
            if now is not None and str(found.get(key, now)) != now:
                raise Refused(
                    f"{path}: was measured on other {key} than the run has now; move it away to"
                    " measure again"
                )
        if (larger := self._larger(name, found)) is None:
            return None
        return self._outcomes(path, found, larger)

    def _larger(self, name: str, found: Mapping[str, Any]) -> np.ndarray | None:
        """Where the images of this evaluation stand among those of a file [N]; None where this
        evaluation has all of them and more, and takes their place. Raises Refused for others."""
        now, before = self.indices.numpy(), found.get("indices")
        if not isinstance(before, np.ndarray) or before.ndim != 1:
            return np.arange(len(now))  # damaged; `_tally` says so
        if np.isin(now, before).all():
            return np.flatnonzero(np.isin(before, now))
        if np.isin(before, now).all():
            return None
        raise Refused(taken(name, ["limit or subset_seed"]))

    def write(
        self, name: str, settings: Mapping[str, Any], weights: str, outcomes: AttackOutcomes
    ) -> None:
        """Keeps complete flags."""
        self._write(self.folder / f"{name}.npz", settings, weights, outcomes)
        for path in self._partials(name, settings, weights):
            path.unlink()
        with suppress(OSError):  # others lie there, or it never was
            (self.folder / "partial").rmdir()

    def write_partial(
        self,
        name: str,
        settings: Mapping[str, Any],
        weights: str,
        outcomes: AttackOutcomes,
        process: int,
    ) -> None:
        """Keeps flags as far as they came, in that process of the measurement."""
        path = self._place(name, settings, weights, process)
        self._write(path, settings, weights, outcomes)

    def _write(
        self, path: Path, settings: Mapping[str, Any], weights: str, outcomes: AttackOutcomes
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": np.array(json.dumps(settings, sort_keys=True)),
            "weights": np.array(weights), "images": np.array(self.images),
            "indices": self.indices.numpy(), "attacks": np.array(outcomes.names),
            "clean": outcomes.clean.numpy(), "robust": outcomes.robust.numpy(),
            "fell": outcomes.fell.numpy(), "passed": outcomes.passed.numpy(),
            "attack_seconds": outcomes.seconds.numpy(), "seconds": float(outcomes.seconds.sum()),
        }  # fmt: skip
        checkpoint.write_whole(path, lambda file: np.savez_compressed(file, **content))

    def read_partial(
        self, name: str, settings: Mapping[str, Any], weights: str
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """What a killed measurement of just this left, all its processes together, who need be as
        many no longer: `fell`, `passed` and `seconds` of a AttackOutcomes."""
        whole = None
        for path in self._partials(name, settings, weights):
            outcomes = self._outcomes(path, read_file(path), np.arange(len(self.indices)))
            whole = outcomes if whole is None else whole.joined(outcomes)
        if whole is None:
            return None
        self.write_partial(name, settings, weights, whole, process=0)
        for path in self._partials(name, settings, weights)[1:]:
            path.unlink()
        return whole.fell, whole.passed, whole.seconds

    def _partials(self, name: str, settings: Mapping[str, Any], weights: str) -> list[Path]:
        first = self._place(name, settings, weights, process=0)
        return sorted(first.parent.glob(f"{first.stem}*.npz"), key=lambda path: len(path.name))

    def _place(self, name: str, settings: Mapping[str, Any], weights: str, process: int) -> Path:
        text = json.dumps([deciding(settings), weights, self.images], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        of = f".{process}" * (process > 0)
        return self.folder / "partial" / f"{name}-{digest}{of}.npz"

    def _outcomes(self, path: Path, found: Mapping[str, Any], rows: np.ndarray) -> AttackOutcomes:
        """The tally in a file, of its images `rows`; flags of earlier versions, without `fell`, are
        of one attack. Raises Refused where it is damaged."""
        try:
            images = len(found["indices"])
            if "fell" in found:
                outcomes = AttackOutcomes(
                    tuple(str(name) for name in found["attacks"]),
                    *(torch.from_numpy(found[key]) for key in ("fell", "passed", "attack_seconds")),
                )
            else:
                clean, robust = (torch.from_numpy(found[key]) for key in ("clean", "robust"))
                fell = torch.where(robust, STANDS, torch.where(clean, 0, WRONG)).to(torch.int8)
                seconds = torch.tensor([float(found["seconds"])], dtype=torch.float64)
                outcomes = AttackOutcomes(("restart 1",), fell, robust.to(torch.int8), seconds)
            shapes = [outcomes.fell.shape, outcomes.passed.shape, outcomes.seconds.shape]
            whole = shapes == [(images,), (images,), (len(outcomes.names),)]
            kinds = (outcomes.fell.dtype, outcomes.passed.dtype) == (torch.int8, torch.int8)
            indices = np.array_equal(found["indices"][rows], self.indices.numpy())
            values = WRONG <= int(outcomes.fell.min()) and int(outcomes.fell.max()) < len(
                outcomes.names
            )
            if not (whole and kinds and indices and values):
                raise ValueError("not one verdict for each image")
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise Refused(damaged(path, error)) from None
        chosen = torch.from_numpy(rows)
        return AttackOutcomes(
            outcomes.names, outcomes.fell[chosen], outcomes.passed[chosen], outcomes.seconds
        )


def read_file(path: Path) -> dict[str, Any] | None:
    """The arrays of a flags file, its settings as a dict; None where there is none.

    Raises Refused where it is damaged.
    """
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
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
    return f"{path}: is damaged ({error}); move it away to measure again"


def taken(name: str, changed: list[str]) -> str:
    """The refusal of settings that are not those of the flags `<checkpoint>-<attack>`."""
    return (
        f"evaluation.attacks: {name.split('-', 1)[1]!r} was measured in this run with other"
        f" settings ({', '.join(changed)}); give the new one another name"
    )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The deciding settings that differ, but for those that only choose images."""
    before, now = deciding(before), deciding(now)
    keys = {*before, *now} - {"limit", "subset_seed"}
    return sorted(key for key in keys if before.get(key) != now.get(key))


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Eight hex digits of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:8]
