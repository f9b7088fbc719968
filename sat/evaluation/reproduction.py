"""Published numbers of a recipe beside those measured here, and whether they were reproduced.

A recipe's `published` says where its settings were read (`source`), what of them is not as
published (`not_as_published`, and trifles as `deviations`), and `numbers`, each an accuracy with
how its checkpoint was chosen. Only like is compared with like: the recipe's own network and code,
`last` with `last`, a checkpoint that held-out images chose with `best`. What was chosen on the test
set is shown, and no more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sat.errors import Refused
from sat.loggers.screen import table
from sat.rundir.result import AttackResult, RunResult

SEEDS = 3  # of a verdict


@dataclass(frozen=True)
class Number:
    """A published accuracy in percent, of `images` test images and the mean of `seeds` runs.

    `attack` is `clean`, `autoattack`, by whichever name its ensemble was measured, or a name of the
    recipe's evaluation. `checkpoint` is `last` or `best`, None where that could not be read;
    `chosen_on` says which images chose it: `held-out`, `test`, None for `last`. `spread` is the
    standard deviation over the seeds. `norm`, `eps`, `steps` and `step` are those of the attack, in
    1/255; one with `steps` is PGD on cross-entropy from uniform starts, `restarts` of them. `apart`
    is why it is not of this network and code.
    """

    attack: str
    percent: float
    checkpoint: str | None = None
    chosen_on: str | None = None
    images: int = 10_000
    seeds: int | None = None
    spread: float | None = None
    network: str | None = None
    norm: str = "linf"
    eps: float | None = None
    steps: int | None = None
    step: float | None = None
    restarts: int = 1
    source: str | None = None
    apart: str | None = None


@dataclass(frozen=True)
class Published:
    """What a recipe says of itself; `overridden` are the words of the command line that change it,
    `deviations` trifles in which it is not as published, which deny no verdict."""

    source: str
    network: str
    numbers: tuple[Number, ...]
    not_as_published: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()

    @classmethod
    def of(cls, plain: Any) -> "Published | None":
        """What stands in a run's config; None where it follows no recipe. Raises Refused for what
        is no such description."""
        if plain is None:
            return None
        _refuse_other(plain, cls, "published")
        numbers = plain.get("numbers") or []
        for number in numbers:
            _refuse_other(number, Number, "published.numbers")
        keys = ("not_as_published", "deviations", "overridden")
        lists = {key: tuple(plain.get(key) or ()) for key in keys}
        return cls(plain["source"], plain["network"], tuple(Number(**n) for n in numbers), **lists)


def _refuse_other(plain: Any, cls: Any, where: str) -> None:
    """Raises Refused for a mapping that makes no object of a dataclass."""
    known = [field.name for field in fields(cls)]
    needed = {"source", "network"} if cls is Published else {"attack", "percent"}
    if not isinstance(plain, Mapping) or (wrong := [k for k in plain if k not in known]):
        shown = wrong[0] if isinstance(plain, Mapping) else plain
        raise Refused(f"{where}: has no {shown}; allowed: {', '.join(known)}")
    if missing := sorted(needed - plain.keys()):
        raise Refused(f"{where}: lacks {' and '.join(missing)}")


# the verdict ----------------------------------------------------------------------------------


def agree(number: Number, here: Sequence[float]) -> bool:
    """Whether accuracies of several seeds agree with a published one: their mean is within two
    standard errors of the difference, which are of the seeds on either side and of the published
    number's test images. Where its seeds or their spread were not read, it is of one seed that
    spreads as these do."""
    p, spread = number.percent / 100, stdev(here)
    theirs = spread**2
    if number.seeds is not None and number.spread is not None:
        theirs = (number.spread / 100) ** 2 / number.seeds
    error = theirs + spread**2 / len(here) + p * (1 - p) / number.images
    return abs(fmean(here) - p) <= 2 * sqrt(error)


def verdict(number: Number, published: Published, here: Sequence[AttackResult]) -> str:
    """`reproduced`, `not reproduced`, or `no verdict: ...` with the first reason why none can be
    given; `here` is what was measured alike, one a seed."""
    if reason := _reason(number, published, here):
        return f"no verdict: {reason}"
    same = agree(number, [found.accuracy for found in here])
    return "reproduced" if same else "not reproduced"


def _reason(number: Number, published: Published, here: Sequence[AttackResult]) -> str | None:
    if published.not_as_published:
        return "not as published"
    if number.apart:
        return number.apart
    if number.chosen_on == "test":
        return "its checkpoint was chosen on the test set"
    if number.checkpoint is None:
        return "how its checkpoint was chosen could not be read"
    if published.overridden:
        return overridden(published, 1)
    if not here:
        return "not measured here"
    if other := next(filter(None, (_differs(number, found) for found in here)), None):
        return other
    if len(here) < SEEDS:
        return f"{len(here)} of the {SEEDS} seeds that it takes"
    return None


def overridden(published: Published, shown: int) -> str:
    """`attack.steps=2 and 3 more are not the recipe's`, with so many words shown."""
    words = published.overridden
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return f"{', '.join(words[:shown])}{more} {'are' if len(words) > 1 else 'is'} not the recipe's"


def _differs(number: Number, found: AttackResult) -> str | None:
    """How a measurement is another than the published one."""
    if found.images != number.images:
        return f"measured on {found.images:,} of {number.images:,} test images"
    if found.norm not in (None, number.norm):
        return f"measured in {found.norm}, where {number.norm} is published"
    asked = {key: getattr(number, key) for key in ("eps", "steps", "step")}
    own: dict[str, Any] = {key: getattr(found, key) for key in asked}
    if number.steps is not None and found.settings:
        asked |= {"attack": "PGD", "loss": "ce", "start": "uniform", "restarts": number.restarts}
        own |= {key: found.settings.get(key) for key in ("attack", "loss", "start", "restarts")}
        own["loss"] = own["loss"] if own["loss"] != "auto" else "ce"
    for key, value in asked.items():
        if value is not None and own[key] is not None and not _alike(value, own[key]):
            return f"measured with {key}={_plain(own[key])}, where {_plain(value)} is published"
    return None


def _alike(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, str) else abs(one - other) <= 1e-3


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


# what is told ---------------------------------------------------------------------------------


def beside(name: str, published: Published, result: RunResult, root: Path) -> str:
    """The recipe's numbers beside those of this run and of its other seeds under `root`."""
    results = seeds_of(result, root)
    lines = [f"recipe {name}: {published.network}; {published.source}"]
    lines += [f"not as published: {what}" for what in published.not_as_published]
    lines += [f"a known deviation: {what}" for what in published.deviations]
    rows, verdicts = [], dict[str, list[str]]()
    for number in published.numbers:
        here = [found for each in results if (found := _measured(number, each)) is not None]
        chosen = {"test": " (test set)", "held-out": " (held-out)"}.get(number.chosen_on or "", "")
        label = f"{number.checkpoint or 'unknown'}{chosen}, {number.attack}"
        rows.append([label, _published(number), _here(here)])
        verdicts.setdefault(verdict(number, published, here), []).append(label)
    lines += [table(["checkpoint, attack", "published", "here"], rows), ""]
    lines += [f"{'; '.join(labels)}: {said}" for said, labels in verdicts.items()]
    return "\n".join(lines)


def beside_card(published: Published, result: RunResult) -> str:
    """The numbers of the card of these very weights beside those measured here, and how far apart
    they are, in points; or why they can't be compared."""
    rows = []
    for number in published.numbers:
        found = _measured(number, result)
        here, apart = "-", "not measured"
        if found is not None:
            here = f"{100 * found.accuracy:.2f}"
            apart = _differs(number, found) or f"{100 * found.accuracy - number.percent:+.2f}"
        rows.append([number.attack, f"{number.percent:.2f}", here, apart])
    head = f"the card of {published.network}; {published.source}"
    return "\n".join([head, table(["attack", "card", "here", "difference"], rows)])


def seeds_of(result: RunResult, root: Path) -> list[RunResult]:
    """This run and those under `root` that differ from it in the seed alone, measured to the
    end."""
    found = {result.seed: result}
    for path in sorted(root.glob("*/result.json")):
        try:
            other = RunResult.read(path.parent)
        except Refused:  # damaged: whoever asks for that run is told
            continue
        if other and other.status == "finished" and other.configuration == result.configuration:
            found.setdefault(other.seed, other)
    return [found[seed] for seed in sorted(found)]


def _measured(number: Number, result: RunResult) -> AttackResult | None:
    """What stands beside a published number; of several measurements by AutoAttack one that is
    alike, then the package's own."""
    if (part := result.measured.get(number.checkpoint or "last")) is None:
        return None
    if number.attack != "autoattack":
        return part.accuracies.get(number.attack)
    own = [each for letter in (True, False) for each in part.robust.values()
           if each.is_autoattack(letter)]  # fmt: skip
    return min(own, key=lambda found: _differs(number, found) is not None, default=None)


def _published(number: Number) -> str:
    spread = "" if number.spread is None else f" +- {number.spread:.2f}"
    seeds = "" if number.seeds is None else f" ({number.seeds} seed{'s' * (number.seeds > 1)})"
    return f"{number.percent:.2f}{spread}{seeds}"


def _here(found: Iterable[AttackResult]) -> str:
    shares = [100 * each.accuracy for each in found]
    if not shares:
        return "-"
    spread = f" +- {stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{fmean(shares):.2f}{spread} ({len(shares)} seed{'s' * (len(shares) > 1)})"
