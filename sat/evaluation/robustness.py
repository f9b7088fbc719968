"""The robustness of any network, in one call: `sat.evaluate(model, images, labels)`."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sat.acceleration.precision import float32
from sat.attacks import PGD, AutoAttack, FastAutoAttack
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import ensemble_of
from sat.evaluation.alarm import Alarm
from sat.evaluation.masking_checks import masking_checks as look_for_masking
from sat.evaluation.masking_checks import square_alarm
from sat.evaluation.measure import accuracy
from sat.evaluation.store import digest_of
from sat.loggers.screen import percent, table
from sat.models.foreign import adopt, as_images, resting
from sat.rng import RowRng, seed_of
from sat.rundir.checkpoint import write_whole
from sat.rundir.result import Accuracy, MaskingChecks

CHUNK = 2**30  # bytes of images that are attacked at once
KEEP_EVERY = 20.0  # seconds
NAMED: dict[str, Callable[..., Any]] = {
    "strong": FastAutoAttack,
    "autoattack": AutoAttack,
    "pgd20": lambda eps, norm: PGD(eps, 20, norm=norm),
}


@dataclass(frozen=True)
class Robustness:
    """What an attack left of a network's right answers; printed, a table.

    `standing` bool [N]: right before and under the attack. `adversarial`, float32 like the images
    and on the CPU, holds a point of the ball that is misclassified where one was found, the image
    elsewhere. `felled` counts for each attack of an ensemble the images that fell to it first.
    `classes` is the robust accuracy of each class among the labels. `alarms` are reasons to doubt
    the numbers, those of `masking_checks` among them.
    """

    clean: Accuracy
    robust: Accuracy
    standing: Tensor
    adversarial: Tensor
    felled: dict[str, int]
    classes: dict[int, float]
    attack: dict[str, Any]
    masking_checks: MaskingChecks | None
    alarms: list[Alarm]
    ties: dict[str, int]
    seconds: float

    @property
    def worst_class(self) -> int:
        """The class of the lowest robust accuracy."""
        return min(self.classes, key=lambda label: self.classes[label])

    def __str__(self) -> str:
        images, worst = self.clean.images, self.worst_class
        rows = [["clean", "", percent(self.clean.as_json())]]
        left = self.clean.accuracy * images
        for name, felled in self.felled.items():
            left -= felled
            rows.append([name, str(felled), f"{left / images:.1%}".replace("%", " %")])
        rows.append(["robust", "", percent(self.robust.as_json())])
        how = f"{self.attack['name']}, {self.attack['norm']}, eps {self.attack['eps']:g}/255"
        lines = [f"{how}: {images:,} images in {self.seconds:.0f} s"]
        lines.append(table(["attack", "felled", "accuracy (95 % interval)"], rows))
        spread = (
            f"worst class {worst}: {self.classes[worst]:.1%}, best {max(self.classes.values()):.1%}"
        )
        lines.append(spread.replace("%", " %"))
        if ties := sum(self.ties.values()):
            lines.append(f"{ties} images count as wrong by a tie, where argmax says right")
        return "\n".join([*lines, *(f"! {alarm.name}: {alarm.message}" for alarm in self.alarms)])

    def as_json(self) -> dict[str, Any]:
        """Everything but the images, as plain values."""
        checks = self.masking_checks
        return {
            "clean": self.clean.as_json(), "robust": self.robust.as_json(), "felled": self.felled,
            "classes": {str(label): share for label, share in self.classes.items()},
            "attack": self.attack, "masking_checks": checks.as_json() if checks else None,
            "alarms": [alarm.as_json() for alarm in self.alarms], "ties": self.ties,
            "seconds": self.seconds,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes `path`.json, all numbers, and `path`.npz, `standing` and `adversarial`."""
        path = Path(path)
        text = json.dumps(self.as_json(), indent=1) + "\n"
        arrays = {"standing": self.standing.numpy(), "adversarial": self.adversarial.numpy()}
        write_whole(path.with_name(path.name + ".json"), lambda file: file.write(text.encode()))
        write_whole(path.with_name(path.name + ".npz"), lambda file: np.savez(file, **arrays))


def evaluate(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float | str = 8,
    norm: str = "linf",
    attack: Any = "strong",
    *,
    seed: int = 0,
    batch_size: int | None = None,
    masking_checks: int = 128,
    state: str | Path | None = None,
    progress: bool = True,
) -> Robustness:
    """Measures how robust `model` is on `images`.

    `model`: a module, or any function, from images in [0, 1] to logits [N, K]; modes, gradients and
    statistics are left as they were. It must normalise by itself. `images` [N, C, H, W], or flat
    [N, F], float in [0, 1]; `labels` [N]. Both may lie on any device; a function is asked on that
    of the images. `eps` is in 1/255, or has its unit written: `"0.25/255"`, `"0.5/1"`.

    `attack`: `strong`, AutoAttack's ensemble in less time (Croce and Hein 2020; see
    `sat.attacks.FastAutoAttack`), `autoattack`, as its authors publish it, `pgd20`, or an attack of
    `sat.attacks` with settings of its own, which `eps` and `norm` are not asked for. `batch_size`
    bounds the images of a forward. On `masking_checks` images, spread over the set, it is asked
    afterwards whether the numbers are to be believed (0: not asked).

    With `state` (a file) an evaluation that was killed goes on from there; a finished one is read.

    Raises ValueError, in one line, for images, labels or a model that it can't take, for a model
    that answers otherwise each time, and for a state of something else.
    """
    began = time.monotonic()
    attack, name = _attack(attack, eps, norm, batch_size)
    labels = _checked(images, labels)
    device = (
        next(model.parameters(), images).device if isinstance(model, nn.Module) else images.device
    )
    with resting(model):
        net = adopt(model, images, device).eval()
        x, y = as_images(images.detach()), labels.to(device)
        _check_classes(net, x, y, attack)
        ensemble = ensemble_of(attack, 1, batch_size or 256)
        kept = _State(state, model, images, labels, attack, seed, ensemble.names)
        outcomes, points = kept.outcomes, kept.points
        with float32(net), _told(kept, name, progress):
            rng = RowRng(seed_of(seed, "evaluation", 0), torch.arange(len(x), device=device))
            for rows in _chunks(x):
                part, mine = outcomes.part(rows), x[rows].to(device)
                part.survey(net, mine, y[rows])
                ensemble.run(net, mine, y[rows], rng[rows], part)
            checks = None
            if masking_checks:
                rows = torch.arange(0, len(x), -(-len(x) // masking_checks))
                stands = outcomes.robust[rows].to(device)
                at = rows.to(device)
                checks = look_for_masking(net, x[rows.to(x.device)].to(device), y[at], attack,
                                          rng[at], stands)  # fmt: skip
    adversarial = images.detach().cpu().clone()
    for image, point in points.items():
        adversarial[image] = point.view(adversarial.shape[1:])
    return _result(outcomes, labels.cpu(), adversarial, _settings(attack, name, seed), checks,
                   time.monotonic() - began + kept.before)  # fmt: skip


def _attack(attack: Any, eps: float | str, norm: str, batch_size: int | None) -> tuple[Any, str]:
    """The attack, and what it is called."""
    if isinstance(attack, str):
        if attack not in NAMED:
            known = ", ".join(NAMED)
            raise ValueError(f"attack={attack}: choose from {known}, or give one of sat.attacks")
        name, attack = attack, NAMED[attack](eps=eps, norm=norm)
    else:
        name = type(attack).__name__
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if not (callable(attack) and is_dataclass(attack)):
        raise ValueError(f"attack={attack}: is no attack; choose from {', '.join(NAMED)}")
    if getattr(attack, "batch_norm", "eval") != "eval":
        raise ValueError(
            f"attack.batch_norm={attack.batch_norm}: write eval: a verdict is of one image"
        )
    if batch_size and isinstance(attack, FastAutoAttack | AutoAttack):
        attack = replace(attack, batch_size=batch_size)
    return attack, name


def _checked(images: Any, labels: Any) -> Tensor:
    """The labels, int64. Raises ValueError for images or labels that are none."""
    if not isinstance(images, Tensor) or images.ndim not in (2, 4) or not len(images):
        what = list(images.shape) if hasattr(images, "shape") else type(images).__name__
        raise ValueError(f"images: {what}; give a tensor [N, C, H, W], or flat [N, F]")
    if not images.is_floating_point():
        raise ValueError(
            f"images: are {images.dtype}; give floats in [0, 1] (images.float() / 255)"
        )
    low, high = images.min().item(), images.max().item()
    if not (0 <= low and high <= 1):
        raise ValueError(
            f"images: lie in [{low:.3g}, {high:.3g}], not in [0, 1]; let the model normalise:"
            " torch.nn.Sequential(torchvision.transforms.Normalize(mean, std), model)"
        )
    labels = torch.as_tensor(labels)
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels: {labels.dtype} {list(labels.shape)}; give one whole number an image"
            f" [{len(images)}]"
        )
    return labels.long()


def _check_classes(net: nn.Module, x: Tensor, y: Tensor, attack: Any) -> None:
    few = x[:2].to(y.device).requires_grad_()
    with torch.enable_grad():
        logits = net(few)
    classes = logits.shape[1]
    if not (0 <= int(y.min()) and int(y.max()) < classes):
        raise ValueError(
            f"labels: lie in [{int(y.min())}, {int(y.max())}], and the model has {classes} classes"
        )
    blind = isinstance(attack, FastAutoAttack) and attack.attacks == ("square",)
    slope = None
    if logits.requires_grad:
        (slope,) = torch.autograd.grad(logits.sum(), few, allow_unused=True)
    if slope is None and not blind:
        raise ValueError(
            "model: its logits have no gradient by the images (no_grad, numpy or argmax inside?);"
            " without one only attack=FastAutoAttack(eps, norm, attacks=('square',)) measures it"
        )


def _chunks(x: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK // (x[0].numel() * 4))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def _settings(attack: Any, name: str, seed: int) -> dict[str, Any]:
    return {"name": name, **json.loads(json.dumps(asdict(attack), default=str)), "seed": seed}


def _result(
    outcomes: AttackOutcomes, labels: Tensor, adversarial: Tensor, settings: dict[str, Any],
    checks: MaskingChecks | None, seconds: float,
) -> Robustness:  # fmt: skip
    stands = outcomes.robust
    felled = {name: int((outcomes.fell == k).sum()) for k, name in enumerate(outcomes.names)}
    alarms = list(checks.alarms) if checks else []
    if (found := square_alarm([*felled], [*felled.values()], len(stands))) is not None:
        alarms = [alarm for alarm in alarms if alarm.name != found.name] + [found]
    classes = {k: stands[labels == k].float().mean().item() for k in labels.unique().tolist()}
    return Robustness(
        clean=Accuracy(**accuracy(outcomes.clean)), robust=Accuracy(**accuracy(stands)),
        standing=stands, adversarial=adversarial, felled=felled, classes=classes, attack=settings,
        masking_checks=checks, alarms=alarms, ties=outcomes.ties, seconds=round(seconds, 3),
    )  # fmt: skip


class _State:
    """The outcomes and the points of an evaluation, and the file that it goes on from."""

    def __init__(
        self, path: str | Path | None, model: Any, images: Tensor, labels: Tensor, attack: Any,
        seed: int, names: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.path = None if path is None else Path(path)
        self.outcomes, self.points = AttackOutcomes.new(names, len(images)), {}
        self.before, self.begun, self.cost = 0.0, time.monotonic(), 0.0
        if self.path is None:
            return
        weights = digest_of(model.state_dict()) if isinstance(model, nn.Module) else "a function"
        pixels = hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes())
        pixels.update(labels.cpu().numpy().tobytes())
        self.of = {"attack": json.dumps(_settings(attack, type(attack).__name__, seed)),
                   "model": weights, "images": pixels.hexdigest()}  # fmt: skip
        if self.path.exists():
            self._read(images)

    def _read(self, images: Tensor) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found = dict(file)
            other = [key for key, value in self.of.items() if str(found[key]) != value]
            kept = [torch.from_numpy(found[key]) for key in ("fell", "passed", "seconds", "tied")]
        except Exception as error:
            raise ValueError(f"state={self.path}: is no state of an evaluation ({error})") from None
        if other:
            raise ValueError(
                f"state={self.path}: is of another {' and '.join(other)}; name another file"
            )
        self.outcomes = AttackOutcomes(self.outcomes.names, *kept)
        self.before = float(found["wall"])
        pairs = zip(found["fallen"].tolist(), torch.from_numpy(found["points"]), strict=True)
        self.points = dict(pairs)

    def keep(self) -> None:
        """Writes all that is known."""
        if self.path is None:
            return
        start, outcomes = time.monotonic(), self.outcomes
        arrays = {
            key: getattr(outcomes, key).numpy() for key in ("fell", "passed", "seconds", "tied")
        }
        points = torch.stack([*self.points.values()]) if self.points else torch.empty(0)
        arrays |= {"fallen": np.array([*self.points], dtype=np.int64), "points": points.numpy()}
        wall = self.before + start - self.begun
        write_whole(self.path, lambda file: np.savez(file, **arrays, **self.of, wall=wall))
        self.cost = time.monotonic() - start


@contextmanager
def _told(kept: _State, name: str, progress: bool) -> Iterator[None]:
    """Shows a bar for each attack, gathers the points of falls, and keeps the state now and then;
    at the end, well or not, in any case."""
    outcomes, bars, since = kept.outcomes, [], time.monotonic()

    def begin(member: str, images: int) -> None:
        end()
        bars.append(tqdm(total=images, desc=f"{name}: {member}", unit=" images", leave=False,
                         disable=None if progress else True))  # fmt: skip

    def end() -> None:
        while bars:
            bars.pop().close()

    def changed(images: int) -> None:
        nonlocal since
        bars[0].update(images)
        if time.monotonic() - since > max(KEEP_EVERY, 20 * kept.cost):
            kept.keep()
            since = time.monotonic()

    def fallen(images: Tensor, points: Tensor) -> None:
        kept.points |= dict(zip(images.tolist(), points.detach().cpu(), strict=True))

    outcomes.begin, outcomes.changed, outcomes.fallen = begin, changed, fallen
    try:
        yield
    finally:
        end()
        kept.keep()
