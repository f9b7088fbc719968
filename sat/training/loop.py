"""Adversarial training: the update, and the loop around it."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sat.acceleration.auto import DTYPES
from sat.acceleration.compilation import Warmup, compiled
from sat.acceleration.folding import Folded, fold
from sat.acceleration.precision import float32, lay_out
from sat.acceleration.recomputation import counted_once
from sat.activations.surrogate import phase, phased
from sat.distributed.world import ALONE, World, local_statistics
from sat.errors import Diverged, is_out_of_memory
from sat.rng import RowRng, generator_states, seed_of, set_generators
from sat.training.plan import Plan
from sat.training.schedule import build_optimizer, load_optimizer
from sat.training.skips import REMEDY, Relapse, Skips, copied, not_finite


class Trainer:
    """The model in training and all that a checkpoint must hold of it.

    Of several processes each has one, on its rows of the batches; they hold the same weights.
    """

    def __init__(
        self, model: nn.Module, attack: Any, objective: Any, plan: Plan, world: World = ALONE
    ):
        choices, schedule = plan.choices, plan.schedule
        self.model, self.attack, self.objective, self.plan = model, attack, objective, plan
        self.device = next(model.parameters()).device
        self.world = world
        self._split()
        model.autocast = DTYPES[choices["precision"]]
        lay_out(model, choices["channels_last"])
        self.average, self.sharding = None, None
        if schedule.ema:
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(model, decay=schedule.ema)
        if schedule.shard and world.size > 1:
            from sat.distributed import sharding  # takes a second to import

            self.sharding, self.whole = sharding, model
            self.model = model = copy.deepcopy(model)
            for shared in [model, *([self.average.module] if self.average else [])]:
                sharding.shard_(shared)
        self.net, self.warmup = self._compiled(model), Warmup(bool(choices["compile"]))
        self._folded: Folded | None = None  # what the attack searches, see `searched`
        self.phased = phased(model)
        fused = choices.get("fused", False) and not self.sharding
        self.optimizer = build_optimizer(model, schedule, fused)
        half = choices["precision"] == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.unscaled = torch.amp.GradScaler(self.device.type, enabled=False)
        self.step = 0
        # loss, right answers and images since the last log; the same of the step that is computed
        self.totals = torch.zeros(3, device=self.device)
        self._sums = torch.zeros(3, device=self.device)
        self.skips = Skips()
        # A CPU is never waited for, and a GradScaler waits in each step of its own.
        self._always_careful = half or self.device.type == "cpu"
        self._careful_until = 0
        # Lists, because a walk through the modules costs as much as all of the rest.
        self._parameters, self._moved = [*model.parameters()], [*model.buffers(), self.totals]
        self._kept = [tensor.clone() for tensor in self._moved]
        self.statistics = local_statistics(model)  # of batch norms that see own images alone
        self._recomputed = [*model.buffers()] if getattr(model, "recomputes", False) else []
        self._found = torch.zeros(1, device=self.device)  # above 0: a gradient was not finite
        self._one = torch.ones_like(self._found)
        self._held: tuple[list[Tensor], dict[str, Tensor]] | None = None
        self._sound: dict[str, Any] | None = None
        self.updating = self._applying = False

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are measured: the average, where there is one. Where they are shared out
        over processes they are put together, which all must ask for."""
        evaluated = self.average.module if self.average else self.model
        if self.sharding:
            self.sharding.copy_whole_(self.whole, evaluated)
            return self.whole
        return evaluated

    def update(self, x: Tensor, y: Tensor) -> None:
        """One step on a batch x [B, C, H, W] in [0, 1], y [B]: this process's rows, as
        `world.rows` gives them, less those that can't be read.

        A step whose loss or gradient is not finite is repeated in float32 where it was computed in
        less; else it changes nothing and is counted. Asks nothing of a GPU: see `settle`.
        """
        self.updating = True
        rate = self.plan.schedule.rate(self.step, self.plan.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._held = self._snapshot() if self.careful or self.splits else None
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
        """Whether memory that runs out splits batches further; a part has two images at least.
        Of several processes the others would not know."""
        schedule, alone = self.plan.schedule, self.world.size == 1
        return alone and schedule.accumulate == "auto" and schedule.batch_size >= 4 * self.parts

    def _split(self) -> None:
        rows = self.world.rows(self.plan.schedule.batch_size, self.parts)
        self.rows = [part.to(self.device) for part in rows]

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
            self._restore()
            self.plan.choices["accumulate"] = 2 * self.parts
            said = f"step {self.step}: out of memory; batches come in {self.parts} parts from here"
            self.skips.news.append(f"{said} on (schedule.accumulate=auto)")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradients(self, net: nn.Module, scaler: torch.amp.GradScaler, x: Tensor, y: Tensor):
        """Attacks, and leaves the gradients of the batch's mean loss; notes what is not finite."""
        key, done = seed_of(self.plan.seed, "attack", self.step), 0
        images = len(x)
        if self.sharding:  # FSDP takes the mean over processes; here it is that over images
            images = self.plan.schedule.batch_size / self.world.size
        if not self.model.training:  # half a millisecond on a CPU
            self.model.train()
        self._sums.zero_()
        for rows in self._parts(len(x)):
            part = slice(done, done := done + len(rows))
            attack_model = self.attack_model(x) if scaler is self.scaler else net
            with phase(self.phased, "inner"):
                x_adv = self.attack(attack_model, x[part], y[part], RowRng(key, rows))
            with phase(self.phased, "outer"):
                loss = self._loss(net, x[part], x_adv, y[part])
                with counted_once(self._recomputed):
                    scaler.scale(loss * (len(rows) / images)).backward()
        gradients = self._own([p.grad for p in self._parameters if p.grad is not None])
        self._join(gradients)
        self.totals += self._sums
        scaler.unscale_(self.optimizer)
        self._check(gradients)

    def attack_model(self, x: Tensor) -> nn.Module:
        """The network that the attack on x asks, with the weights of this moment: folded for eval
        mode, else that of the update, of which a compiler makes two graphs, frozen and not."""
        folds = self.plan.choices.get("fold", False) and not self.sharding
        if not folds or getattr(self.attack, "batch_norm", "train") != "eval":
            return self.net
        if self._folded is None:
            self._folded = fold(self.model, x[:2], self.model.autocast)
            self.phased += phased(self._folded.net)
            self._attacked = self._compiled(self._folded.net)
        self._folded.follow()
        return self._attacked

    def _compiled(self, net: nn.Module) -> nn.Module:
        plan = self.plan
        return compiled(net, plan.choices["compile"], lenient=plan.schedule.compile == "auto")

    def _check(self, gradients: list[Tensor]) -> None:
        """That of torch's GradScaler, with a scale of 1: one launch, 30 us on a CPU."""
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)

    def _parts(self, images: int) -> list[Tensor]:
        """The rows of each accumulation part; `images` are what could be read of all."""
        if len(self.rows) != self.parts:
            self._split()
        if images == sum(map(len, self.rows)):
            return self.rows
        rest = torch.cat(self.rows)[:images].tensor_split(len(self.rows))
        return [rows for rows in rest if len(rows)]

    def _join(self, gradients: list[Tensor]) -> None:
        """Makes means over the batch of means over this process's images."""
        if self.world.size == 1:
            return
        if self.sharding:  # FSDP has added them up, and each process looks at its own
            self._check(gradients)
            self.world.add_([self._found])
        means = self.statistics if self.sharding else [*gradients, *self.statistics]
        self.world.mean_(means, self._sums)

    def _loss(self, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        smoothing = self.plan.schedule.label_smoothing
        loss, logits = self.objective(net, x, x_adv, y, smoothing)
        right = (logits.detach().argmax(1) == y).sum()
        self._sums += torch.stack([loss.detach() * len(x), right, torch.full_like(right, len(x))])
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

    def _snapshot(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What a forward changes: statistics of batch norm, sums, and random generators."""
        torch._foreach_copy_(self._kept, self._moved)
        return self._kept, self.generators()

    def _restore(self) -> None:
        held, generators = self._held
        set_generators(generators, self.device)
        for now, before in zip(self._moved, held, strict=True):
            now.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)

    def _again(self, x: Tensor, y: Tensor) -> None:
        """A broken step once more, in float32 where that is more; else left out."""
        what = self._what()
        self._restore()
        self._found.zero_()
        if self.model.autocast is not None:
            with float32(self.model):  # the plain model: a compiled one would be compiled anew
                self._fitting_gradients(self.model, self.unscaled, x, y)
            if not self._broken():
                self._apply(self.unscaled)
                return self.skips.repeat(self.step, what)
            what = self._what()
            self._restore()
            self._found.zero_()
        self.skips.skip(self.step, what, x, y)

    def _what(self) -> str:
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        parts = self._own([*gradients.values()])
        return not_finite(self.totals, dict(zip(gradients, parts, strict=True)))

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
            self._sound = copied(self._state(), self._sound)

    def recover(self) -> bool:
        """After an exception: stands after the last whole step, or one before; whether it can."""
        if self.updating and self._sound is not None:
            self.load(copy.deepcopy(self._sound))
        elif self.updating and self._held is not None and not self._applying:
            self._restore()
            self._found.zero_()
        elif self.updating:
            return False
        self.updating = False
        return True

    def progress(self) -> dict[str, float]:
        """Mean loss and adversarial accuracy since the last call, where a step was taken; raises
        Diverged, and Relapse."""
        self.check_finite()
        self.skips.news += self.warmup.news(self.step)
        loss, right, images = self.totals.tolist()
        taken = {}
        if images:
            taken = {"train/loss": loss / images, "train/adversarial_accuracy": right / images}
        rate = self.plan.schedule.rate(max(0, self.step - 1), self.plan.images)
        self.totals.zero_()
        if self._sound is not None:  # who goes back there must not tell these sums again
            self._sound["totals"].zero_()
        return {**taken, "train/learning_rate": rate, **self.skips.metrics()}

    def check_finite(self) -> None:
        """Raises Diverged when the loss or a weight is no longer a finite number, and Relapse."""
        self.settle()
        weights = torch.stack([p.detach().sum() for p in self._own(self._parameters)])
        broken = (~torch.isfinite(weights)).any().float()
        if self.sharding:
            self.world.add_([broken])
        if broken or not torch.isfinite(self.totals).all():
            raise Diverged(f"the loss or a weight is not finite at step {self.step}; {REMEDY}")

    def state(self) -> dict[str, Any]:
        """For a checkpoint, readable with `weights_only=True`; where it is shared out over
        processes all must ask for it."""
        state = self._state()
        return self.sharding.put_together(state) if self.sharding else state

    def _state(self) -> dict[str, Any]:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals,
            "skips": self.skips.state(),
            "choices": self.plan.choices,
        }
        return {**state, **self.generators()}

    def generators(self) -> dict[str, Tensor]:
        return generator_states(self.device)

    def load(self, state: dict[str, Any]) -> None:
        """Stands again where `state` was taken."""
        self.step = state["step"]
        totals = state["totals"]
        if "seen" in state:  # in checkpoints of before, the images of the totals
            totals = torch.cat([totals, torch.tensor([float(state["seen"])])])
        self.totals.copy_(totals)
        self.skips.load(state.get("skips", {}))  # not in checkpoints of before
        self._found.zero_()
        self._load(self.model, state["model"])
        if self.average:
            self._load(self.average.module, state["average"])
        optimizer = state["optimizer"]
        if self.sharding:
            optimizer = self.sharding.share_out_optimizer(optimizer, self.optimizer)
        load_optimizer(self.optimizer, optimizer)
        self.scaler.load_state_dict(state["scaler"])
        set_generators(state, self.device)

    def _load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        if self.sharding:
            like = model.state_dict()
            weights = {k: self.sharding.share_out(v, like[k]) for k, v in weights.items()}
        model.load_state_dict(weights)

    def _own(self, tensors: list[Tensor]) -> list[Tensor]:
        """What this process holds of tensors that may be shared out."""
        return self.sharding.own(tensors) if self.sharding else tensors


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
