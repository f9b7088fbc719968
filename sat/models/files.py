"""Files of weights, from anywhere: nothing but tensors is ever unpickled."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat.rundir.files import regular
from sat.rundir.untrusted import check_sums, load_tensors, objects_in, reason_of

Tensors = Mapping[str, Tensor]


def read_file(path: Path) -> Any:
    """What a file holds, tensors on the CPU. Raises ValueError for a file without weights."""
    try:
        with open(path, "rb", opener=regular):  # no pipe, no device
            pass
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        check_sums(path)
        return load_tensors(path)
    except OSError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds
        if objects := objects_in(error):
            raise ValueError(
                f"{objects}, and is not loaded, since that could run code; save model.state_dict()"
                " with torch.save where the file is from"
            ) from None
        raise ValueError(f"is damaged, or is no file of weights ({reason_of(error)})") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors; an export of this program keeps its normalisation beside them."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        scale = json.loads((file.metadata() or {}).get("normalisation", "{}"))
    return tensors | {key: torch.tensor(values) for key, values in scale.items()}


def state_dicts(state: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensors]]:
    """Every mapping of names to tensors in `state`, itself included; a file may hold itself."""
    if not isinstance(state, Mapping) or depth > 4:
        return
    if held := {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}:
        yield name, held
    for key, value in state.items():
        yield from state_dicts(value, f"{name}.{key}".lstrip("."), depth + 1)


def read_tensors(place: str) -> Tensors:
    """The largest state dict in a file. Raises ValueError for a file without weights."""
    try:
        found = [held for _, held in state_dicts(read_file(Path(place)))]
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not found:
        raise ValueError("holds no weights")
    return max(found, key=len)
