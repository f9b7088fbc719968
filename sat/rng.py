"""Random numbers that depend on a key and a row alone.

Noise and augmentation must not change with the batch size, the number of accumulation parts, of
workers or of processes. torch's generators draw a sequence, so a row's numbers depend on how many
rows came before it; here each number is a hash of (key, row, position), computed on the device:
the same bits on every device, for any split of a batch. The hash is `lowbias32` (C. Wellons,
"Prospecting for Hash Functions", 2018), applied once for the row and once for the position.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def seed_of(seed: int, purpose: str, *numbers: int) -> int:
    """A 31-bit seed for one purpose of a run, say `seed_of(cfg.seed, "attack", step)`."""
    text = ":".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def _hash(x: Tensor) -> Tensor:
    """lowbias32 of an int32 tensor, in place; torch shifts arithmetically, hence the masks."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16) & 0xFFFF
    return x


@lru_cache(maxsize=16)
def _positions(count: int, device: torch.device) -> Tensor:
    """The hashes of 0 to count - 1, the same for every draw."""
    return _hash(torch.arange(count, dtype=torch.int32, device=device))


@dataclass(frozen=True)
class RowRng:
    """Random numbers for the rows `rows` (int64 [B], on the device that is drawn on)."""

    key: int
    rows: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> "RowRng":
        """Draws for some of the rows: an index, a slice or a mask."""
        return RowRng(self.key, self.rows[chosen])

    def uniform(self, name: str, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1), named so that two draws of one step differ."""
        device, key = self.rows.device, seed_of(self.key, name)
        row = _hash(self.rows.to(torch.int32) ^ key)
        bits = _hash(_positions(math.prod(shape), device)[None, :] ^ row[:, None])
        return ((bits >> 8) & 0xFFFFFF).float().mul_(2.0**-24).view(len(row), *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """float32 [B, *shape] from the standard normal (Box and Muller, 1958)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(name + ":radius", *shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(name + ":angle", *shape))

    def coin(self, name: str, probability: float) -> bool:
        """One toss for all rows of this key; it asks nothing of the device."""
        return seed_of(self.key, name) < probability * 2**31


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global generators, which dropout draws from."""
    states = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng_cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["rng"])
    if "rng_cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["rng_cuda"], device)
