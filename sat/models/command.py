"""Writes a run's model for whoever has timm, into a folder that says how to load it.

    sat-export outputs/RUN             # RUN/export-best
    sat-export outputs/RUN --card      # a model card for RobustBench

`python scripts/export.py` is the same.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from sat.loggers import screen
from sat.loggers.screen import refuse, say
from sat.loggers.usage import Parser


def main(given: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 2 where the run can't be exported."""
    screen.set_up(logging.WARNING)
    parser = Parser("sat-export", None, __doc__)
    add = parser.add_argument
    add("run", type=Path, help="a run's directory")
    add("--which", choices=("best", "last"), default="best", help="the checkpoint (best)")
    add("--to", type=Path, metavar="FOLDER", help="where to write (RUN/export-<which>)")
    add("--card", action="store_true", help="only print a card for RobustBench")
    own = parser.parse_args(given)
    if not own.run.exists():  # told before torch and timm are loaded, which takes seconds
        refuse(f"{own.run}: no such folder; name the directory of a run")
        return 2
    screen.stage("loading torch and timm")
    from sat.models.card import card_of
    from sat.models.export import export, how_to_load

    screen.stage("loading the run, writing it for timm, and trying what was written")
    try:
        if own.card:
            say(json.dumps(card_of(own.run, own.which), indent=2))
            return 0
        folder = export(own.run, own.to or own.run / f"export-{own.which}", own.which)
    except ValueError as error:
        refuse(error)
        return 2
    say(f"{folder}: written, loaded by timm, and its logits are those of the run\n")
    print(how_to_load(folder))  # to be copied
    return 0
