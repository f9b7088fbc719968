"""How a run unfolds: when it logs, when it validates, and when it ends."""

from dataclasses import dataclass
from typing import Any

from sat.training.average import Averaging
from sat.training.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """How a run of `images` training images unfolds; every duration in updates."""

    schedule: Schedule
    images: int
    seed: int
    choices: dict[str, Any]  # what `auto` stands for
    validate_every: float | None = 1.0  # epochs; None: nothing is held out
    image_cost: int = 0  # multiply-adds of one image's forward

    @property
    def steps(self) -> int:
        return self.schedule.steps(self.images)

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, from 0."""
        return self.schedule.rate(step, self.images)

    def momentum(self, step: int) -> float:
        """The momentum of update `step`, from 0."""
        return self.schedule.momentum_at(step, self.images)

    @property
    def averaging(self) -> Averaging | None:
        """How weights are averaged; None where they are not."""
        schedule = self.schedule
        if not schedule.averages:
            return None
        start = round((schedule.swa_start or schedule.ema_start) * self.steps)
        return Averaging(schedule.ema, schedule.ema_ramp, start)

    @property
    def log_every(self) -> int:
        """Updates; once an epoch at least."""
        return max(1, min(50, self.steps // 30, int(1 / self.epoch(1))))

    def epoch(self, step: int) -> float:
        return self.schedule.epoch(step, self.images)

    @property
    def epochs(self) -> float:
        """How many the run takes, as they are told: 40, 1.07. As asked for, which the last step
        rounds, but where a step is more than one of them, or all."""
        asked, total, one = self.schedule.epochs, self.epoch(self.steps), self.epoch(1)
        told = round(asked if one <= 1 and abs(total - asked) < 0.51 * one else total, 2)
        return int(told) if told == int(told) else told

    def told_epoch(self, step: int) -> float:
        return round(self.epoch(step), 4)

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps

    def validates(self, step: int) -> bool:
        """Once every `validate_every` epochs, and at the end."""
        if self.validate_every is None:
            return step == self.steps
        done, before = (int(self.epoch(s) / self.validate_every + 1e-9) for s in (step, step - 1))
        return done > before or step == self.steps
