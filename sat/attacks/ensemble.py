"""AutoAttack's standard ensemble (Croce and Hein 2020), organised for speed."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sat.acceleration.auto import bf16_pays
from sat.acceleration.precision import float32
from sat.attacks.apgd import APGD, cross_entropy, targeted_dlr
from sat.attacks.ball import Ball
from sat.attacks.fab import FAB
from sat.attacks.network import Network
from sat.attacks.outcomes import WRONG, AttackOutcomes, is_right
from sat.attacks.pgd import check_unit, frozen
from sat.attacks.pool import Pool, Search
from sat.attacks.square import Square
from sat.rng import RowRng, seed_of

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class FastAutoAttack:
    """The worst case, per image, of APGD-CE (100 steps, one start), targeted APGD-DLR and targeted
    FAB (9 targets, 100 steps each) and Square (5,000 queries).

    The attacks are those of `pyautoattack`'s standard version and run in the order of `attacks`.
    An image leaves with its first fall; one that stands has been through all of them. Targets are
    tried from the second-highest clean logit down; with K < 10 classes there are K - 1. Where
    bfloat16 pays and the model has an `autocast`, the search by gradients runs in it; only float32
    decides. Targets and queries that lead nowhere are given up early (see `strong.pool`);
    with `patience` None the attacks have their published length. `eps` is in 1/255.
    """

    eps: float = 8.0
    norm: Literal["linf", "l2"] = "linf"
    attacks: tuple[str, ...] = ATTACKS
    batch_size: int | Literal["auto"] = "auto"
    patience: float | None = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", tuple(self.attacks))
        check_unit("eps", self.eps)
        if self.norm == "linf" and self.eps > 255:
            raise ValueError(f"eps={self.eps}: is above 255/255, the whole range of a pixel")
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or not self.attacks:
            raise ValueError(f"attacks={list(self.attacks)}: choose from {', '.join(ATTACKS)}")
        if self.patience is not None and not 1 <= self.patience < math.inf:
            raise ValueError(f"patience={self.patience}: is 1 or above; to never give up, null")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        return self.attacks

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng | None = None):
        """x [N, C, H, W] in [0, 1] and y [N] -> an adversarial image where one was found, the clean
        one elsewhere; detached, float32. The model is left as it was."""
        x_adv = x.detach().clone()

        def keep(images: Tensor, points: Tensor) -> None:
            x_adv[images.to(x_adv.device)] = points.to(x_adv.device)

        self._run(model, x, y, rng, self._survey(model, x, y), keep)
        return x_adv

    def verdicts(self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng | None = None) -> Tensor:
        """For each of N images, int8 on the CPU: which of `attacks` felled it; STANDS, or WRONG."""
        outcomes = self._survey(model, x, y)
        self._run(model, x, y, rng, outcomes)
        return outcomes.fell

    def judge(
        self, model: nn.Module, x: Tensor, y: Tensor, rng: RowRng, outcomes: AttackOutcomes
    ) -> None:
        """As `sat.attacks.outcomes.Ensemble` promises; goes on with what the tally leaves open."""
        self._run(model, x, y, rng, outcomes)

    def _run(self, model, x, y, rng, outcomes, keep=lambda images, points: None) -> None:
        rng = rng or RowRng(0, torch.arange(len(x)))
        patience = math.inf if self.patience is None else self.patience
        with frozen(model, "eval"), float32(model):
            network = Network(model, self._precision(model), x[:8])
            targets = self._targets(network, x, y)
            for k, name in enumerate(self.attacks):

                def left(images: Tensor, points: Tensor | None) -> None:
                    if points is not None:
                        keep(images, points)
                    outcomes.decide(images, torch.full((len(images),), points is None))

                own = RowRng(seed_of(rng.key, name), rng.rows.cpu())
                pool = Pool(x, y, targets, own, left, self._size(x, network.device), patience)
                with outcomes.attack(k) as images:
                    pool.run(self._search(name, own.key), network, images.tolist())

    def _search(self, name: str, key: int) -> Search:
        ball = Ball(self.eps / 255, self.norm)
        if name == "apgd-ce":
            return APGD(ball, cross_entropy)
        if name == "apgd-t":
            return APGD(ball, targeted_dlr, rounds=9)
        return FAB(ball, rounds=9) if name == "fab-t" else Square(ball, key)

    def _survey(self, model: nn.Module, x: Tensor, y: Tensor) -> AttackOutcomes:
        """All images stand but those that are wrong when clean."""
        outcomes, device = AttackOutcomes.new(self.attacks, len(x)), _device(model)
        with frozen(model, "eval"), float32(model):
            for fell, part, labels in zip(
                outcomes.fell.split(256), x.split(256), y.split(256), strict=True
            ):
                fell[~is_right(model, part.to(device), labels.to(device)).cpu()] = WRONG
        return outcomes

    @torch.no_grad()
    def _targets(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The other classes of each image, the likeliest first [N, T]."""
        targets = []
        for part, labels in zip(x.split(256), y.split(256), strict=True):
            logits = network.exact(part.to(network.device))
            own = labels.to(network.device).clamp_min(0)  # -1: unknown, and never right
            others = logits.scatter(1, own[:, None], -math.inf)
            targets.append(others.argsort(1, descending=True)[:, : min(9, logits.shape[1] - 1)])
        return torch.cat(targets)

    def _size(self, x: Tensor, device: torch.device) -> int:
        """Images of a batch; no verdict depends on it. `auto` keeps a GPU busy, and fits it."""
        if self.batch_size != "auto":
            return self.batch_size
        if device.type == "cpu":
            return 64
        return 512 if x.shape[-1] <= 64 else 128

    @staticmethod
    def _precision(model: nn.Module) -> torch.dtype | None:
        return torch.bfloat16 if bf16_pays(_device(model).type) else None


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
