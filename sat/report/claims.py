"""What may be concluded from a table: rows against the reference, and the verdict on each claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sat.errors import Refused
from sat.report.runs import Measure, Measured
from sat.report.spec import EXTREMES, is_number
from sat.report.tables import Difference, Number, Row
from sat.statistics import holm, mcnemar, paired, paired_seeds

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim: supports, contradicts, says nothing or not run; and why."""

    text: str
    answer: str
    reason: str


def only(rows: Sequence[Row], selector: Mapping[str, Any]) -> Row:
    """The one row of these values; a list allows any of its own. `lowest` and `highest` stand for
    the smallest and largest number, or the first and last word, that any row of the table has: so
    both sides of a claim mean the same value, and a row that is not there is missed.

    Raises Refused where none fits or several do.
    """
    wanted = {key: wanted_of(rows, key, value) for key, value in selector.items()}
    fitting = [row for row in rows if all(row.keys.get(k) in v for k, v in wanted.items())]
    if not fitting:
        named = ", ".join(f"{k}={' or '.join(map(str, v))}" for k, v in wanted.items())
        raise Refused(f"no row {named}")
    if len(fitting) > 1:
        labels = ", ".join(row.label for row in fitting)
        named = ", ".join(f"{key}={value}" for key, value in selector.items())
        raise Refused(f"{named} fits {len(fitting)} rows ({labels}); name more keys")
    return fitting[0]


def wanted_of(rows: Sequence[Row], key: str, value: Any) -> list[Any]:
    """The values that a selector allows of a key."""
    if str(value) not in EXTREMES:
        return value if isinstance(value, list) else [value]
    found = [row.keys[key] for row in rows if row.keys.get(key) is not None]
    found = [each for each in found if is_number(each)] or [e for e in found if isinstance(e, str)]
    return [EXTREMES[value](found)] if found else [value]


# differences --------------------------------------------------------------------------------------


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
    return Difference(found["mean"], *found["ci95"], found["p"], "seeds", False, found["n"])


def by_seeds(a: Number, b: Number) -> dict[str, Any]:
    return paired_seeds(a.seeds, b.seeds, 1 / max(1, a.images))


def of_images(row: Row, reference: Row, measure: Measure, seed: int) -> Difference:
    """Two networks of one seed on the same images. Raises Refused where flags are not there."""
    runs = [each.runs[each.seeds.index(seed)] for each in (row, reference)]
    flags = [flags_of(run, measure) for run in runs]
    try:
        a, b = paired(*flags)
    except ValueError:
        raise Refused("no image was measured in both") from None
    found = mcnemar(a["right"], b["right"])
    return Difference(found["difference"], *found["ci95"], found["p"], "images", False)


def flags_of(run: Measured, measure: Measure) -> dict[str, np.ndarray]:
    """`indices` and `right`, both [N], of one measure of a run. Raises Refused without any."""
    which, attack = measure
    if run.path is None or not any((run.path / "flags").glob(f"{which}-*.npz")):
        raise Refused("one seed says nothing of others, and flags of single images are not here")
    from sat.report import compare  # loads torch

    files = compare.flags_of(run.path, which)
    if attack != "clean" and attack not in files:
        raise Refused(f"one seed says nothing of others, and there are no flags of {attack}")
    flags = compare.clean_of(files) if attack == "clean" else files[attack]
    right = flags["clean" if attack == "clean" else "robust"]
    return {"indices": flags["indices"], "right": right}


# claims -------------------------------------------------------------------------------------------


def judged(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]], attack: str) -> list[Verdict]:
    """What the numbers say of each claim, p corrected by Holm's method over all that are tested."""
    sides: list[tuple[Row, Row] | str] = []
    tested: dict[int, float] = {}
    for place, claim in enumerate(claims):
        measure = measure_of(claim, attack)
        try:
            better, than = sides_of(rows, claim, measure)
        except Refused as error:
            sides.append(str(error))
            continue
        sides.append((better, than))
        a, b = better.numbers[measure], than.numbers[measure]
        if len(a.seeds.keys() & b.seeds.keys()) > 1 and "within" not in claim:
            tested[place] = by_seeds(a, b)["p"]
    p = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Verdict(claim["text"], "not run", found)
        if isinstance(found, str)
        else verdict(*found, measure_of(claim, attack), claim, p.get(place))
        for place, (found, claim) in enumerate(zip(sides, claims, strict=True))
    ]


def measure_of(claim: Mapping[str, Any], attack: str) -> Measure:
    last, clean = claim["measure"].startswith("last"), claim["measure"].endswith("clean")
    return "last" if last else "best", "clean" if clean else attack


def sides_of(rows: Sequence[Row], claim: Mapping[str, Any], measure: Measure) -> tuple[Row, Row]:
    """The two rows of a claim. Raises Refused with why it can't be tested."""
    better, than = only(rows, claim["better"]), only(rows, claim["than"])
    if better is than:
        raise Refused(f"both sides are the row {better.label}")
    for row in (better, than):
        if measure not in row.numbers:
            which, name = measure
            raise Refused(f"{row.label} was not measured: {name or 'robust'}, {which}")
    if claim.get("equal") and better.gradients != than.gradients:
        costs = f"{better.gradients:g} and {than.gradients:g} gradient computations an image"
        raise Refused(f"the cost is not equal: {costs}")
    return better, than


def verdict(
    better: Row, than: Row, measure: Measure, claim: Mapping[str, Any], p: float | None
) -> Verdict:
    """Judges rows that were measured; `p` is corrected."""
    a, b = better.numbers[measure], than.numbers[measure]
    seeds = sorted(a.seeds.keys() & b.seeds.keys())
    name, text = f"{measure[1]}, {measure[0]}", claim["text"]
    sides = f"{better.label} against {than.label}"
    alarms = better.alarms + than.alarms
    doubt = f"; {alarms} of their runs raised alarms" if alarms else ""
    if len(seeds) < 2:
        told = [100 * (a.seeds[seed] - b.seeds[seed]) for seed in seeds]
        said = f"{told[0]:+.1f} points, {name}; one seed is" if told else "no seed is"
        return Verdict(text, "says nothing", f"{sides}: {said} in both, a verdict takes two{doubt}")
    found = by_seeds(a, b)
    low, high = (round(100 * end, 9) for end in found["ci95"])
    reason = f"{sides}: {100 * found['mean']:+.1f} points ({low:.1f} to {high:.1f})"
    reason += f", {found['n']} seeds, {name}"
    if p is None:
        return Verdict(text, within(low, high, claim["within"]), reason + doubt)
    sure = "supports" if found["mean"] > 0 else "contradicts"
    return Verdict(text, sure if p < LEVEL else "says nothing", f"{reason}, p = {p:.2g}{doubt}")


def within(low: float, high: float, points: float) -> str:
    """Judges a difference's 95 % interval, for a claim that it is of at most so many points."""
    if -points <= low and high <= points:
        return "supports"
    return "contradicts" if low > points or high < -points else "says nothing"
