"""AutoAttack's standard ensemble (Croce and Hein 2020), organised for speed."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sat.acceleration.auto import bf16_pays
from sat.acceleration.precision import float32
from sat.arguments import Size, check_ball, check_choices
from sat.attacks.apgd import APGD, APGDSearch, cross_entropy
from sat.attacks.ball import Ball, Norm
from sat.attacks.base import Attack, frozen, row_rng
from sat.attacks.coarse import (
    ASTRAY,
    COARSE,
    LENGTHS,
    beside_slope,
    leads_astray,
    repeated,
    share_blind,
)
from sat.attacks.determinism import check_repeats
from sat.attacks.fab import FABSearch
from sat.attacks.losses import pma, targeted_dlr
from sat.attacks.network import Network
from sat.attacks.outcomes import AttackOutcomes, Ensemble, First, margins
from sat.attacks.pool import Pool, Search
from sat.attacks.shrinking import ShrinkingAPGDSearch
from sat.attacks.square import SquareSearch
from sat.attacks.targets import LOOKED_AT, TRIED, Choice, by_malt, ranked
from sat.rng import Key, RowRng
from sat.statistics import beyond

log = logging.getLogger("sat")
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
KNOWN = (*ATTACKS, "apgd-pma")
TARGETED = ("apgd-t", "fab-t")
AGAIN = ("fab-t", "square")  # where gradients are trapped
# Of what gradients left, fallen to Square: seen were some 1 % of honest networks, else 7 to 24.
TRAPPED = 0.01
BATCH = 10**9  # multiply-adds of a batch's forward on a CPU: a tenth of a second, or less
FLAT = 0.5  # of a few images have no gradient
MORE = 3  # times Square, where logits are coarse
ASCENT = 20  # steps on the margin, that tell how far gradients lead
DOUBTFUL = 0.15  # by how much an image's gradient may miss its slope: 0.09 at most, of 272 images
# Input gradients that an image costs: 8.5 times PGD-20, as measured, and a tenth more for what is
# tried again (5 % on digits, 14 % on a ResNet-18). Since Square is compared with an ascent the
# first 40 images of a ResNet-18 take 6.4 times PGD-20.
COST = 187
STARTS = 5  # more, of a targeted round that ended near a fall


@dataclass(frozen=True)
class FastAutoAttack(Ensemble, Attack):
    """The worst case, per image, of APGD-CE (100 steps, one start), targeted APGD-DLR and targeted
    FAB (9 targets, 100 steps each) and Square (5,000 queries). In L1, as published for it (Croce
    and Hein 2021): APGD-CE from five starts and APGD-DLR with five targets, through larger balls.

    The attacks are those of `pyautoattack`'s standard version and run in the order of `attacks`.
    An image leaves with its first fall; one that stands has been through all of them. Targets by
    which APGD comes near a fall are tried again, in float32, from further starts. `targets`
    are tried from the second-highest clean logit down (`likeliest`), or by how near they are
    (`malt`; `auto`: of more than ten classes; see `sat.attacks.targets`); with K < 10 classes there
    are K - 1. `attacks` may name `apgd-pma` too, APGD on the margin of probabilities. Where
    bfloat16 pays and the model has an `autocast`, the search by gradients runs in it; only float32
    decides. Targets and queries that lead nowhere are given up early (see `sat.attacks.pool`), and
    so is Square where a short ascent of the margin came clearly further. With `patience` None all
    have their published length, and nothing is tried again; where the gradient is not the slope of
    the logits, which is logged, nothing is given up. Where Square, as the last one, fells more
    than TRAPPED of what attacks by gradients left, all that still stands in the set goes through
    FAB and Square once more, of their published length; not in a validation of a training, which
    calls it as a plain attack, part by part. `eps` is in 1/255.

    Where the logits are of few values (rounding, quantisation, a saturated softmax), which is
    logged, the searches go by the last layer of real values, if it is in sight; nothing is given up
    and Square is run three times. Raises Refused for a network that answers otherwise each time.
    """

    eps: Size = 8.0
    norm: Norm = "linf"
    attacks: tuple[str, ...] = ATTACKS
    targets: Choice = "auto"
    batch_size: int | Literal["auto"] = field(default="auto", metadata={"identity": False})
    patience: float | None = 2.0

    batch_norm: ClassVar[str] = "eval"
    loss: ClassVar[str] = "ce"
    _first: ClassVar[First | None] = None  # else those of each call
    _second: ClassVar[bool] = False  # what the set is put through a second time

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", tuple(self.attacks))
        check_choices(self)
        object.__setattr__(self, "eps", check_ball(self.eps, self.norm))
        unknown = [name for name in self.attacks if name not in KNOWN]
        if unknown or not self.attacks:
            raise ValueError(f"attacks={list(self.attacks)}: choose from {', '.join(KNOWN)}")
        if self.patience is not None and not 1 <= self.patience < math.inf:
            raise ValueError(f"patience={self.patience}: is 1 or above; to never give up, null")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        return self.attacks

    @property
    def asks_gradients(self) -> bool:
        return self.attacks != ("square",)

    def gradients(self, classes: int) -> int:
        return COST + min(classes - 1, LOOKED_AT) * by_malt(self.targets, classes)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [N, C, H, W] in [0, 1] and y [N] -> an adversarial image where one was found, the clean
        one elsewhere; detached, float32. The model is left as it was."""
        x_adv, outcomes = x.detach().clone(), self._survey(model, x, y)

        def keep(images: Tensor, points: Tensor) -> None:
            x_adv[images.to(x_adv.device)] = points.to(x_adv.device)

        outcomes.fallen = keep
        self._decide(model, x, y, row_rng(rng, x), outcomes)
        return x_adv

    def verdicts(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng | None = None) -> Tensor:
        """Verdicts of N images, int16 on the CPU: which of `attacks` felled it, STANDS or WRONG."""
        outcomes = self._survey(model, x, y)
        self._decide(model, x, y, row_rng(rng, x), outcomes)
        return outcomes.fell

    def _decide(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Runs all passes, where these are all images of the set."""
        for each in self.passes(outcomes) if self._first is None else (self,):
            each.run(model, x, y, rng, outcomes)

    def of_set(self, first: Callable[[], First]) -> "FastAutoAttack":
        return self._with(_first=first())

    def _with(self, **known: object) -> "FastAutoAttack":
        own = replace(self)
        for name, value in ({"_first": self._first} | known).items():
            object.__setattr__(own, name, value)
        return own

    def passes(self, outcomes: AttackOutcomes) -> Iterator["FastAutoAttack"]:
        yield self
        left = int((outcomes.robust & (outcomes.passed < self._last)).sum())
        fallen = int((outcomes.fell == len(self.attacks) - 1).sum())  # to the last
        after = self.asks_gradients and self.attacks[-1] == "square"
        if after and left and beyond(fallen, fallen + left, TRAPPED):
            log.warning(
                "strong: Square fells %d images that attacks by gradients leave: these are trapped;"
                " the %d that stand are asked again, and nothing is given up", fallen, left,
            )  # fmt: skip
            yield self._with(_second=True)

    @property
    def _turns(self) -> list[tuple[int, int]]:
        """The attacks of this pass, each after its place among those of both."""
        count = len(self.attacks)
        if not self._second:
            return [(k, k) for k in range(count)]
        return [*enumerate((k for k in range(count) if self.attacks[k] in AGAIN), count)]

    @property
    def _last(self) -> int:
        """How many attacks an image has been through that none is left for."""
        return len(self.attacks) + sum(name in AGAIN for name in self.attacks)

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """Decides as `sat.attacks.outcomes.Ensemble` promises; goes on with what is open."""
        with frozen(model, "eval"), float32(model):
            first, draws = self._first or (x, rng)
            few = first[:8].to(_device(model))
            check_repeats(model, few)
            coarse = not self._second and self._coarse(model, few, draws)
            patience = self.patience
            if patience is None or self._second or coarse or self._astray(model, few, draws):
                patience = math.inf
            network = Network(model, self._precision(model), few, self._ball, coarse).of_set(few)
            size, targets = self._size(x, network), None
            for turn, k in self._turns:
                name = self.attacks[k]
                own, reached = rng.child(name).to("cpu"), None
                if name == "square" and self.eps and patience < math.inf:
                    reached = self._reached(k, network, x, y, own, outcomes)
                search = self._search(name, own.key, coarse, reached)
                with outcomes.attack(k, turn) as images:
                    aims = torch.zeros(len(y), search.rounds, dtype=torch.long)
                    if name in TARGETED:
                        if targets is None:  # of all that any of the targeted attacks will see
                            left = outcomes.robust.nonzero()[:, 0].split(size)
                            targets = self._targets(network, x, y, left)
                        aims = targets
                    back = name == "apgd-t" and self._tries_again
                    pool = Pool(x, y, aims, own, outcomes.leave, size, patience, gives_back=back)
                    if nearly := pool.run(search, network, images.tolist()):
                        self._again(pool, network, nearly)
            if math.isinf(patience):
                outcomes.passed[outcomes.robust] = self._last

    def _again(self, pool: Pool, network: Network, nearly: dict[int, list[int]]) -> None:
        """Tries the targets that brought images near a fall from further starts, in float32: with
        bfloat16 a search can't tell the two sides of the edge."""
        rounds = TRIED * STARTS
        aims = torch.full((len(pool.y), rounds), -1)
        for image, targets in nearly.items():
            aims[image, : len(targets) * STARTS] = torch.tensor(targets * STARTS)
        own = pool.rng.child("again")
        again = replace(pool, targets=aims, rng=own, spread=64, gives_back=False)
        search = APGDSearch(self._ball, targeted_dlr, rounds=rounds)
        again.run(search, network.in_float32(), [*nearly])

    def _reached(
        self, k: int, network: Network, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> Tensor | None:  # fmt: skip
        """Margins [N] to which a short ascent comes with each image that attack `k` has to decide;
        what falls on the way falls to the last APGD before it, and -inf stands for an image whose
        gradient is doubtful. None where there is no APGD."""
        if not (before := [j for j in range(k) if self.attacks[j].startswith("apgd")]):
            return None
        ascent, rng = APGD(self.eps, ASCENT, self.norm, loss="margin"), rng.child("reached")
        reached = torch.full((len(y),), -math.inf)
        images = (outcomes.robust & (outcomes.passed <= k)).nonzero()[:, 0]
        with outcomes.attack(before[-1]):
            for rows in filter(len, images.split(self._size(x, network))):
                own, label = (of[rows.to(of.device)].to(network.device) for of in (x, y))
                points = ascent(network.low, own, label, rng[rows].to(network.device))
                doubtful = beside_slope(network.fast, own, rng[rows], LENGTHS[0]) > DOUBTFUL
                margin = margins(network.logits(points)[0], label).masked_fill(doubtful, -math.inf)
                reached[rows] = margin.cpu()
                verdict = network.falls(points, own, label)
                if len(fell := (~verdict.right).nonzero()[:, 0]):
                    outcomes.leave(rows[fell.cpu()], points[fell], verdict.tied[fell])
        return reached.to(network.device)

    @property
    def _tries_again(self) -> bool:
        """Not with the published lengths, nor in L1, whose distances are of larger balls."""
        return self.patience is not None and self.norm != "l1"

    @property
    def _ball(self) -> Ball:
        return Ball(self.eps / 255, self.norm)

    def _coarse(self, model: nn.Module, few: Tensor, rng: RowRng) -> bool:
        """Whether the logits are of few values, or flat around most images; said if so."""
        if not (self.eps and len(few)):
            return False
        share = repeated(model, few, self._ball, rng[: len(few)])
        seen = f"{share:.0%} of the logits repeat another" if share > COARSE else ""
        if not seen and {*self.attacks} != {"square"} and (flat := share_blind(model, few)) > FLAT:
            seen = f"of {flat:.0%} of some images the logits have a gradient of 0"
        if seen:
            log.warning(
                "strong: %s: they are rounded, quantised or saturated, and hide from gradients"
                " what would fell an image; the search goes by the last real-valued layer where"
                " there is one, and runs Square %d times", seen, MORE,
            )  # fmt: skip
        return bool(seen)

    def _astray(self, model: nn.Module, few: Tensor, rng: RowRng) -> bool:
        """Whether gradients, where it goes by them, are not the slope of the logits; said if so."""
        if not (self.eps and len(few)) or {*self.attacks} == {"square"}:
            return False
        if (share := leads_astray(model, few, rng[: len(few)])) <= ASTRAY:
            return False
        log.warning(
            "strong: the gradient is not the slope of the logits, but off by %s of it: it leads"
            " astray, and nothing is given up", f"{share:.0%}",
        )  # fmt: skip
        return True

    def _search(self, name: str, key: Key, coarse: bool, reached: Tensor | None) -> Search:
        ball, l1 = self._ball, self.norm == "l1"
        ascent = ShrinkingAPGDSearch if l1 else APGDSearch
        if name == "apgd-ce":
            return ascent(ball, cross_entropy, rounds=5 if l1 else 1)
        if name == "apgd-pma":
            return ascent(ball, lambda logits, y, target: pma(logits, y))
        if name == "apgd-t":
            return ascent(ball, targeted_dlr, rounds=5 if l1 else 9)
        if name == "fab-t":
            return FABSearch(ball, rounds=9)
        return SquareSearch(ball, key, MORE if coarse else 1, reached=reached)

    def _survey(self, model: nn.Module, x: Tensor, y: Tensor) -> AttackOutcomes:
        """All images stand but those that are wrong when clean."""
        outcomes, device = AttackOutcomes.new(self.attacks, len(x)), _device(model)
        with frozen(model, "eval"), float32(model):
            outcomes.survey(model, x, y, device)
        return outcomes

    def _targets(self, network: Network, x: Tensor, y: Tensor, batches: Iterable[Tensor]) -> Tensor:
        """At most nine classes of each image in `batches` [N, T], on the CPU; -1 for none."""
        targets = torch.full((len(y), TRIED), -1)
        for rows in batches:
            part, labels = (of[rows.to(of.device)].to(network.device) for of in (x, y))
            found = ranked(self.targets, network.exact, part, labels, self.norm)
            targets[rows, : found.shape[1]] = found.cpu()
        return targets

    def _size(self, x: Tensor, network: Network) -> int:
        """Images of a batch; no verdict depends on it. `auto` keeps a GPU busy, and fits it; on a
        CPU a step takes a tenth of a second or less, of which Python's part is small."""
        if self.batch_size != "auto":
            return self.batch_size
        if network.device.type == "cpu":
            cost = network.multiply_adds(x[:1])
            return min(max(BATCH // max(cost, 1), 64), 512)
        return 512 if x.shape[-1] <= 64 else 128

    @staticmethod
    def _precision(model: nn.Module) -> torch.dtype | None:
        return torch.bfloat16 if bf16_pays(_device(model).type) else None


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
