"""A study as its run directories tell it: one table an experiment, data set and setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Measure = tuple[str, str]  # the checkpoint, and `clean` or an attack's name: ("best", "pgd20")


@dataclass(frozen=True)
class Number:
    """An accuracy, as a fraction, over seeds.

    `low` and `high` are a 95 % interval: Student's of the mean over several seeds, Wilson's over
    the test images of one.
    """

    mean: float
    low: float
    high: float
    seeds: Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """A row minus the reference, as a fraction, with its 95 % interval and p.

    `test` is `seeds` (paired by seed, Student's t) or `images` (one seed each: McNemar's on the
    same images). `marked` says that p stays below 0.05 after Holm's correction over the table.
    """

    mean: float
    low: float
    high: float
    p: float
    test: str
    marked: bool


@dataclass(frozen=True)
class Row:
    """Runs of a table that differ in the seed alone."""

    label: str  # `elu alpha=1.2`
    keys: Mapping[str, Any]  # the value of each of the experiment's `rows`
    runs: Sequence[Path]  # run directories, in the order of their seeds
    numbers: Mapping[Measure, Number]
    differences: Mapping[Measure, Difference] = field(default_factory=dict)
    published: Mapping[str, float] | None = None  # percent, by `clean`, `robust`
    gradients: float = 0  # gradient computations of the training, per training image
    parameters: int = 0
    multiply_adds: int | None = None  # of one image's forward


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim: supports, contradicts or says nothing; and why."""

    text: str
    answer: str
    reason: str


@dataclass(frozen=True)
class Table:
    """One experiment on one data set in one setting (network, eps, schedule, test images)."""

    experiment: str
    dataset: str
    setting: str  # for people: `digits, eps 38/255, resnet10, 40 epochs`; unlike any other table's
    spec: Mapping[str, Any]  # the `report` node of the experiment's file
    rows: Sequence[Row]
    attack: str  # the strongest attack that all rows were measured with: drawn, and judged by
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """For files: the experiment and the data set, `activations-digits`."""
        return f"{self.experiment}-{self.dataset}"
