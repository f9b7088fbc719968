"""What a command line asks for: Hydra's config, and the checked run that is made of it."""

from sat.config.composing import (
    compose,
    composed,
    followed,
    is_hydras,
    one_line,
    refuse_slips,
    resolve,
)
from sat.config.groups import CONF, SCALARS, SYNONYMS, key_of, meant, nearest, options
from sat.config.schema import build, convert, target
from sat.config.spec import Spec, check

__all__ = [
    "CONF", "SCALARS", "SYNONYMS", "Spec", "build", "check", "compose", "composed", "convert",
    "followed", "is_hydras", "key_of", "meant", "nearest", "one_line", "options", "refuse_slips",
    "resolve", "target",
]  # fmt: skip
