"""What may be concluded from a table: rows against the reference, and the verdict on each claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sat.errors import Refused
from sat.report import collapse
from sat.report.runs import Measure
from sat.report.spec import BEHIND, COLLAPSE, EXTREMES, TUNED, is_number
from sat.report.tables import Difference, Number, Row
from sat.statistics import holm, paired_seeds


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim: supports, contradicts, says nothing or not run; and why."""

    text: str
    answer: str
    reason: str
    difference: Difference | None = None  # of its sides


def only(rows: Sequence[Row], selector: Mapping[str, Any]) -> Row:
    """The one row of these values; a list allows any of its own. `lowest` and `highest` stand for
    the smallest and largest number, or the first and last word, that any row of the table has: so
    both sides of a claim mean the same value, and a row that is not there is missed. `tuned` is the
    value whose runs are the most robust on held-out images, with all else as asked.

    Raises Refused where none fits or several do.
    """
    wanted = {}
    tuned = [key for key, value in selector.items() if value == TUNED]
    for key, value in ((k, v) for k, v in selector.items() if k not in tuned):
        if extreme := EXTREMES.get(str(value)):
            found = [row.keys[key] for row in rows if row.keys.get(key) is not None]
            value = extreme([each for each in found if is_number(each)] or found, default=value)
        wanted[key] = value if isinstance(value, list) else [value]
    fitting = [row for row in rows if all(row.keys.get(k) in v for k, v in wanted.items())]
    named = ", ".join(f"{k}={' or '.join(map(str, v))}" for k, v in wanted.items())
    if tuned and len({tuple(row.keys[key] for key in tuned) for row in fitting}) == len(fitting):
        fitting = sorted(fitting, key=held_out)[-1:]
    if len(fitting) > 1:
        labels = ", ".join(row.label for row in fitting)
        raise Refused(f"{named} fits {len(fitting)} rows ({labels}); name more keys")
    if not fitting:
        raise Refused(f"no row {named}")
    return fitting[0]


def held_out(row: Row) -> float:
    """Robust accuracy of `best` on held-out images, the mean over a row's seeds."""
    told = [(run.result.best and run.result.best.held_out) or {} for run in row.runs]
    return sum(each.get("robust") or 0.0 for each in told) / len(told)


def difference(row: Row, reference: Row, measure: Measure) -> Difference | None:
    """Over the seeds that both have, p not corrected; None where these are not two at least."""
    a, b = (each.numbers.get(measure) for each in (row, reference))
    if a is None or b is None or len(a.seeds.keys() & b.seeds.keys()) < 2:
        return None
    found = paired_seeds(a.seeds, b.seeds, 1 / max(1, a.images))
    low, high = found["ci95"]
    return Difference(found["mean"], max(low, -1.0), min(high, 1.0), found["p"])


def corrected(found: Sequence[Difference]) -> list[Difference]:
    adjusted = holm([each.p for each in found])
    return [replace(each, p=p) for each, p in zip(found, adjusted, strict=True)]


def compared(
    rows: Sequence[Row], selector: Mapping[str, Any] | None
) -> tuple[list[Row], str | None, list[str]]:
    """Rows with their differences to the reference, its label, and why there are none."""
    if not selector or not rows:
        return list(rows), None, []
    try:
        reference = only(rows, selector)
    except Refused as error:
        return list(rows), None, [f"reference: {error}; no differences are told"]
    told: dict[str, dict[Measure, Difference]] = {row.label: {} for row in rows}
    for measure in reference.numbers:
        found = {r.label: difference(r, reference, measure) for r in rows if r is not reference}
        there = {label: each for label, each in found.items() if each}
        for label, each in zip(there, corrected([*there.values()]), strict=True):
            told[label][measure] = each
    return [replace(row, differences=told[row.label]) for row in rows], reference.label, []


def judged(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]], attack: str) -> list[Verdict]:
    """What the numbers say of each claim, p corrected by Holm's method over all that are tested."""
    found = [examined(rows, claim, attack) for claim in claims]
    pairs = list(zip(found, claims, strict=True))
    tested = [v.difference for v, claim in pairs if v.difference and "within" not in claim]
    tests, verdicts = iter(corrected(tested)), []
    for verdict, claim in pairs:
        if verdict.difference and "within" in claim:
            verdict = replace(verdict, answer=within(verdict.difference, claim["within"] / 100))
        elif verdict.difference:
            each = next(tests)
            sure = "supports" if each.mean > 0 else "contradicts"
            reason = f"{verdict.reason}, Holm's p = {each.p:.2g}"
            verdict = replace(
                verdict, answer=sure if each.marked else "says nothing", reason=reason
            )
        verdicts.append(verdict)
    return verdicts


def examined(rows: Sequence[Row], claim: Mapping[str, Any], attack: str) -> Verdict:
    """A claim with the difference of its sides, not judged yet; or why it can't be."""
    last, clean = claim["measure"].startswith("last"), claim["measure"].endswith("clean")
    measure = "last" if last else "best", "clean" if clean else attack
    try:
        if claim["measure"] == COLLAPSE:
            return Verdict(claim["text"], "", *collapse.compared(rows, claim))
        better, than = sides_of(rows, claim, measure)
        if claim["measure"] == BEHIND:
            measure = BEHIND, attack
            better, than = (behind(row, attack) for row in (better, than))
    except Refused as error:
        return Verdict(claim["text"], "not run", str(error))
    sides = f"{better.label} against {than.label}"
    if alarms := better.alarms + than.alarms:
        sides += f" ({alarms} of their runs raised alarms)"
    a, b = better.numbers[measure].seeds, than.numbers[measure].seeds
    shared, name = a.keys() & b.keys(), f"{measure[1]}, {measure[0]}"
    if (found := difference(better, than, measure)) is None:
        points = "".join(f"{100 * (a[seed] - b[seed]):+.1f} points, {name}; " for seed in shared)
        many = "one seed is" if shared else "no seed is"
        few = f"{sides}: {points}{many} in both, a verdict takes two"
        return Verdict(claim["text"], "says nothing", few)
    points = f"{100 * found.mean:+.1f} points ({100 * found.low:.1f} to {100 * found.high:.1f})"
    reason = f"{sides}: {points}, {len(shared)} seeds, {name}"
    return Verdict(claim["text"], "", reason, found)


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


def behind(row: Row, attack: str) -> Row:
    """A row with one number more: by how much its `last` is behind (below 0) its `best`."""
    last, best = (row.numbers.get((which, attack)) for which in ("last", "best"))
    if last is None or best is None:
        raise Refused(f"{row.label} was not measured: {attack or 'robust'}, best and last")
    seeds = {k: last.seeds[k] - best.seeds[k] for k in last.seeds.keys() & best.seeds.keys()}
    found = Number(last.mean - best.mean, -1.0, 1.0, seeds, last.images)
    return replace(row, numbers={**row.numbers, (BEHIND, attack): found})


def within(found: Difference, most: float) -> str:
    """Judges a difference's 95 % interval, for a claim that it is of at most so much."""
    low, high = round(found.low, 11), round(found.high, 11)
    if -most <= low and high <= most:
        return "supports"
    return "contradicts" if low > most or high < -most else "says nothing"
