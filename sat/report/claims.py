"""What may be concluded from a table: rows against the reference, the verdict on each claim, and
catastrophic overfitting as a count."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sat.arguments import is_number
from sat.errors import Refused
from sat.report.rows import Row
from sat.report.runs import Measure
from sat.report.spec import COLLAPSE, EXTREMES, MEASURES, TUNED
from sat.statistics import Estimate, fisher, holm

LEVEL = 0.05
Answer = tuple[str, str, float | None]  # to a claim, why, and p where it rests on one test
WARM, SHARE = 6, 1 / 3  # a collapse: epochs that don't count; of the best accuracy so far


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim: supports, contradicts, says nothing or not run; and why."""

    text: str
    answer: str
    reason: str


def judged(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]], attack: str) -> list[Verdict]:
    """What the numbers say of each claim, p corrected by Holm's method over all that are tested."""
    found = [examined(rows, claim, attack) for claim in claims]
    adjusted = iter(holm([p for *_, p in found if p is not None]))
    verdicts = []
    for claim, (answer, reason, p) in zip(claims, found, strict=True):
        if p is not None:
            p = next(adjusted)
            answer = answer if p < LEVEL else "says nothing"
            reason = f"{reason}, Holm's p = {p:.2g}"
        verdicts.append(Verdict(claim["text"], answer, reason))
    return verdicts


def examined(rows: Sequence[Row], claim: Mapping[str, Any], attack: str) -> Answer:
    """What the rows say of one claim by itself."""
    places, name = MEASURES[claim["measure"]], "clean" if "clean" in claim["measure"] else attack
    which = " behind ".join(places)
    try:
        if claim["measure"] == COLLAPSE:
            return fewer_collapses(rows, claim)
        better, than = only(rows, claim["better"]), only(rows, claim["than"])
        if better is than:
            raise Refused(f"both sides are the row {better.label}")
        if claim.get("equal") and better.gradients != than.gradients:
            costs = f"{better.gradients:g} and {than.gradients:g} gradient computations an image"
            raise Refused(f"the cost is not equal: {costs}")
        found = number_of(better, places, name) - number_of(than, places, name)
    except Refused as error:
        return "not run", str(error), None
    sides = f"{better.label} against {than.label}{alarmed([better, than])}"
    points = f"{100 * found.mean:+.1f} points"
    if (count := len(found.seeds)) < 2:
        few = f"{points}, {name}, {which}; one seed is" if count else "no seed is"
        return "says nothing", f"{sides}: {few} in both, a verdict takes two", None
    reason = f"{sides}: {points} ({100 * found.low:.1f} to {100 * found.high:.1f}),"
    reason += f" {count} seeds, {name}, {which}"
    if "within" in claim:  # by the 95 % interval
        low, high, most = round(found.low, 11), round(found.high, 11), claim["within"] / 100
        beyond = "contradicts" if low > most or high < -most else "says nothing"
        return "supports" if -most <= low and high <= most else beyond, reason, None
    return "supports" if found.mean > 0 else "contradicts", reason, found.p


def alarmed(rows: Sequence[Row]) -> str:
    alarms = sum(row.alarms for row in rows)
    return f" ({alarms} of their runs raised alarms)" * bool(alarms)


def number_of(row: Row, places: Sequence[str], name: str) -> Estimate:
    """An accuracy of a row, or by how much that of the first checkpoint is behind (below 0) that of
    the second. Raises Refused where it was not measured."""
    found = [row.numbers[place, name] for place in places if (place, name) in row.numbers]
    if len(found) < len(places):
        missing = f"{name or 'robust'}, {' behind '.join(places)}"
        raise Refused(f"{row.label} was not measured: {missing}")
    return found[0] - found[1] if len(found) > 1 else found[0]


def only(rows: Sequence[Row], selector: Mapping[str, Any]) -> Row:
    """The one row that fits a selector. `tuned` in it is the value whose runs are the most robust
    on held-out images, with all else as asked. Raises Refused where none fits or several do."""
    tuned = [key for key, value in selector.items() if value == TUNED]
    found = fitting(rows, {key: value for key, value in selector.items() if key not in tuned})
    if tuned and len({tuple(row.keys[key] for key in tuned) for row in found}) == len(found):
        found = sorted(found, key=held_out)[-1:]
    if len(found) > 1:
        labels = ", ".join(row.label for row in found)
        raise Refused(f"{len(found)} rows fit ({labels}); name more keys")
    return found[0]


def fitting(rows: Sequence[Row], selector: Mapping[str, Any]) -> list[Row]:
    """The rows of these values; a list allows any of its own. `lowest` and `highest` stand for the
    smallest and largest number, or the first and last word, that any row of the table has: so both
    sides of a claim mean the same value, and an absent row is missed: raises Refused for none."""
    wanted = {}
    for key, value in selector.items():
        if extreme := EXTREMES.get(str(value)):
            found = [row.keys[key] for row in rows if row.keys.get(key) is not None]
            value = extreme([each for each in found if is_number(each)] or found, default=value)
        wanted[key] = value if isinstance(value, list) else [value]
    if fit := [row for row in rows if all(row.keys.get(k) in v for k, v in wanted.items())]:
        return fit
    named = ", ".join(f"{key}={' or '.join(map(str, v))}" for key, v in wanted.items())
    raise Refused(f"no row {named}")


def held_out(row: Row) -> float:
    """Robust accuracy of `best` on held-out images, the mean over a row's seeds."""
    told = [(run.result.best and run.result.best.held_out) or {} for run in row.runs]
    return sum(each.get("robust") or 0.0 for each in told) / len(told)


# differences to the reference ---------------------------------------------------------------------


def compared(rows: Sequence[Row], reference: Row) -> list[Row]:
    """Rows with their differences to the reference."""
    told: dict[str, dict[Measure, Estimate]] = {row.label: {} for row in rows}
    for measure, base in reference.numbers.items():
        others = [row for row in rows if row is not reference and measure in row.numbers]
        found = [(row.label, row.numbers[measure] - base) for row in others]
        paired = [(label, each) for label, each in found if len(each.seeds) > 1]
        adjusted = holm([each.p for _, each in paired])
        for (label, each), p in zip(paired, adjusted, strict=True):
            told[label][measure] = replace(each, p=p)
    return [replace(row, differences=told[row.label]) for row in rows]


# collapses ----------------------------------------------------------------------------------------


def collapses(rows: Sequence[Row]) -> tuple[list[int], int]:
    """The epochs since which trainings were collapsed to their end, or else first were, and of how
    many trainings: robust accuracy on held-out images is, after the sixth epoch, below a third of
    its best so far. Left out are those not validated after the sixth, or never better than chance,
    and than one answer to all images."""
    epochs, counted = list[int](), 0
    for run in (run for row in rows for run in row.runs):
        chance = 1 / (run.result.dataset.get("classes") or math.inf)
        best, since, first, epoch = 0.0, None, None, 0
        # one answer to all images is as good under attack
        learnt = any(line["val/robust"] < line["val/clean"] for line in run.validations)
        for line in run.validations:
            epoch = round(line["epoch"]) or 1  # one comes at the step after
            robust = line["val/robust"]
            if chance < robust and learnt:
                best = max(best, robust)
            since = (since or epoch) if robust < SHARE * best else None
            first = first or (since if epoch > WARM else None)
        if epoch > WARM and best:
            counted += 1
            epochs += filter(None, [since or first])
    return sorted(epochs), counted


def count_of(row: Row) -> str:
    """`2 of 3 (epochs 45, 53), 1 left out`."""
    epochs, counted = collapses([row])
    when = f" (epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))})" if epochs else ""
    out = f", {len(row.runs) - counted} left out" if counted < len(row.runs) else ""
    return f"{len(epochs)} of {counted}{when}{out}"


def fewer_collapses(rows: Sequence[Row], claim: Mapping[str, Any]) -> Answer:
    """Whether fewer of the trainings of one side collapse, over all its rows whose other keys a row
    of the other side has, too: the answer, both counts, and p by Fisher's exact test of the shares
    within equal other keys. Raises Refused where a side has no row, or both have one in common."""
    sides = [fitting(rows, claim[side]) for side in ("better", "than")]
    better, than = ([row for row in side if collapses([row])[1]] for side in sides)
    if {row.label for row in better} & {row.label for row in than}:
        raise Refused("both sides have runs in common")
    asked = {*claim["better"], *claim["than"]}
    strata: dict[str, tuple[list[Row], list[Row]]] = {}
    for side, mine in enumerate((better, than)):
        for row in mine:
            rest = str(sorted((k, v) for k, v in row.keys.items() if k not in asked))
            strata.setdefault(rest, ([], []))[side].append(row)
    both = [pair for pair in strata.values() if all(pair)]
    if not both:
        which = "better than chance and watched after epoch 6"
        return "says nothing", f"no two runs, {which}, that differ in this alone", None
    counts = []
    for pair in both:
        (fell, of), (others, of_others) = map(collapses, pair)
        counts.append((len(fell), of, len(others), of_others))
    above, p = fisher(counts)
    a, of, b, of_others = map(sum, zip(*counts, strict=True))
    reason = f"{a} of {of} collapsed against {b} of {of_others}"
    reason += alarmed([row for pair in both for side in pair for row in side])
    within = f" within {len(both)} settings" * (len(both) > 1)
    return "supports" if above < 0 else "contradicts", f"{reason}, Fisher's exact test{within}", p
