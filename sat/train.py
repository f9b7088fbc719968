"""Adversarial training: the update, and the loop around it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sat.draws import Draws, seed_of
from sat.errors import Diverged
from sat.faults import REMEDY, Relapse, Skips, is_out_of_memory, not_finite
from sat.hardware import DTYPES
from sat.precision import float32
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
        half = choices["precision"] == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.unscaled = torch.amp.GradScaler(self.device.type, enabled=False)
        self.average = None
        if schedule.ema:
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(model, decay=schedule.ema)
        self.step = 0
        # loss and right answers since the last log
        self.totals = torch.zeros(2, device=self.device)
        self.seen = 0
        self.skips = Skips()
        # A CPU is never waited for, and a GradScaler waits in each step of its own.
        self._always_careful = half or self.device.type == "cpu"
        self._careful_until = 0
        # Lists, because a walk through the modules costs as much as all of the rest.
        self._parameters, self._moved = [*model.parameters()], [*model.buffers(), self.totals]
        self._found = torch.zeros(1, device=self.device)  # above 0: a gradient was not finite
        self._one = torch.ones(1, device=self.device)
        self._held: tuple[list[Tensor], int, dict[str, Tensor]] | None = None
        self._sound: dict[str, Any] | None = None
        self.updating = self._applying = False

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are measured: the average, where there is one."""
        return self.average.module if self.average else self.model

    def update(self, x: Tensor, y: Tensor) -> None:
        """One step on a batch x [B, C, H, W] in [0, 1], y [B].

        A step whose loss or gradient is not finite is repeated in float32 where it was computed in
        less; else it changes nothing and is counted. Asks nothing of a GPU: see `settle`.
        """
        self.updating = True
        rate = self.plan.schedule.rate(self.step, self.plan.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._held = self._hold() if self.careful or self.splits else None
        self._fitting_gradients(self.net, self.scaler, x, y)
        if self.careful and self._broken():
            self._again(x, y)
        else:
            self._apply(self.scaler)
            self.skips.running = 0
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.updating = False

    @property
    def parts(self) -> int:
        """Into how many a batch is split; not in the choices of earlier checkpoints."""
        return self.plan.choices.get("accumulate", self.plan.schedule.parts)

    @property
    def splits(self) -> bool:
        """Whether memory that runs out splits batches further; a part has two images at least."""
        schedule = self.plan.schedule
        return schedule.accumulate == "auto" and schedule.batch_size >= 4 * self.parts

    def _fitting_gradients(
        self, net: nn.Module, scaler: torch.amp.GradScaler, x: Tensor, y: Tensor
    ) -> None:
        """The gradients, in twice as many parts from here on where memory runs out and may."""
        while True:
            try:
                return self._gradients(net, scaler, x, y)
            except (RuntimeError, MemoryError) as error:
                if not (self.splits and is_out_of_memory(error)):
                    raise
            self._put_back()
            self.plan.choices["accumulate"] = 2 * self.parts
            said = f"step {self.step}: out of memory; batches come in {self.parts} parts from here"
            self.skips.news.append(f"{said} on (schedule.accumulate=auto)")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradients(self, net: nn.Module, scaler: torch.amp.GradScaler, x: Tensor, y: Tensor):
        """Attacks, and leaves the gradients of the batch's mean loss; notes what is not finite."""
        draws = Draws(
            seed_of(self.plan.seed, "attack", self.step), torch.arange(len(x), device=x.device)
        )
        self.model.train()
        for rows in torch.arange(len(x)).tensor_split(self.parts):
            if len(rows):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                share = len(rows) / len(x)
                with phase(self.phased, "inner"):
                    x_adv = self.attack(net, x[part], y[part], draws[part])
                with phase(self.phased, "outer"):
                    loss = self._loss(net, x[part], x_adv, y[part])
                    scaler.scale(loss * share).backward()
        scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # The check of torch's GradScaler, here with a scale of 1: one launch, 30 us on a CPU.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)

    def _loss(self, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        smoothing = self.plan.schedule.label_smoothing
        loss, logits = self.objective(net, x, x_adv, y, smoothing)
        right = (logits.detach().argmax(1) == y).sum()
        self.totals += torch.stack([loss.detach() * len(x), right])
        self.seen += len(x)
        return loss

    def _apply(self, scaler: torch.amp.GradScaler) -> None:
        self._applying = True
        if self.plan.schedule.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.schedule.clip)
        scaler.step(self.optimizer)
        if self.average:
            self.average.update(self.model, step=self.step + 1)
        self._applying = False

    # steps that are not finite ------------------------------------------------------------------

    @property
    def careful(self) -> bool:
        """Whether each step is looked at before it is applied: where that costs no waiting, or
        where one of these steps is known to be broken."""
        return self._always_careful or self.step < self._careful_until

    def _broken(self) -> bool:
        """Whether a gradient or the loss was not finite since this was last asked."""
        return bool(self._found.item() or not torch.isfinite(self.totals).all())

    def _hold(self) -> tuple[list[Tensor], int, dict[str, Tensor]]:
        """What a forward changes: statistics of batch norm, sums, and random generators."""
        held = [tensor.clone() for tensor in self._moved]
        return held, self.seen, self._generators()

    def _put_back(self) -> None:
        held, self.seen, generators = self._held
        self._set_generators(generators)
        for now, before in zip(self._moved, held, strict=True):
            now.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)

    def _again(self, x: Tensor, y: Tensor) -> None:
        """A broken step, once more in float32 where that is more; else left out."""
        what = self._what()
        self._put_back()
        self._found.zero_()
        if self.model.autocast is not None:
            with float32(self.model):  # the plain model: a compiled one would be compiled anew
                self._fitting_gradients(self.model, self.unscaled, x, y)
            if not self._broken():
                self._apply(self.unscaled)
                return self.skips.repeat(self.step, what)
            what = self._what()
            self._put_back()
            self._found.zero_()
        self.skips.skip(self.step, what, x, y)

    def _what(self) -> str:
        return not_finite(self.totals, {n: p.grad for n, p in self.model.named_parameters()})

    def settle(self) -> None:
        """Makes sure of all steps up to now; to be called before they are shown or kept.

        On a GPU, where a look at each step would have the device wait for the host, a step that is
        not finite is found here: the trainer goes back to where this was called last, raises
        Relapse, and looks at each of these steps when they come again.
        """
        if self._always_careful:
            return
        if self._broken():
            self._careful_until = self.step
            self.load(copy.deepcopy(self._sound))
            raise Relapse
        if self._sound is None or self._sound["step"] != self.step:
            self._sound = copy.deepcopy(self.state())

    def recover(self) -> bool:
        """After an exception: stands after the last whole step, or one before; whether it can."""
        if self.updating and self._sound is not None:
            self.load(copy.deepcopy(self._sound))
        elif self.updating and self._held is not None and not self._applying:
            self._put_back()
            self._found.zero_()
        elif self.updating:
            return False
        self.updating = False
        return True

    def progress(self) -> dict[str, float]:
        """Mean loss and adversarial accuracy since the last call, where a step was taken; raises
        Diverged, and Relapse."""
        self.check_finite()
        loss, right = (self.totals / max(1, self.seen)).tolist()
        taken = {"train/loss": loss, "train/adversarial_accuracy": right} if self.seen else {}
        rate = self.plan.schedule.rate(max(0, self.step - 1), self.plan.images)
        self.totals.zero_()
        self.seen = 0
        if self._sound is not None:  # who goes back there must not tell these sums again
            self._sound["totals"].zero_()
            self._sound["seen"] = 0
        return {**taken, "train/learning_rate": rate, **self.skips.metrics()}

    def check_finite(self) -> None:
        """Raises Diverged when the loss or a weight is no longer a finite number, and Relapse."""
        self.settle()
        weights = torch.stack([p.detach().sum() for p in self.model.parameters()])
        if not (torch.isfinite(weights).all() and torch.isfinite(self.totals).all()):
            raise Diverged(f"the loss or a weight is not finite at step {self.step}; {REMEDY}")

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
            "skips": self.skips.state(),
            "choices": self.plan.choices,
        }
        return {**state, **self._generators()}

    def _generators(self) -> dict[str, Tensor]:
        """The states of torch's global generators, which dropout draws from."""
        states = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_generators(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["rng"])
        if "rng_cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["rng_cuda"], self.device)

    def load(self, state: dict[str, Any]) -> None:
        """Stands again where `state` was taken."""
        self.step, self.seen = state["step"], state["seen"]
        self.totals.copy_(state["totals"])
        self.skips.load(state.get("skips", {}))  # not in checkpoints of before
        self._found.zero_()
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self._set_generators(state)


class Watcher(Protocol):
    """Who looks on while `fit` works: metrics, validation, checkpoints, and the wish to stop."""

    def log(self, trainer: Trainer) -> None: ...
    def validate(self, trainer: Trainer) -> None: ...
    def look(self, trainer: Trainer) -> None: ...


def fit(
    trainer: Trainer, stream: Callable[[int], Iterator[tuple[Tensor, Tensor]]], watcher: Watcher
) -> None:
    """Trains on what is left of the plan; `stream` gives the batches from a step on.

    The watcher changes no weight and draws from no generator of the training.
    """
    trainer.settle()
    while trainer.step < trainer.plan.steps:
        try:
            for x, y in stream(trainer.step):
                trainer.update(x, y)
                if trainer.plan.logs(trainer.step):
                    watcher.log(trainer)
                if trainer.plan.validates(trainer.step):
                    trainer.settle()
                    watcher.validate(trainer)
                watcher.look(trainer)
        except Relapse:
            continue
