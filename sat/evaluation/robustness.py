"""The robustness of any network, in one call: `sat.evaluate(model, images, labels)`."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from numbers import Integral
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat.acceleration.precision import float32
from sat.arguments import check_choices
from sat.attacks import PGD, Attack, AutoAttack, FastAutoAttack
from sat.attacks.base import is_setting
from sat.attacks.determinism import RANDOM, varies
from sat.attacks.outcomes import AttackOutcomes, Ensemble
from sat.attacks.series import ensemble_of
from sat.config import SYNONYMS, nearest
from sat.evaluation.inputs import checked
from sat.evaluation.masking_checks import InParts, square_alarm
from sat.evaluation.masking_checks import masking_checks as look_for_masking
from sat.evaluation.measure import accuracy
from sat.evaluation.settings import check_attack
from sat.evaluation.state import State, writing
from sat.evaluation.store import digest_of
from sat.evaluation.union import shares_by_class, union
from sat.identity import counts, defaults
from sat.loggers import screen
from sat.loggers.screen import percent, table
from sat.models.foreign import NO_GRADIENT, Foreign, adopt, as_images, has_gradient, resting
from sat.rng import RowRng, seed_of
from sat.rundir.checkpoint import write_whole
from sat.rundir.result import Accuracy, Alarm, MaskingChecks

CHUNK = 2**30  # bytes of images that are attacked at once
NAMED: dict[str, Callable[..., Attack]] = {
    "strong": FastAutoAttack,
    "autoattack": AutoAttack,
    "pgd20": lambda eps, norm: PGD(eps, 20, norm=norm),
}
_TURN = threading.RLock()


def _own_turn() -> None:
    """Has a forked process wait for none of its parent's threads, which it lacks."""
    global _TURN
    _TURN = threading.RLock()


os.register_at_fork(after_in_child=_own_turn)


@dataclass(frozen=True, eq=False)
class Robustness:
    """What an attack left of a network's right answers; printed, a table.

    `standing` bool [N]: right before and under the attack. `adversarial`, float32 like the images
    and on the CPU, holds a point of the ball that is misclassified where one was found, the image
    elsewhere. `felled` counts for each attack of an ensemble the images that fell to it first.
    `classes` is the robust accuracy of each class among the labels. `alarms` are reasons to doubt
    the numbers, those of `masking_checks` among them. Of several balls it is their union, `felled`
    counts by norm, and `norms` has what was found in each.
    """

    clean: Accuracy
    robust: Accuracy
    standing: Tensor
    felled: dict[str, int]
    classes: dict[int, float]
    masking_checks: MaskingChecks | None
    alarms: list[Alarm]
    ties: dict[str, int]
    adversarial: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    attack: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    norms: dict[str, "Robustness"] = field(default_factory=dict, repr=False)

    @property
    def worst_class(self) -> int:
        """The class of the lowest robust accuracy."""
        return min(self.classes, key=lambda label: self.classes[label])

    @property
    def deviation(self) -> float:
        """The standard deviation of the classes' robust accuracies."""
        return pstdev(self.classes.values())

    def __str__(self) -> str:
        images, worst = self.clean.images, self.worst_class
        rows = [["clean", "", percent(self.clean.as_json())]]
        left = self.clean.accuracy * images
        for name, felled in self.felled.items():
            left -= felled
            rows.append([name, str(felled), f"{left / images:.1%}".replace("%", " %")])
        rows.append(["robust", "", percent(self.robust.as_json())])
        sizes = {self.attack["norm"]: self.attack["eps"]} if not self.norms else self.attack["eps"]
        for norm, one in self.norms.items():
            rows.append([f"robust in {norm} alone", "", percent(one.robust.as_json())])
        sizes = "; ".join(f"{norm}, eps {eps:g}/255" for norm, eps in sizes.items())
        how = f"{self.attack['name']}, {sizes}"
        lines = [f"{how}: {images:,} images in {self.seconds:.0f} s"]
        lines += [table(["attack", "felled", "accuracy (95 %)"], rows), ""]
        low, high = self.classes[worst], max(self.classes.values())
        spread = (
            f"worst class {worst}: {low:.1%}, best {high:.1%},"
            f" standard deviation {self.deviation:.1%}"
        )
        lines.append(spread.replace("%", " %"))
        if ties := sum(self.ties.values()):
            lines.append(f"{ties} images count as wrong by a tie, where argmax says right")
        found = [one.masking_checks for one in (self, *self.norms.values()) if one.masking_checks]
        few = "not checked for masked gradients (masking_checks=0)"
        if found:
            named = ", ".join(dict.fromkeys(a.name for one in found for a in one.alarms))
            few = f"checked for masked gradients on {found[0].images:,} of {images:,} images:"
            few += f" {named or 'no alarm'}"
        lines.append(few)
        lines += [f"! {alarm.name}: {alarm.message}" for alarm in self.alarms]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the table where a notebook's cell ends with it."""
        printer.text(str(self))

    def as_json(self) -> dict[str, Any]:
        """Everything but the images, as plain values."""
        checks = self.masking_checks
        return {
            "clean": self.clean.as_json(), "robust": self.robust.as_json(), "felled": self.felled,
            "classes": {str(label): share for label, share in self.classes.items()},
            "worst_class": self.worst_class, "deviation": self.deviation,
            "attack": self.attack, "masking_checks": checks.as_json() if checks else None,
            "alarms": [alarm.as_json() for alarm in self.alarms], "ties": self.ties,
            "seconds": self.seconds,
            **({"norms": {key: one.as_json() for key, one in self.norms.items()}} if self.norms
               else {}),
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes `path`.json, all numbers, and `path`.npz, `standing` and `adversarial`."""
        path = Path(path)
        text = json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"
        arrays = {"standing": self.standing.numpy(), "adversarial": self.adversarial.numpy()}
        with writing(f"save: {path}"):
            write_whole(path.with_name(path.name + ".json"), lambda file: file.write(text.encode()))
            write_whole(path.with_name(path.name + ".npz"), lambda file: np.savez(file, **arrays))


@dataclass(frozen=True)
class Options:
    """What `evaluate` may be told beside the attack; see there."""

    seed: int = 0
    batch_size: int | None = None
    masking_checks: int = 128
    state: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_choices(self)
        size = 1 if self.batch_size is None else self.batch_size
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"batch_size={size}: must be a whole number from 1")
        if self.batch_size is not None:  # NumPy's, too
            object.__setattr__(self, "batch_size", int(self.batch_size))
        if self.masking_checks < 0:
            raise ValueError(f"masking_checks={self.masking_checks}: is a number of images, or 0")
        if not isinstance(self.state, str | Path | None) or self.state == "":
            raise ValueError(f"state={self.state}: must name a file")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Raises TypeError, as Python does, for a word that is none of them."""
        own = [each.name for each in fields(cls)]
        for word in given.keys() - {*own}:
            known = nearest(SYNONYMS.get(word, word), ["eps", "norm", "attack", *own])
            raise TypeError(f"evaluate: has no option {word}; {known}")
        return cls(**given)


@contextmanager
def _in_turn() -> Iterator[None]:
    """One evaluation after the other, as modes of a model and precision are shared by all threads;
    with gradients, whatever the caller has switched off."""
    with _TURN, torch.inference_mode(False), torch.enable_grad():
        yield


@_in_turn()
def evaluate(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float | str | Mapping[str, float | str] = 8,
    norm: str = "linf",
    attack: str | Attack = "strong",
    **options: Any,
) -> Robustness:
    """Measures how robust `model` is on `images`.

    `model`: a module, or any function, from images in [0, 1] to logits [N, K]; modes, gradients and
    statistics are left as they were. It must normalise by itself. `images` [N, C, H, W], or flat
    [N, F], float32 in [0, 1]; `labels` [N]. Both may lie on any device; a function is asked on that
    of the images. `eps` is in 1/255, or has its unit written: `"0.25/255"`, `"0.5/1"`; one for each
    norm, `{"linf": 8, "l2": "0.5/1", "l1": "12/1"}`, measures in each and gives their union.

    `attack`: `strong`, AutoAttack's ensemble in less time (Croce and Hein 2020; see
    `sat.attacks.FastAutoAttack`), `autoattack`, as its authors publish it, `pgd20`, or an attack of
    `sat.attacks` with settings of its own, which `eps` and `norm` are not asked for.

    Options: `seed`; `batch_size`, which bounds the images of a forward; `masking_checks`, on how
    many images it is asked whether the numbers are to be believed (128; 0: not asked); `progress`
    (bars, also in notebooks); `state`, a file from which a killed evaluation goes on, and a
    finished one is read (one that ended before `strong` asked twice may go on, too).

    Raises ValueError, in one line, for images, labels or a model that it can't take, for a model
    that answers otherwise each time, and a state of something else; TypeError for another option.
    """
    if isinstance(eps, Mapping):
        return _in_each(model, images, labels, eps, attack, options)
    began, asked = time.monotonic(), Options.of(options)
    attack, name = _attack(attack, eps, norm, asked.batch_size)
    model, (images, labels) = _not_compiled(model), checked(images, labels)
    device, size = _device(model, images), asked.batch_size or 256
    with screen.showing(asked.progress, "looking at the network"), resting(model):
        net = adopt(model, images, device).eval()
        x, y = as_images(images), labels.to(device)
        _check_classes(net, x, y, attack)
        rng = RowRng(seed_of(asked.seed, "evaluation", 0), torch.arange(len(x), device=device))
        ensemble = ensemble_of(attack, 1, size).of_set(lambda: (x, rng))
        kept = State(AttackOutcomes.new(ensemble.names, len(x)))
        settings = _settings(attack, name, asked.seed)
        with float32(net):
            if asked.state is not None:
                kept.follow(Path(asked.state), *_identity(net, x, labels, model, attack, settings))
            with _told(kept, name):
                kept.outcomes.survey(net, x, y, device, size)
                for each, rows in _parts(ensemble, kept.outcomes, x):
                    part, own = kept.outcomes.part(rows), x[rows].to(device)
                    each.run(net, own, y[rows], rng[rows], part)
            checks = None
            if every := asked.masking_checks and -(-len(x) // asked.masking_checks):
                few, stands = x[::every].to(device), kept.outcomes.robust[::every].to(device)
                parts = InParts(net, size)
                checks = look_for_masking(parts, few, y[::every], attack, rng[::every], stands)
    return replace(
        _result(kept.outcomes, labels.cpu(), checks), adversarial=kept.images(images),
        attack=settings, seconds=round(kept.before + time.monotonic() - began, 3),
    )  # fmt: skip


def _in_each(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor,
    sizes: Mapping[str, float | str], attack: str | Attack, options: dict[str, Any],
) -> Robustness:  # fmt: skip
    """What `evaluate` finds in the ball of each norm, together; a state file for each norm."""
    if not sizes or not isinstance(attack, str):
        raise ValueError(
            f"eps={dict(sizes)}: needs norms, each with its eps, and an attack by its name"
        )
    found, state = {}, options.get("state")
    for norm, eps in sizes.items():
        own = {} if state is None else {"state": f"{state}.{norm}"}
        found[norm] = evaluate(model, images, labels, eps, norm, attack, **options | own)
    return union(found, torch.as_tensor(labels).cpu())


def _not_compiled(model: Any) -> Any:
    """The module that torch.compile was given: each size of a batch would be compiled."""
    return model._orig_mod if type(model).__name__ == "OptimizedModule" else model


def _device(model: Any, images: Tensor) -> torch.device:
    held = [model.parameters(), model.buffers()] if isinstance(model, nn.Module) else []
    return next(chain(*held), images).device


def _attack(
    attack: str | Attack, eps: float | str, norm: str, batch_size: int | None
) -> tuple[Attack, str]:
    """The attack, and what it is called."""
    if isinstance(attack, str):
        if attack not in NAMED:
            known = ", ".join(NAMED)
            raise ValueError(f"attack={attack}: choose from {known}, or give one of sat.attacks")
        size = eps.item() if isinstance(eps, Tensor) and not eps.ndim else eps
        name, found = attack, NAMED[attack](eps=size, norm=norm)
    elif isinstance(attack, type):
        raise ValueError(f"attack: is the class {attack.__name__}; make an instance of it")
    else:
        name, found = type(attack).__name__, attack
    check_attack("attack", found)
    if batch_size and is_setting(found, "batch_size"):
        found = replace(found, batch_size=batch_size)  # type: ignore[type-var]
    return found, name


@torch.no_grad()
def _check_classes(net: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> None:
    few = x[:2].to(y.device)
    classes = net(few).shape[1]
    if not (0 <= int(y.min()) and int(y.max()) < classes):
        raise ValueError(
            f"labels: lie in [{int(y.min())}, {int(y.max())}], and the model has {classes} classes"
        )
    if classes < attack.fewest_classes:
        raise ValueError(
            f"attack: {type(attack).__name__} needs {attack.fewest_classes} classes, and the model"
            f" has {classes}; take attack='strong'"
        )
    attack.check_size(*x.shape[2:])
    with float32(net):
        blind = attack.asks_gradients and not has_gradient(net, few)
    if blind:
        raise ValueError(
            f"{NO_GRADIENT};"
            " without one it is measured by attack=Square(eps, queries, norm), and longer by"
            " attack=FastAutoAttack(eps, norm, attacks=('square',))"
        )


def _parts(
    ensemble: Ensemble, outcomes: AttackOutcomes, x: Tensor
) -> Iterator[tuple[Ensemble, slice]]:
    """Each pass of the ensemble, with the places of the images that are attacked at once."""
    size = max(1, CHUNK // (x[0].numel() * 4))
    for each in ensemble.passes(outcomes):
        for start in range(0, len(x), size):
            yield each, slice(start, start + size)


def _settings(attack: Any, name: str, seed: int) -> dict[str, Any]:
    return {"name": name, **json.loads(json.dumps(asdict(attack), default=str)), "seed": seed}


def _deciding(attack: Attack, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with those that move no number at their default, whatever they are."""
    kind: type = type(attack)
    usual = defaults(kind)
    return settings | {key: usual.get(key) for key in settings if not counts(kind, key, settings)}


def _result(outcomes: AttackOutcomes, labels: Tensor, checks: MaskingChecks | None) -> Robustness:
    stands = outcomes.robust
    felled = {name: int((outcomes.fell == k).sum()) for k, name in enumerate(outcomes.names)}
    alarms = list(checks.alarms) if checks else []
    if (found := square_alarm([*felled], [*felled.values()], len(stands))) is not None:
        alarms = [alarm for alarm in alarms if alarm.name != found.name] + [found]
    return Robustness(
        clean=Accuracy(**accuracy(outcomes.clean)),
        robust=Accuracy(**accuracy(stands)),
        standing=stands,
        felled=felled,
        classes=shares_by_class(stands, labels),
        masking_checks=checks,
        alarms=alarms,
        ties=outcomes.ties,
    )


@torch.no_grad()
def _identity(
    net: Foreign, x: Tensor, labels: Tensor, model: Any, attack: Attack, settings: dict[str, Any]
) -> tuple[dict[str, str], Tensor]:
    """What an evaluation is of. Of a model these are its weights; what else it does, and all that a
    function does, is told by its logits of a few images: none of one that gives others each time.
    """
    pixels = hashlib.sha256(x.cpu().contiguous().numpy().tobytes())
    pixels.update(labels.cpu().numpy().tobytes())
    weights = digest_of(model.state_dict()) if isinstance(model, nn.Module) else "a function"
    few = x[:8].to(net.place.device)
    answers = torch.empty(0) if varies(net, few) > RANDOM else net(few).cpu()
    deciding = json.dumps(_deciding(attack, settings))
    of = {"attack": deciding, "model": weights, "images": pixels.hexdigest()}
    return of, answers


@contextmanager
def _told(kept: State, name: str) -> Iterator[None]:
    """Shows a bar for each attack; keeps the state now and then, and at the end, well or not."""
    bars: list[screen.Progress] = []

    def begin(member: str, images: int) -> None:
        end()
        bars.append(screen.Progress(f"{name}: {member}", images))
        bars[0].show()

    def end() -> None:
        while bars:
            bars.pop().close()

    def changed(images: int) -> None:
        for bar in bars:
            bar.advance(images)
        kept.keep_now_and_then()

    kept.outcomes.begin, kept.outcomes.changed = begin, changed
    try:
        yield
    finally:
        end()
        kept.keep()
