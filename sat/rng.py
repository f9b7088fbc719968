"""Random numbers that depend on a key and a row alone.

Noise and augmentation must not change with the batch size, the number of accumulation parts, of
workers or of processes. torch's generators draw a sequence, so a row's numbers depend on how many
rows came before it; here each number is a hash of (key, row, position), computed on the device:
the same bits on every device, for any split of a batch. The hash is `lowbias32` (C. Wellons,
"Prospecting for Hash Functions", 2018), applied once for the row and once for the position.
"""

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


def seed_of(seed: int, purpose: str, *numbers: int) -> int:
    """A 31-bit seed for one purpose of a run, say `seed_of(cfg.seed, "attack", step)`."""
    text = ":".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; the host does not wait for the copy.

    torch gives the pinned memory to nobody else before the copy is done.
    """
    if device.type == "cuda":  # from other memory the copy is waited for
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _hash(x: Tensor) -> Tensor:
    """lowbias32 of an int32 tensor, in place; torch shifts arithmetically, hence the masks."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16) & 0xFFFF
    return x


@cache  # for good: a graph may read it
def _positions(count: int, device: torch.device) -> Tensor:
    """The hashes of 0 to count - 1, the same for every draw."""
    return _hash(torch.arange(count, dtype=torch.int32, device=device))


Path = tuple[tuple[Any, ...], ...]  # names, with their numbers, one below the other


class StepKey:
    """The key of a training's steps as tensors: the seed of each draw, by its name, int64 [].

    The host `set`s it before each step. What draws with it asks nothing of the host, so that a
    graph that was captured of one step draws what a later step is to have. A name that is first
    heard in a step gets its tensor then; once `sealed`, while a graph is captured, it is refused.
    """

    def __init__(self, device: torch.device):
        self.key, self.sealed = 0, False
        self.device = device
        self._path: Path = ()
        self._seeds: dict[Path, Tensor] = {}

    def set(self, key: int) -> None:
        """Makes all seeds those of a step's key."""
        self.key = key
        if self._seeds:
            seeds = sent(torch.tensor([*map(self._follow, self._seeds)]), self.device)
            torch._foreach_copy_([*self._seeds.values()], [*seeds])

    def seed(self, name: str) -> Tensor:
        """`seed_of(key, name)`, on the device."""
        path = (*self._path, (name,))
        if path not in self._seeds:
            if self.sealed:
                raise RuntimeError(f"{name}: is drawn in this step, and was not in those before")
            seed = torch.full((), self._follow(path), dtype=torch.int64, device=self.device)
            self._seeds[path] = seed
        return self._seeds[path]

    def child(self, name: str, *numbers: int) -> "StepKey":
        """The key `seed_of(key, name, *numbers)`, for the time of the step."""
        child = copy.copy(self)  # that has the same seeds
        child._path = (*self._path, (name, *numbers))
        return child

    @property
    def number(self) -> int:
        """This key as a number of the host's, which holds for this step alone."""
        if self.sealed:
            raise RuntimeError("the key of a step is asked for as a number")
        return self._follow(self._path)

    def _follow(self, path: Path) -> int:
        key = self.key
        for name, *numbers in path:
            key = seed_of(key, name, *numbers)
        return key


Key = int | StepKey


@dataclass(frozen=True)
class RowRng:
    """Random numbers for the rows `rows` (int64 [B], on the device that is drawn on)."""

    key: Key
    rows: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> "RowRng":
        """Draws for some of the rows: an index, a slice or a mask."""
        return RowRng(self.key, self.rows[chosen])

    def child(self, name: str, *numbers: int) -> "RowRng":
        """Draws of another kind for the same rows: with the key `seed_of(key, name, *numbers)`."""
        if isinstance(self.key, int):
            return RowRng(seed_of(self.key, name, *numbers), self.rows)
        return RowRng(self.key.child(name, *numbers), self.rows)

    def to(self, device: torch.device | str) -> "RowRng":
        """Draws the same numbers on another device."""
        key = self.key if self.rows.device == torch.device(device) else self.number
        return RowRng(key, self.rows.to(device))

    @property
    def number(self) -> int:
        """The key as a number, for what draws by itself."""
        return self.key if isinstance(self.key, int) else self.key.number

    def uniform(self, name: str, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1), named so that two draws of one step differ."""
        device, seed = self.rows.device, self._seed(name)
        row = _hash((self.rows ^ seed).to(torch.int32))
        bits = _hash(_positions(math.prod(shape), device)[None, :] ^ row[:, None])
        return ((bits >> 8) & 0xFFFFFF).float().mul_(2.0**-24).view(len(row), *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """float32 [B, *shape] from the standard normal (Box and Muller, 1958)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(name + ":radius", *shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(name + ":angle", *shape))

    def coin(self, name: str, probability: float | Tensor) -> Tensor:
        """One toss for all rows of this key, a truth [] on the device; held against each of several
        probabilities, a truth for each."""
        seed = self._seed(name)
        if isinstance(seed, int):
            seed = torch.full((), seed, dtype=torch.int64, device=self.rows.device)
        if isinstance(probability, Tensor):
            return seed < (probability.double() * 2**31).ceil()
        return seed < math.ceil(probability * 2**31)

    def _seed(self, name: str) -> int | Tensor:
        return seed_of(self.key, name) if isinstance(self.key, int) else self.key.seed(name)


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
