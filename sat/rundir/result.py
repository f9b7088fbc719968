"""`result.json`: what a run has come to, described here and nowhere else.

Accuracies are fractions from 0 to 1, seconds are of the wall clock, eps and step in 1/255. A value
that is no finite number is null. Keys that no field has are kept in `more` and written back. torch
is not imported: who reads results need not wait for it.
"""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from sat.errors import Refused
from sat.rundir.files import read_text
from sat.rundir.untrusted import check_plain, misfit

Share = Annotated[float, "share"]  # from 0 to 1
Count = Annotated[int, "count"]  # from 0 on
Choices = Annotated[dict[str, Any], "choices"]
ImageSet = Annotated[dict[str, Any], "image set"]
Settings = Annotated[dict[str, Any], "settings"]
Chosen = tuple[int | None, int | None]  # [limit, subset_seed] of an evaluation: which test images

_KINDS = {  # see `misfit`
    "choices": {"threads": "threads"},
    "image set": {"name": str, "classes?": int, "*": str | int},
    "settings": {"limit": int | None, "subset_seed": int | None},
}

LAST, BEST, LAST_RAW = CHECKPOINTS = ("last", "best", "last_raw")
# no names of attacks: a result holds them beside these
CLEAN, WORST, CORRUPTIONS = "clean", "worst_case", "corruptions"


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """Dataclasses that become plain JSON and are read back."""

    more: dict[str, Any] = field(default_factory=dict, repr=False)  # what no field here is called

    def as_json(self) -> dict[str, Any]:
        """Without fields that are None and need not be given."""
        told = {
            f.name: _plain(getattr(self, f.name))
            for f in fields(self)
            if f.name != "more" and (getattr(self, f.name) is not None or f.default is not None)
        }
        return {**told, **_plain(self.more)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError, which names the place, for a value of another kind."""
        own: Any = cls
        if wrong := misfit(plain, kind_of(own), ""):
            raise ValueError(wrong)
        return _built(own, plain)


@dataclass(frozen=True)
class Alarm(_Plain):
    """A reason to doubt a number, of a training (`step`, `epoch`) or of an evaluation."""

    name: str
    message: str  # what it means, and what to do
    numbers: dict[str, Any] = field(default_factory=dict)  # why
    step: int | None = None
    epoch: float | None = None
    checkpoint: str | None = None
    attack: str | None = None
    source: str | None = None  # "ensemble": its own counts; "masking_checks"


@dataclass(frozen=True, kw_only=True)
class Accuracy(_Plain):
    """Right images among those looked at."""

    accuracy: Share
    ci95: tuple[Share, Share]  # Wilson's interval
    images: Count


@dataclass(frozen=True, kw_only=True)
class ClassSpread(_Plain):
    """How unequal the classes are: the one of the lowest accuracy, the one of the highest, and the
    standard deviation over all."""

    worst: str
    lowest: Share
    best: str
    highest: Share
    deviation: Share


@dataclass(frozen=True, kw_only=True)
class Member(Accuracy):
    """An ensemble's attack: what it and those before it left."""

    felled: Count  # images that fell to it first
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AttackResult(Accuracy):
    """A checkpoint's accuracy under one attack; clean; or in the worst case over attacks."""

    subset: Chosen | None = None  # clean, worst case; an attack has it among its settings
    eps: float | None = None  # 1/255
    norm: str | None = None  # linf, l2, l1; of the worst case over several: union
    steps: int | None = None
    step: float | None = None  # 1/255
    seconds: float | None = None
    ties: Count | None = None  # images whose verdict is not argmax's: exact ties, logits not finite
    # An ensemble's attacks in their order; of the worst case the names it is taken over.
    attacks: list[str] | dict[str, Member] | None = None
    milder: list[list[str]] | None = None  # worst case: names over which it was no lower
    by_class: ClassSpread | None = None  # where every image's label is known
    settings: Settings | None = field(default=None, repr=False)  # all that decides a verdict
    environment: dict[str, Any] | None = field(default=None, repr=False)  # where it was measured

    @property
    def chosen(self) -> Chosen:
        """Which test images it is of."""
        settings = self.settings or {}
        return self.subset or (settings.get("limit"), settings.get("subset_seed"))

    def is_autoattack(self, letter: bool = True) -> bool:
        """Whether AutoAttack's standard version measured it; without `letter`, its four attacks and
        no other as `sat.attacks.FastAutoAttack` runs them, given up no sooner than usual."""
        told = self.settings or {}
        if letter:
            return told.get("attack") == "AutoAttack" and told.get("version") == "standard"
        whole = sorted(told.get("attacks") or ()) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        patient = (told.get("patience") or 2.0) >= 2.0
        return told.get("attack") == "FastAutoAttack" and whole and patient


def _worse(old: AttackResult, found: AttackResult) -> AttackResult:
    """Which of two worst cases stays: the newer one; but on the same images one that is milder
    gives way to the old one, and so does one over fewer attacks and images."""
    names, before = list(found.attacks or []), list(old.attacks or [])
    if old.images > found.images and {*names} <= {*before}:
        return old
    if old.chosen == found.chosen and old.images == found.images and old.accuracy < found.accuracy:
        return replace(old, milder=[*(old.milder or []), names])
    return found


@dataclass(frozen=True, kw_only=True)
class Point(Accuracy):
    """What an attack of this size and length, and all before it on a curve, leave."""

    eps: float  # 1/255
    steps: int


@dataclass(frozen=True, kw_only=True)
class CurveResult(_Plain):
    """A checkpoint's robust accuracy over the size or the length of an attack."""

    over: str  # eps, steps
    points: list[Point]
    classes: dict[str, list[Share]]  # each class's accuracy at each point, where labels are known
    clean: Share
    eps: float  # the attack's, 1/255
    norm: str
    images: Count
    seconds: float
    settings: Settings
    median: float | None = None  # 1/255: the size at which half of the images have fallen

    @property
    def chosen(self) -> Chosen:
        """Which test images it is of."""
        return (self.settings.get("limit"), self.settings.get("subset_seed"))


@dataclass(frozen=True, kw_only=True)
class CorruptionResult(_Plain):
    """A checkpoint's accuracy on a published set of corrupted images."""

    accuracy: Share  # the mean over types and severities
    types: dict[str, list[Share]]  # each type's accuracy at severities 1 to 5
    images: Count  # of each type and severity
    by_class: ClassSpread | None = None  # over all of them
    seconds: float
    limit: Count | None = None  # evaluation.limit
    digest: str | None = None  # of the set's place and files: another of its name is another


@dataclass(frozen=True, kw_only=True)
class MaskingChecks(_Plain):
    """Is a measured robustness to be believed? What was found on `images` of the test images."""

    images: Count
    seconds: float
    # A point for each amount of effort, with the accuracy that all attacks up to it leave, so that
    # it never rises: an Accuracy with "attack" ("clean", "pgd", "square") and its size.
    curve: list[dict[str, Any]]
    alarms: list[Alarm]
    attack: str = CLEAN  # whose number was looked at
    asked: Count = 0  # evaluation.masking_checks, which may be more than `images`
    subset: Chosen | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointResult(_Plain):
    """What is known of one checkpoint: when it was, and its accuracies on the test set."""

    step: int
    epoch: float
    selected_by: str | None = None  # of `best`: "robust accuracy on held-out training images"
    held_out: dict[str, Any] | None = None  # of `best`: its accuracies there, clean and robust
    of: str | None = None  # of `best`, where a run averages: it is the average, or the weights
    clean: AttackResult | None = None
    robust: dict[str, AttackResult] = field(default_factory=dict)
    curves: dict[str, CurveResult] = field(default_factory=dict)
    corruptions: dict[str, CorruptionResult] = field(default_factory=dict)  # by the set's name
    masking_checks: dict[str, MaskingChecks] = field(default_factory=dict)  # by attack

    @property
    def accuracies(self) -> dict[str, AttackResult]:
        """Clean and under each attack."""
        return ({} if self.clean is None else {CLEAN: self.clean}) | self.robust

    @property
    def measured(self) -> dict[str, AttackResult | CurveResult]:
        """Attacks and curves: all that has settings."""
        return {**self.robust, **self.curves}

    def with_attack(self, name: str, found: AttackResult) -> Self:
        """Keeps of two measurements under one name that on more images, or else the first; of two
        worst cases see `_worse`."""
        old = self.clean if name == CLEAN else self.robust.get(name)
        if old and name == WORST:
            found = _worse(old, found)
        elif old and found.images <= old.images:
            return self
        if name == CLEAN:
            return replace(self, clean=found)
        return replace(self, robust={**self.robust, name: found})

    def with_curve(self, name: str, found: CurveResult) -> Self:
        """Adds a curve as `with_attack` adds an attack."""
        if (old := self.curves.get(name)) and found.images <= old.images:
            return self
        return replace(self, curves={**self.curves, name: found})

    def with_masking_checks(self, found: MaskingChecks) -> Self:
        """Drops what is of fewer images than the one before."""
        if (old := self.masking_checks.get(found.attack)) and found.images < old.images:
            return self
        return replace(self, masking_checks={**self.masking_checks, found.attack: found})


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult(_Plain):
    """A run: what was asked for, where it ran, and what came out."""

    name: str  # of the run's directory
    hash: str  # of its identity
    identity: dict[str, Any]  # what decides its weights, by difference: see `sat.identity`
    status: str  # trained: the test set is not touched yet; finished; failed
    configuration: str | None = None  # a name that runs share which differ in the seed alone
    error: str | None = None  # of a failed run
    overrides: list[str] = field(default_factory=list)  # the command line
    seed: int
    environment: dict[str, str | int | None]  # of the training: versions, commit, device, command
    dataset: ImageSet  # name, classes, images of each split, fingerprints
    test_images: Count
    parameters: int | None = None
    activation: dict[str, Any] = field(default_factory=dict)  # option, arguments; swapped, gates
    attack: dict[str, Any] | None  # the training's: option, arguments
    objective: dict[str, Any] | None = None
    regulariser: dict[str, Any] | None = None
    weight_attack: dict[str, Any] | None = None
    choices: Choices  # what `auto` has chosen: threads, precision, ...
    steps: int  # updates taken
    skipped_steps: Count = 0  # something was not finite
    multiply_adds: float | None = None  # of one image's forward
    images: int  # seen in training
    wall_seconds: float
    images_per_second: float | None
    last: CheckpointResult
    best: CheckpointResult | None  # chosen by the held-out images
    last_raw: CheckpointResult | None = None  # `last` without the averaging of its weights
    alarms: list[Alarm] = field(default_factory=list)
    lengths: dict[str, Count] = field(default_factory=dict)  # bytes of the files that grow

    def __repr__(self) -> str:
        parts = [
            f"{which} {name} {100 * found.accuracy:.1f} %"
            for which, part in self.measured.items()
            for name, found in part.accuracies.items()
        ]
        return f"<{self.name}: {', '.join([self.status, *parts])}>"

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The result in a run directory; None where there is none. Raises Refused for one that is
        damaged, or not of this program."""
        if (plain := read_result(directory)) is None:
            return None
        try:
            return cls.from_json(plain)
        except ValueError as error:
            raise damaged(directory, error) from None

    @property
    def measured(self) -> dict[str, CheckpointResult]:
        """The checkpoints that have accuracies, `best` first."""
        parts = {name: getattr(self, name) for name in (BEST, LAST, LAST_RAW)}
        return {name: part for name, part in parts.items() if part and part.clean}

    def part(self, which: str) -> CheckpointResult:
        """What is known of a checkpoint; of `last_raw` at first when `last` was."""
        at = CheckpointResult(step=self.last.step, epoch=self.last.epoch)
        return getattr(self, which) or at

    def with_part(self, which: str, part: CheckpointResult) -> Self:
        changed: dict[str, Any] = {which: part}
        return replace(self, **changed)

    def with_alarms(self, which: str, attack: str, source: str, alarms: list[Alarm]) -> Self:
        """Has the alarms of a measurement in place of those that it raised before."""
        at = (which, attack, source)
        kept = [a for a in self.alarms if (a.checkpoint, a.attack, a.source) != at]
        new = [replace(a, checkpoint=which, attack=attack, source=source) for a in alarms]
        return replace(self, alarms=[*kept, *new])

    def same_weights_as(self, which: str) -> str | None:
        """The other of `last` and `best`, where it is of the same step, and as much averaged."""
        best = self.best
        if best is None or best.step != self.last.step or best.of == "weights":
            return None
        return {LAST: BEST, BEST: LAST}.get(which)


def read_result(directory: Path) -> dict[str, Any] | None:
    """`result.json` of a run directory as it stands there; None where there is none. Raises Refused
    for what is none."""
    path = directory / "result.json"
    try:
        check_plain(plain := json.loads(read_text(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RecursionError:
        raise damaged(directory, "it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise damaged(directory, getattr(error, "strerror", None) or error) from None
    if not isinstance(plain, dict) or not isinstance(plain.get("status"), str):
        raise Refused(f"{path}: is no result of this program; record.fresh=true starts over")
    return plain


def damaged(directory: Path, reason: object) -> Refused:
    """The refusal of a run's `result.json`."""
    return Refused(
        f"{directory / 'result.json'}: is damaged ({reason}); put a copy in its place, or start the"
        " run over with record.fresh=true"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, _Plain):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _hints(cls: Any, extras: bool = False) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=extras)


def _is_described(hint: Any) -> bool:
    return is_dataclass(hint)


@cache
def kind_of(cls: Any) -> Any:
    """What `misfit` takes for plain JSON of one of these classes."""
    return _kind(cls)


def _kind(hint: Any) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _KINDS.get(options[1], options[1])
    if _is_described(hint):
        given = {f.name: f for f in fields(hint) if f.name != "more"}
        needed = lambda f: f.default is MISSING and f.default_factory is MISSING  # noqa: E731
        return {
            name + "?" * (not needed(given[name])): _kind(kind)
            for name, kind in _hints(hint, extras=True).items()
            if name in given
        }
    if origin in (Union, types.UnionType):
        return tuple(_kind(option) for option in options)
    if origin is dict:
        return {"*": _kind(options[1])}
    if origin in (list, tuple):
        return [_kind(option) for option in options]
    return {float: int | float, Any: object}.get(hint, hint)


def _built(hint: Any, plain: Any) -> Any:
    """The value that plain JSON of this kind stands for."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if plain is None:
            return None
        return _built(next(o for o in options if _takes(o, plain)), plain)
    if _is_described(hint):
        hints = {key: kind for key, kind in _hints(hint).items() if key != "more"}
        given = {key: _built(kind, plain[key]) for key, kind in hints.items() if key in plain}
        return hint(**given, more={key: held for key, held in plain.items() if key not in hints})
    if origin is dict:
        return {key: _built(options[1], held) for key, held in plain.items()}
    if origin is list:
        return [_built(options[0], held) for held in plain]
    if origin is tuple:
        return tuple(_built(kind, held) for kind, held in zip(options, plain, strict=True))
    return plain


def _takes(hint: Any, plain: Any) -> bool:
    """Which of a union's kinds is meant: those of one union differ by their JSON type."""
    kind = get_origin(hint) or hint
    kind = {tuple: list, float: int | float}.get(kind, dict if _is_described(kind) else kind)
    return kind is not types.NoneType and isinstance(plain, kind)
