"""What tells one set of images from another, though it lies at the same place: checksums.

Of images in memory all pixels and labels count. Of files all names, labels and sizes do, and the
contents of 1,000 at most, spread over the set: so much is read of ImageNet in seconds.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat.data.sets import Data
from sat.errors import Refused

log = logging.getLogger("sat")
READ = 1000  # files whose contents are read
WHOLE = 2**26  # bytes of a file up to which all of it is read; of a larger one BLOCKS are
BLOCKS, BLOCK = 256, 2**16


def of(*parts: Any) -> str:
    """Sixteen hex digits of texts, numbers and tensors, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        content, kind = str(part).encode(errors="surrogateescape"), type(part).__name__
        if isinstance(part, Tensor):
            content = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            kind = f"{part.dtype}{list(part.shape)}"
        digest.update(f"{kind}:{len(content)}:".encode())  # "ab", "c" is not "a", "bc"
        digest.update(content)
    return digest.hexdigest()[:16]


def of_files(folder: str | Path, names: Sequence[bytes]) -> str:
    """The fingerprint of the files of these names below `folder`, in their order; of what can't be
    opened by its name, for who reads it will tell."""
    digest, step = hashlib.sha256(), max(1, -(-len(names) // READ))
    place = os.fsencode(folder)
    for number, name in enumerate(names):
        path = os.path.join(place, name)
        digest.update(b"%d:%s" % (len(name), name))
        with suppress(OSError):
            at = os.stat(path)
            digest.update(b"%d:" % at.st_size)
            if number % step == 0 and stat.S_ISREG(at.st_mode):
                digest.update(_content(path, at.st_size))
    if step > 1 and place not in _said:
        _said.add(place)
        read = f"{len(names):,} images by names and sizes and the contents of {READ:,} at most"
        log.info("%s: recognised by its %s; a change of other pixels goes unnoticed", folder, read)
    return digest.hexdigest()[:16]


_said: set[bytes] = set()


def _content(path: bytes, size: int) -> bytes:
    with open(path, "rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256()
        for block in range(BLOCKS):
            file.seek(block * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
        return digest.digest()


_known: dict[str, tuple[tuple[int, ...], str]] = {}


def remembered(path: str | Path, make: Callable[[], str]) -> str:
    """What `make` finds in a file, for as long as nobody writes to it: a sweep asks often."""
    try:
        at = os.stat(path)
    except OSError:
        return make()
    now = (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    if _known.get(str(path), ((), ""))[0] != now:
        _known[str(path)] = now, make()
    return _known[str(path)][1]


def facts_of(data: Data) -> dict[str, Any]:
    """What tells two image sets of the same name apart: which classes there are, which images are
    trained on, held out and tested, and what is in them."""
    splits = {name: getattr(data, name) for name in ("train", "held_out", "test")}
    digests = {name: split.digest() for name, split in splits.items()}
    facts = {"name": data.name, "classes": len(data.classes)}
    facts |= {name: len(split) for name, split in splits.items()}
    content = of(*data.classes, *digests.values())
    return {**facts, "content": content, "test_content": of(*data.classes, digests["test"])}


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
                f"dataset.name={now['dataset']['name']}: the run was begun with other images"
                f" ({key}: {was}, now {value}); set dataset.root or dataset.path to where those"
                " are, or train on these: that is another run, of another name"
            )
