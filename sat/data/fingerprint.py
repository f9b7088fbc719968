"""What tells image sets apart, and a run from another."""

import hashlib
from typing import Any

from sat.data.sets import Data
from sat.errors import Refused


def facts_of(data: Data) -> dict[str, Any]:
    """What tells two image sets of the same name apart."""
    splits = {name: getattr(data, name) for name in ("train", "held_out", "test")}
    names = hashlib.sha256("\n".join(data.classes).encode())
    digest, test = names, names.copy()
    for name, split in splits.items():
        for told in (digest, test) if name == "test" else (digest,):
            told.update(split.labels.numpy().tobytes())
            told.update(split.sample())
    counts = {name: len(split) for name, split in splits.items()}
    facts = {"name": data.name, "classes": len(data.classes), **counts}
    return {**facts, "content": digest.hexdigest()[:8], "test_content": test.hexdigest()[:8]}


def same_facts(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Refused when a run's config or images are not those it was begun with."""
    if before.get("hash") != now["hash"]:
        raise Refused(
            f"checkpoint: was made by another config ({before.get('hash')} instead of"
            f" {now['hash']}); move it away, or start over with record.fresh=true"
        )
    for key, value in now["dataset"].items():
        if (was := before["dataset"].get(key, value)) != value:
            raise Refused(
                f"dataset.name={now['dataset']['name']}: the run of this name was begun with other"
                f" images ({key}: {was}, now {value}); give this set another dataset.name"
            )
