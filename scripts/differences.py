"""What may be concluded from a table: rows against the reference, and claims."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from runs import Measure
from specs import EXTREMES, is_number
from study import Difference, Number, Row, Verdict

from sat.errors import Refused
from sat.statistics import holm, mcnemar, paired, paired_seeds

LEVEL = 0.05


def only(rows: Sequence[Row], selector: Mapping[str, Any]) -> Row:
    """The one row of these values; a list allows any of its own. `lowest` and `highest` stand for
    the extreme among the rows that fit so far, one key after the other: the smallest number, or the
    first word. Raises Refused where none fits or several do."""
    named = ", ".join(f"{key}={value}" for key, value in selector.items())
    ends = {key: value for key, value in selector.items() if str(value) in EXTREMES}
    fixed = {key: value for key, value in selector.items() if key not in ends}
    choices = {key: v if isinstance(v, list) else [v] for key, v in fixed.items()}
    fitting = [row for row in rows if all(row.keys.get(k) in v for k, v in choices.items())]
    for key, value in ends.items():
        found = [row.keys[key] for row in fitting if row.keys.get(key) is not None]
        found = [each for each in found if is_number(each)] or [e for e in found if str(e) == e]
        end = EXTREMES[value](found, default=None)
        fitting = [row for row in fitting if end is not None and row.keys.get(key) == end]
    if not fitting:
        raise Refused(f"no row {named}")
    if len(fitting) > 1:
        labels = ", ".join(row.label for row in fitting)
        raise Refused(f"{named} fits {len(fitting)} rows ({labels}); name more keys")
    return fitting[0]


def compared(
    rows: Sequence[Row], selector: Mapping[str, Any] | None
) -> tuple[list[Row], str | None, list[str]]:
    """Rows with their differences to the reference, its label, and why a difference is missing."""
    if not selector or not rows:
        return list(rows), None, []
    try:
        reference = only(rows, selector)
    except Refused as error:
        return list(rows), None, [f"reference: {error}; no differences are told"]
    found: list[dict[Measure, Difference]] = [{} for _ in rows]
    missing: dict[str, list[str]] = {}
    for measure in reference.numbers:
        tested = {}
        for place, row in enumerate(rows):
            if row is reference or measure not in row.numbers:
                continue
            try:
                tested[place] = difference(row, reference, measure)
            except Refused as error:
                missing.setdefault(str(error), []).append(row.label)
        adjusted = holm([each.p for each in tested.values()])
        for (place, each), p in zip(tested.items(), adjusted, strict=True):
            found[place][measure] = replace(each, marked=p < LEVEL)
    rows = [replace(row, differences=mine) for row, mine in zip(rows, found, strict=True)]
    notes = [
        f"{', '.join(dict.fromkeys(labels))}: no difference to {reference.label} is told, {reason}"
        for reason, labels in missing.items()
    ]
    return rows, reference.label, notes


def difference(row: Row, reference: Row, measure: Measure) -> Difference:
    """Over the seeds that both have; of one seed, over its test images. Raises Refused without."""
    a, b = row.numbers[measure], reference.numbers[measure]
    shared = sorted(a.seeds.keys() & b.seeds.keys())
    if not shared:
        raise Refused("they have no seed in common")
    if len(shared) == 1:
        return of_images(row, reference, measure, shared[0])
    found = by_seeds(a, b)
    low, high = found["ci95"]
    return Difference(found["mean"], low, high, found["p"], "seeds", False, found["n"])


def by_seeds(a: Number, b: Number) -> dict[str, Any]:
    return paired_seeds(a.seeds, b.seeds, 1 / max(1, a.images))


def of_images(row: Row, reference: Row, measure: Measure, seed: int) -> Difference:
    """Two networks of one seed on the same images. Raises Refused where flags are not there."""
    runs = [each.runs[list(each.seeds).index(seed)] for each in (row, reference)]
    flags = [flags_of(run, measure) for run in runs]
    try:
        a, b = paired(*flags)
    except ValueError:
        raise Refused("no image was measured in both") from None
    found = mcnemar(a["right"], b["right"])
    low, high = found["ci95"]
    return Difference(found["difference"], low, high, found["p"], "images", False)


@cache
def flags_of(run: Path, measure: Measure) -> dict[str, np.ndarray]:
    """`indices` and `right`, both [N], of one measure of a run. Raises Refused without any."""
    which, attack = measure
    if not any((run / "flags").glob(f"{which}-*.npz")):
        raise Refused("one seed says nothing of others, and flags of single images are not here")
    import compare  # loads torch

    files = compare.flags_of(run, which)
    if attack == "clean":
        flags = compare.clean_of(files)
        return {"indices": flags["indices"], "right": flags["clean"]}
    if attack not in files:
        raise Refused(f"one seed says nothing of others, and there are no flags of {attack}")
    return {"indices": files[attack]["indices"], "right": files[attack]["robust"]}


def judged(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]], attack: str) -> list[Verdict]:
    """What the numbers say of each claim."""
    return [Verdict(claim["text"], *verdict(rows, claim, attack)) for claim in claims or ()]


def verdict(rows: Sequence[Row], claim: Mapping[str, Any], attack: str) -> tuple[str, str]:
    """supports, contradicts or says nothing, and the numbers."""
    which = "last" if claim["measure"].startswith("last") else "best"
    name = "clean" if claim["measure"].endswith("clean") else attack
    try:
        better, than = only(rows, claim["better"]), only(rows, claim["than"])
        if better is than:
            raise Refused(f"both sides are the row {better.label}")
        a, b = (number_of(row, (which, name)) for row in (better, than))
    except Refused as error:
        return "says nothing", str(error)
    shared = sorted(a.seeds.keys() & b.seeds.keys())
    if len(shared) < 2:
        told = f"{100 * (a.mean - b.mean):+.1f} points, {name}, {which}; " * bool(shared)
        count = "one seed is" if shared else "no seed is"
        return "says nothing", f"{told}{count} in both rows, and a verdict takes two"
    found = by_seeds(a, b)
    low, high = (round(100 * end, 9) for end in found["ci95"])
    reason = f"{100 * found['mean']:+.1f} points ({low:.1f} to {high:.1f}), {found['n']} seeds"
    return answer(low, high, claim.get("within")), f"{reason}, {name}, {which}"


def number_of(row: Row, measure: Measure) -> Number:
    if measure not in row.numbers:
        raise Refused(f"{row.label} was not measured: {measure[1] or 'robust'}, {measure[0]}")
    return row.numbers[measure]


def answer(low: float, high: float, within: float | None) -> str:
    """Of a difference's 95 % interval, in points; `within` points for a claim of equality."""
    if within is None:
        supports, contradicts = low > 0, high < 0
    else:
        supports = -within <= low and high <= within
        contradicts = low > within or high < -within
    return "supports" if supports else "contradicts" if contradicts else "says nothing"
