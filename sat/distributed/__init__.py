"""Several processes of one run."""

from sat.distributed.world import ALONE, World, join

__all__ = ["ALONE", "World", "join"]
