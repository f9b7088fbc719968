"""What an evaluation asks for, and what of it a run lacks."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat.arguments import check_unit
from sat.attacks import Attack
from sat.data.corrupted import is_set, place_of
from sat.errors import Refused
from sat.evaluation.settings import Evaluation
from sat.evaluation.store import changes, outcomes_in, read_file, taken
from sat.rundir.result import (
    BEST,
    CLEAN,
    CORRUPTIONS,
    LAST,
    LAST_RAW,
    WORST,
    AttackResult,
    CheckpointResult,
    Chosen,
    CurveResult,
    RunResult,
)

log = logging.getLogger("sat")
FILES = {LAST: "last.pt", BEST: "best.pt", LAST_RAW: "last.pt"}  # whose weights they hold
MASKING_CHECKS = "masking_checks"


def todo(result: RunResult, evaluation: Evaluation, directory: Path) -> list[tuple[str, str]]:
    """(checkpoint, name) of what the evaluation asks for and the run lacks: outcomes under an
    attack or a curve, CLEAN, WORST, CORRUPTIONS, then MASKING_CHECKS.

    Raises Refused when something is lacking and no checkpoint is left to measure.
    """
    files, flags = files_of(result, evaluation, directory), directory / "flags"
    found = {which: lacking(result, which, evaluation) for which in files}
    for which, names in found.items():
        gone = [n for n in evaluation.measured_by if not (flags / f"{which}-{n}.npz").exists()]
        found[which] = [n for n in gone if n not in names] + names
    if not files and any(lacking(result, which, evaluation) for which in asked(result, evaluation)):
        raise Refused(
            f"{directory}: no checkpoint stayed to be measured (record.keep); record.fresh=true"
            " trains again"
        )
    pairs = [(which, name) for which, names in found.items() for name in names]
    unchecked = [which for which in files if not checked(result, which, evaluation)]
    return pairs + [(which, MASKING_CHECKS) for which in unchecked]


def asked(result: RunResult, evaluation: Evaluation) -> list[str]:
    """The checkpoints to measure; weights of a file are one set, called `last`."""
    names = list(evaluation.checkpoints)
    return names if result.best is not None else [n for n in names if n != BEST] or [LAST]


def files_of(result: RunResult, evaluation: Evaluation, directory: Path) -> dict[str, Path]:
    """The files that hold what is to be measured, by checkpoint; those that are gone are left out,
    but for what another one holds as well."""
    found: dict[str, Path] = {}
    for which in asked(result, evaluation):
        for name in filter(None, (which, result.same_weights_as(which))):
            if (path := directory / "checkpoints" / FILES[name]).exists():
                found.setdefault(which, path)
    return found


def lacking(result: RunResult, which: str, evaluation: Evaluation) -> list[str]:
    """What a checkpoint's results don't hold as it is asked for: names of attacks and curves,
    CLEAN, WORST."""

    def holds(found: AttackResult | CurveResult) -> bool:
        return subset_covers(found.chosen, found.images, result.test_images, evaluation)

    part = result.part(which)
    names = [
        name
        for name in evaluation.measured_by
        if (found := part.measured.get(name)) is None
        or not holds(found)
        or changes(found.settings or {}, evaluation.settings(name))
    ]
    worst, attacks = part.robust.get(WORST), evaluation.worst_over
    holds_worst = worst is not None and holds(worst) and is_over(worst, evaluation)
    if len(attacks) > 1 and (not holds_worst or {*names} & {*attacks}):
        names.append(WORST)
    if not (part.clean and holds(part.clean)):
        names.append(CLEAN)
    return [*names, CORRUPTIONS] if lacks_corruptions(part, evaluation) else names


def is_over(worst: AttackResult, evaluation: Evaluation) -> bool:
    """Whether a worst case is over the attacks that are asked for, or over more of them on more
    images."""
    attacks, over = evaluation.worst_over, list(worst.attacks or ())
    if attacks in (over, *(worst.milder or ())):
        return True
    more = evaluation.limit is not None and worst.images > evaluation.limit
    return more and {*attacks} <= {*over}


def lacks_corruptions(part: CheckpointResult, evaluation: Evaluation) -> bool:
    """Whether a checkpoint was not measured on as many images of the corrupted set."""
    if evaluation.corruptions is None:
        return False
    found = part.corruptions.get((root := place_of(evaluation.corruptions)).name)
    if found is None or not is_set(root, found.digest):
        return True
    return found.limit is not None and found.limit < (evaluation.limit or math.inf)


def checked(result: RunResult, which: str, evaluation: Evaluation) -> bool:
    """Whether a checkpoint's numbers have been looked at as far as is asked for."""
    found = result.part(which).masking_checks.get(next(reversed(evaluation.attacks), CLEAN))
    if evaluation.masking_checks == 0:
        return True
    if found is None or found.asked < evaluation.masking_checks:
        return False
    return subset_covers(found.subset, 0, result.test_images, evaluation)


def subset_covers(
    subset: Chosen | None, measured: int, images: int, evaluation: Evaluation
) -> bool:
    """Whether what was `measured` on a subset (limit, seed) of `images` holds what is asked."""
    if subset is None:
        return False
    (limit, seed), now = subset, evaluation.subset
    if limit is None or measured >= images or subset == now:
        return True
    return seed == now[1] and now[0] is not None and limit >= now[0]


def warn_of_sizes(attacks: Mapping[str, Attack], dataset: Mapping[str, Any]) -> None:
    """Warns where attacks of several norms are joined, and none is in the set's own ball."""
    norm, eps = dataset["norm"], check_unit("eps", dataset["eps"], dataset["norm"])
    names = [name for name, attack in attacks.items() if attack.norm == norm]
    joined = len({attack.norm for attack in attacks.values()}) > 1
    if joined and names and all(attacks[name].eps != eps for name in names):
        balls = ", ".join(f"{attack.eps:g} in {attack.norm}" for attack in attacks.values())
        log.warning(
            "evaluation: the attacks' balls are, in 1/255, %s, and none is the data set's own;"
            " evaluation.attacks.%s.eps=%g measures in that one", balls, names[0], eps,
        )  # fmt: skip


def check_names(result: RunResult, files: Mapping[str, Path], evaluation: Evaluation) -> None:
    """Warns of checkpoints that are gone. Raises Refused when the name of an attack is taken by one
    with other settings."""
    for which in asked(result, evaluation):
        if which not in files:
            log.warning("checkpoints/%s: is missing, and not measured (record.keep)", FILES[which])
    for part in map(result.part, files):
        for name in evaluation.measured_by:
            settings = evaluation.settings(name)
            before = part.measured[name].settings if name in part.measured else None
            if changed := changes(before or settings, settings):
                raise Refused(taken(name, changed, settings))


def check_flags(evaluation: Evaluation, flags: Path) -> None:
    """Raises Refused, before anything is trained or told, where what a killed evaluation kept in a
    run's `flags` is damaged, or was measured with other settings under the name of an attack."""
    for path in flags.glob("partial/*.npz"):
        outcomes_in(path, read_file(path) or {})
    for which in evaluation.checkpoints:
        for name in evaluation.measured_by:
            if (found := read_file(path := flags / f"{which}-{name}.npz")) is None:
                continue
            outcomes_in(path, found)
            settings = evaluation.settings(name)
            if changed := changes(found["settings"], settings):
                raise Refused(taken(name, changed, settings))
