"""One of several balls a batch: E-AT (Croce and Hein 2022, "Adversarial robustness against multiple
and single l_p-threat models via quick fine-tuning of robust classifiers")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sat.arguments import check_ball, check_choices
from sat.attacks.apgd import APGD, Searches, ascended, search_in
from sat.attacks.ball import SPARSE, Ball, Norm
from sat.attacks.base import Attack, Mode, risen, row_rng
from sat.attacks.losses import LossName
from sat.rng import RowRng


@dataclass(eq=False)
class Multi(Attack):
    """APGD in one of several balls, drawn for each batch in proportion to the share of images that
    it so far fooled there, at any point on its way; all are as likely until each has been drawn.

    `members` are the balls: their norms, each with its eps in 1/255. `eps` and `norm` are the first
    one's. The rest is as `sat.attacks.apgd.APGD` has it. The step costs what APGD in one ball does.
    """

    members: dict[str, float | str]
    steps: int = 10
    batch_norm: Mode = "eval"
    loss: LossName = "auto"
    start: Literal["uniform", "none"] = "none"
    eps_warmup: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        if len(self.members) < 2:
            raise ValueError(
                f"members={dict(self.members)}: must be two norms at least, each with its eps, such"
                " as {linf: 8, l1: 3060}; for one: attack=apgd"
            )
        sizes = {}
        for norm, eps in self.members.items():
            try:
                Ball(1.0, norm)  # type: ignore[arg-type]
                sizes[norm] = check_ball(eps, norm)
            except ValueError as error:
                raise ValueError(f"members.{norm}={eps}: {error}") from None
            if not sizes[norm]:
                raise ValueError(f"members.{norm}={eps}: must be above 0")
        self.members = {**sizes}
        assert self._alone
        # of each ball: images that stood under it, and images
        self._counts = torch.zeros(len(sizes), 2, dtype=torch.float64)
        self._chosen = torch.zeros(1, dtype=torch.int64)  # of this step
        self.counted = torch.zeros(2)  # of this step, as the two above

    @property
    def _alone(self) -> APGD:
        """The first member, whose checks are ours."""
        return APGD(self.eps, self.steps, self.norm, self.batch_norm, self.loss, self.start,
                    self.eps_warmup, self.label_smoothing)  # fmt: skip

    @property
    def norm(self) -> Norm:
        return next(iter(self.members))  # type: ignore[arg-type]

    @property
    def eps(self) -> float:
        return float(self.members[self.norm])

    @property
    def balls(self) -> list[Ball]:
        return [Ball(float(eps) / 255, norm) for norm, eps in self.members.items()]  # type: ignore[arg-type]

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        rng: RowRng | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] in [0, 1] and y [B] or [B, K] -> adversarial images, detached, float32."""
        rng, rise = row_rng(rng, x), risen(progress, self.eps_warmup)
        self._bring_to(x.device)
        self._chosen.copy_(self.choose(rng))
        searches = [
            search_in(Ball(ball.eps * rise, ball.norm), self.steps, self.start == "uniform", SPARSE)
            for ball in self.balls
        ]
        x_adv, stood = ascended(self, Searches(searches, self._chosen), model, x, y, rng)
        self.counted[0] += stood.sum()
        self.counted[1] += len(x)
        return x_adv

    def choose(self, rng: RowRng) -> Tensor:
        """Draws a ball: its number [1]."""
        stood, images = self._counts.unbind(1)
        wrong = (1 - stood / images).clamp(min=1e-9)
        shares = torch.where((images > 0).all(), wrong, torch.ones_like(wrong))
        below = rng.coin("member", shares.cumsum(0) / shares.sum())
        return (~below).sum().clamp(max=len(shares) - 1).view(1)

    def settle(self, x: Tensor, batch: int) -> None:
        """Begins to count, on the images' device."""
        self._bring_to(x.device)
        self.counted.zero_()

    def _bring_to(self, device: torch.device) -> None:
        self._counts, self._chosen = self._counts.to(device), self._chosen.to(device)
        self.counted = self.counted.to(device)

    def learn(self, sums: Tensor, broken: Tensor) -> None:
        """Adds what the step's attacks counted, unless it was skipped."""
        new = torch.where(broken, 0.0, self.counted).double()
        self._counts.index_add_(0, self._chosen, new[None])

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the memory of another attack."""
        counts = state.get("counts")
        if not isinstance(counts, Tensor) or counts.shape != self._counts.shape:
            raise ValueError("attack.counts are not those of these members")
        self._counts.copy_(counts)
