"""Adversarial training: the update, and the loop around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sat.draws import Draws, seed_of
from sat.errors import Diverged
from sat.hardware import DTYPES
from sat.schedule import Schedule, build_optimizer
from sat.surrogate import phase, phased


@dataclass(frozen=True)
class Plan:
    """How a run of `images` training images unfolds; every duration in updates."""

    schedule: Schedule
    images: int
    seed: int
    choices: dict[str, Any]  # what `auto` stands for
    validate_every: float = 1.0  # epochs
    image_cost: int = 0  # multiply-adds of one image's forward

    @property
    def steps(self) -> int:
        return self.schedule.steps(self.images)

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.steps // 30))

    def epoch(self, step: int) -> float:
        return step * self.schedule.batch_size / self.images

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps

    def validates(self, step: int) -> bool:
        """Once every `validate_every` epochs, and at the end."""
        done, before = (int(self.epoch(s) / self.validate_every + 1e-9) for s in (step, step - 1))
        return done > before or step == self.steps


class Trainer:
    """The model in training and all that a checkpoint must hold of it."""

    def __init__(self, model: nn.Module, attack: Any, objective: Any, plan: Plan):
        choices, schedule = plan.choices, plan.schedule
        self.model, self.attack, self.objective, self.plan = model, attack, objective, plan
        self.device = next(model.parameters()).device
        model.autocast = DTYPES[choices["precision"]]
        model.channels_last = choices["channels_last"]
        if model.channels_last:
            model.to(memory_format=torch.channels_last)
        # Frozen for the attack and not frozen for the update are two graphs of one compiled model.
        self.net = torch.compile(model) if choices["compile"] else model
        self.phased = phased(model)
        self.optimizer = build_optimizer(model, schedule)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=choices["precision"] == "fp16")
        self.average = None
        if schedule.ema:
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(model, decay=schedule.ema)
        self.step = 0
        self.totals = torch.zeros(
            2, device=self.device
        )  # loss and right answers since the last log
        self.seen = 0

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are measured: the average, where there is one."""
        return self.average.module if self.average else self.model

    def update(self, x: Tensor, y: Tensor) -> None:
        """One step on a batch x [B, C, H, W] in [0, 1], y [B]; asks nothing of the device."""
        rate = self.plan.schedule.rate(self.step, self.plan.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        draws = Draws(
            seed_of(self.plan.seed, "attack", self.step), torch.arange(len(x), device=x.device)
        )
        self.model.train()
        for rows in torch.arange(len(x)).tensor_split(self.plan.schedule.accumulate):
            if len(rows):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                self._backward(x[part], y[part], draws[part], len(rows) / len(x))
        if self.plan.schedule.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.schedule.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            self.average.update(self.model, step=self.step)

    def _backward(self, x: Tensor, y: Tensor, draws: Draws, share: float) -> None:
        with phase(self.phased, "inner"):
            x_adv = self.attack(self.net, x, y, draws)
        smoothing = self.plan.schedule.label_smoothing
        with phase(self.phased, "outer"):
            loss, logits = self.objective(self.net, x, x_adv, y, smoothing)
            self.scaler.scale(loss * share).backward()
        right = (logits.detach().argmax(1) == y).sum()
        self.totals += torch.stack([loss.detach() * len(x), right])
        self.seen += len(x)

    def progress(self) -> dict[str, float]:
        """Mean loss and adversarial accuracy since the last call; raises Diverged."""
        loss, right = (self.totals / max(1, self.seen)).tolist()
        self.check_finite()
        rate = self.plan.schedule.rate(max(0, self.step - 1), self.plan.images)
        self.totals.zero_()
        self.seen = 0
        return {
            "train/loss": loss,
            "train/adversarial_accuracy": right,
            "train/learning_rate": rate,
        }

    def check_finite(self) -> None:
        """Raises Diverged when the loss or a weight is no longer a finite number."""
        weights = torch.stack([p.detach().sum() for p in self.model.parameters()])
        if not (torch.isfinite(weights).all() and torch.isfinite(self.totals).all()):
            raise Diverged(
                f"the loss or a weight is not finite at step {self.step}; try a lower"
                " schedule.learning_rate, schedule.clip=1, or schedule.precision=fp32"
            )

    def state(self) -> dict[str, Any]:
        """For a checkpoint, readable with `weights_only=True`."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals,
            "seen": self.seen,
            "choices": self.plan.choices,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Stands again where `state` was taken."""
        self.step, self.seen = state["step"], state["seen"]
        self.totals.copy_(state["totals"])
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)


class Watcher(Protocol):
    """Who looks on while `fit` works: metrics, validation, checkpoints, and the wish to stop."""

    def log(self, trainer: Trainer) -> None: ...
    def validate(self, trainer: Trainer) -> None: ...
    def look(self, trainer: Trainer) -> None: ...


def fit(trainer: Trainer, batches: Iterator[tuple[Tensor, Tensor]], watcher: Watcher) -> None:
    """Trains on what is left of the plan; `batches` begins at the trainer's step.

    The watcher changes no weight and draws from no generator of the training.
    """
    for x, y in batches:
        trainer.update(x, y)
        if trainer.plan.logs(trainer.step):
            watcher.log(trainer)
        if trainer.plan.validates(trainer.step):
            watcher.validate(trainer)
        watcher.look(trainer)
