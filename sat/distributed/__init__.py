"""Several processes of one run."""

from sat.distributed.replicas import Replicas
from sat.distributed.world import ALONE, World, join, local_statistics, normed_by_attack, shared

__all__ = [
    "ALONE", "Replicas", "World", "join", "local_statistics", "normed_by_attack", "shared",
]  # fmt: skip
