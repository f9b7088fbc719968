"""Catastrophic overfitting as a count: which trainings collapsed, and when."""

from collections.abc import Mapping, Sequence
from typing import Any

from sat.errors import Refused
from sat.report.runs import Measured
from sat.report.tables import Difference, Row

WARM, SHARE = 6, 1 / 3  # epochs that don't count; of the best so far


def collapsed_at(run: Measured) -> int | None:
    """The first epoch, whole, after the sixth at which the robust accuracy on held-out images is
    below a third of its best so far; None of a training that holds."""
    best = 0.0
    for row in run.validations()[0]:
        epoch = round(row["epoch"])  # a validation comes with the first step that passes it
        if epoch > WARM and row["val/robust"] < SHARE * best:
            return epoch
        best = max(best, row["val/robust"])
    return None


def count_of(row: Row) -> str:
    """`2 of 3 (epochs 45, 53)`."""
    epochs = sorted(epoch for run in row.runs if (epoch := collapsed_at(run)) is not None)
    when = f" (epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))})"
    return f"{len(epochs)} of {len(row.runs)}" + when * bool(epochs)


def compared(rows: Sequence[Row], claim: Mapping[str, Any]) -> tuple[str, Difference]:
    """Whether fewer of the trainings of one side collapse, all rows that fit a side taken together:
    both counts, and the difference of their shares with p by Fisher's exact test (1935), two-sided.
    Raises Refused where a side has no run."""
    from scipy.stats import fisher_exact

    counts = []
    for side in ("better", "than"):
        wanted = {k: v if isinstance(v, list) else [v] for k, v in claim[side].items()}
        runs = [
            run
            for row in rows
            if all(row.keys.get(key) in values for key, values in wanted.items())
            for run in row.runs
        ]
        if not runs:
            raise Refused(f"no run {', '.join(f'{k}={claim[side][k]}' for k in wanted)}")
        fallen = sum(collapsed_at(run) is not None for run in runs)
        counts.append((fallen, len(runs) - fallen))
    (a, held_a), (b, held_b) = counts
    less = b / (b + held_b) - a / (a + held_a)
    reason = f"{a} of {a + held_a} collapsed against {b} of {b + held_b}, Fisher's exact test"
    return reason, Difference(less, less, less, float(fisher_exact(counts).pvalue))
