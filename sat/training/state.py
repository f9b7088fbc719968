"""What a training holds: the network and all that a checkpoint must keep of it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.auto import DTYPES
from sat.acceleration.compilation import Warmup, compiled
from sat.acceleration.folding import Folded, Unfolded, fold
from sat.acceleration.graph import Graph
from sat.acceleration.precision import lay_out
from sat.acceleration.processor import leave_onednn
from sat.activations.surrogate import phased
from sat.distributed import ALONE, Replicas, World, local_statistics, normed_by_attack
from sat.errors import Diverged
from sat.objectives import Method
from sat.rng import StepKey, generator_states, seed_of, set_generators
from sat.training.average import Average
from sat.training.learning import Learners, Stateful
from sat.training.metrics import Metrics, Totals
from sat.training.norm_start import NormStart
from sat.training.optimizer import (
    build_optimizer,
    load_optimizer,
    set_momentum,
    set_rate,
    skips_on_device,
)
from sat.training.parts import Parts
from sat.training.perturbation import Perturbation
from sat.training.plan import Plan
from sat.training.skips import REMEDY, Skips, Statistics


class TrainState:
    """The network in training and what goes with it; `sat.training.step.update` moves it.

    Of several processes each has one, on its rows of the batches; they hold the same weights.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        plan: Plan,
        world: World = ALONE,
        metrics: Metrics | None = None,
    ):
        choices, schedule = plan.choices, plan.schedule
        self.plan, self.world = plan, world
        method = copy.deepcopy(method)  # a memory belongs to one training
        self.attack, self.objective = method.attack, method.objective
        self.regulariser, self.weight_attack = method.regulariser, method.weight_attack
        members = self.attack, self.objective, self.regulariser, self.weight_attack
        self.learners = Learners(members, world)
        self.replayed = self.attack if self.attack.replays else None
        self.metrics = metrics or Metrics()
        self.device = device = next(model.parameters()).device
        model.autocast = DTYPES[choices["precision"]]
        lay_out(model, choices["channels_last"])
        leave_onednn(model)
        self.average = Average(model, plan.averaging) if plan.averaging else None
        self.replicas = _replicas(world, model, schedule.shard)
        self.model = model = self.replicas.place(model)
        if self.average:
            self.average.module = self.replicas.place(self.average.module)
        self.net = self._compiled(model)
        self._folds = bool(choices.get("fold"))
        self._folded: Folded | Unfolded | None = None  # what the attack asks, see `attack_model`
        self.phased = phased(model)
        self.optimizer = build_optimizer(model, schedule, bool(choices.get("fused")))
        self.skips_on_device = skips_on_device(self.optimizer)
        self.scaler = self._new_scaler()
        self.step, self.updating, self.applying = 0, False, False
        # Of the step that is taken: its share of all, in [0, 1), its number, the key of its noise.
        self.progress = torch.zeros((), device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.key = StepKey(device)
        self.graph = Graph(bool(choices.get("graph")), self.key, self._tell, "a step", self._clear)
        # Its sums: loss, right answers, the regulariser's error, images.
        self.sums = torch.zeros(4, device=device)
        self.found = torch.zeros((), device=device)  # 1: one of them, or a gradient, is not finite
        self.totals, self.skips = Totals(device), Skips(device, self.replays)
        self.warmup = Warmup(bool(choices["compile"]))
        self.news: list[str] = []
        self._one = torch.ones((), device=device)
        # Lists, because a walk through the modules costs as much as all of the rest.
        self.parameters, buffers = [*model.parameters()], [*model.buffers()]
        self.statistics = Statistics(buffers)
        self.norm_start = NormStart(model, schedule.norm_start)
        self.perturbation = Perturbation(self.weight_attack, model)
        self.local_statistics = local_statistics(model)  # of batch norms that see own images alone
        self.recomputed = buffers if getattr(model, "recomputes", False) else []
        self.parts = Parts(schedule, choices, self.objective.views, world, device)

    # what a step asks -----------------------------------------------------------------------------

    def begin(self, x: Tensor) -> None:
        """Writes what the host says of the step to come, on x, into memory of the device."""
        self.statistics.kept = False
        self.learners.settle(x, self.parts.images)
        set_rate(self.optimizer, self.plan.rate(self.step))
        if self.plan.schedule.cycles_momentum:
            set_momentum(self.optimizer, self.plan.momentum(self.step))
        self.progress.fill_(self.step / self.plan.steps)
        self.number.fill_(self.step)
        self.key.set(seed_of(self.plan.seed, "attack", self.step))
        if self.norm_start.waits and self.norm_start.look(self.skips):
            if self.step > 1 or self.replays > 1:
                self.graph.forget()  # it may hold the momentum of skipped steps
        if not self.model.training:  # half a millisecond on a CPU
            self.model.train()

    def attack_model(self, x: Tensor) -> nn.Module:
        """The network that the attack on x asks, with the weights of this moment: folded for eval
        mode, else that of the update, of which a compiler makes two graphs, frozen and not."""
        if not self._folds or normed_by_attack(self.attack):
            return self.net
        if self._folded is None:
            self._folded = fold(self.model, x[:2], self.model.autocast)
            self.phased += phased(self._folded.net)
            self._attacked = self._compiled(self._folded.net)
        self._folded.follow()
        return self._attacked

    def count(self, loss: Tensor, error: Tensor, logits: Tensor, y: Tensor) -> None:
        """Adds a part of the batch to the step's sums: its loss, and the regulariser's error."""
        labels = y if y.ndim == 1 else y.argmax(1)
        right = (logits.detach().argmax(1) == labels).sum()
        means = loss.detach() * len(y), error.detach() * len(y)
        self.sums += torch.stack([means[0], right, means[1], torch.full_like(right, len(y))])

    @property
    def replays(self) -> int:
        """How often a step takes its batch."""
        return self.replayed.replays if self.replayed else 1

    def weight(self, own: int, batch: int) -> float:
        """What the loss of `own` images counts among those of this process's part of a batch."""
        views = self.objective.views
        images = self.replicas.images(batch // views, self.plan.schedule.batch_size)
        return own / views / images

    @property
    def epoch(self) -> Tensor:
        """How far the training is, in epochs [], on the device."""
        return self.number * self.plan.epoch(1)

    @property
    def gradients(self) -> list[Tensor]:
        return self.replicas.local([p.grad for p in self.parameters if p.grad is not None])

    def gradient_norm(self) -> Tensor:
        """The gradient's L2 norm, over all processes."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def broken(self) -> Tensor:
        """A truth on the device: a gradient or a sum is not finite, in any process."""
        found, tensors = self.found.zero_(), [*self.gradients, self.sums]
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, self._one)
        self.replicas.agree_(found)
        return found > 0

    def apply(self, broken: Tensor) -> None:
        """The optimiser's step, left out where the gradients are `broken`; an optimiser that can't
        be told on the device costs one look of the host."""
        if self.skips_on_device:
            self.optimizer.found_inf = self.found
        elif broken.item():
            return
        self.optimizer.step()

    # memory ---------------------------------------------------------------------------------------

    def split(self, count: int) -> None:
        """Splits batches into so many parts from here on."""
        self.parts.split(count)
        self.graph.forget()

    def put_back(self, generators: Mapping[str, Tensor]) -> None:
        """Stands again where the step began that an exception has ended, before its update."""
        set_generators(generators, self.device)
        self.perturbation.end()
        self.statistics.put_back()
        self._clear()

    def _clear(self) -> None:
        """Forgets what a step leaves behind that has ended before its end."""
        self.optimizer.zero_grad(set_to_none=True)
        self.perturbation.standing = False
        scaler = self._new_scaler()  # it counts on the update that follows
        scaler.load_state_dict(self.scaler.state_dict())
        self.scaler, self.applying = scaler, False

    def _new_scaler(self) -> torch.amp.GradScaler:
        half = self.plan.choices["precision"] == "fp16"
        return torch.amp.GradScaler(self.device.type, enabled=half)

    def graph_of_batches(self) -> Graph:
        """For what makes the batches of one stream."""
        on, key = bool(self.plan.choices.get("graph")), StepKey(self.device)
        return Graph(on, key, self._tell, "a batch's augmentation")

    def _tell(self, text: str) -> None:
        self.news.append(f"step {self.step}: {text}")

    # what is told and kept ------------------------------------------------------------------------

    @property
    def measured(self) -> nn.Module:
        """The weights that are measured: the average, where there is one. Where they are shared out
        over processes they are put together, which all must ask for."""
        return self.replicas.measured(self.average.module if self.average else self.model)

    def read(self) -> dict[str, float]:
        """The figures since the last call, in one transfer from the device; raises Diverged where
        the weights are no finite numbers, or ten steps one after the other were not."""
        told = [self._unsound().view(1), self.skips.counts, self.totals.values]
        unsound, *numbers = torch.cat([part.double() for part in told]).tolist()
        self.news += self.skips.read([*map(int, numbers[:5])]) + self.warmup.news(self.step)
        self._refuse(unsound)
        self.totals.values.zero_()
        skipped = {"train/skipped_steps": self.skips.skipped} if self.skips.skipped else {}
        rate = self.plan.rate(max(0, self.step - 1))
        return {**self.totals.means(numbers[5:]), "train/learning_rate": rate, **skipped}

    def check_finite(self) -> None:
        """Raises Diverged when a weight is no longer a finite number."""
        self._refuse(self._unsound().item())

    def _unsound(self) -> Tensor:
        own = [p for p in self.replicas.local(self.parameters) if p.numel()]  # a part may be empty
        largest = torch._foreach_norm(own, float("inf")) if own else [self.progress]
        unsound = (~torch.stack(largest).isfinite().all()).float()
        self.replicas.agree_(unsound)
        return unsound

    def _refuse(self, unsound: float) -> None:
        if unsound:
            raise Diverged(f"a weight is not finite at step {self.step}; {REMEDY}")

    @property
    def _stateful(self) -> dict[str, Stateful]:
        named = {
            "average": self.average, "scaler": self.scaler, "metrics": self.totals,
            "skips": self.skips, "attack": self.attack, "objective": self.objective,
            "regulariser": self.regulariser, "weight_attack": self.weight_attack,
        }  # fmt: skip
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint; where the weights are shared out all processes must ask for
        it."""
        named = {"model": self.model, "optimizer": self.optimizer, **self._stateful}
        state = {name: part.state_dict() for name, part in named.items()}
        plain = {"step": self.step, "choices": self.plan.choices, "generators": self.generators()}
        if self.average:
            plain["averaged"] = self.average.done
        return self.replicas.whole({**state, **plain})

    def generators(self) -> dict[str, Tensor]:
        return generator_states(self.device)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stands again where `state` was taken."""
        self.step = state["step"]
        self.progress.fill_(max(self.step - 1, 0) / self.plan.steps)  # of the step before
        self.model.load_state_dict(self.replicas.share(state["model"], self.model))
        load_optimizer(self.optimizer, self.replicas.share(state["optimizer"], self.optimizer))
        for name, part in self._stateful.items():
            kept = state[name]
            if part is self.average:
                kept = self.replicas.share(kept, self.average.module)
            part.load_state_dict(kept)
        if self.average:
            self.average.done.copy_(state["averaged"])
        set_generators(state["generators"], self.device)

    def _compiled(self, net: nn.Module) -> nn.Module:
        by_itself = self.plan.schedule.compile == "auto"
        return compiled(net, self.plan.choices["compile"], by_itself)


def _replicas(world: World, model: nn.Module, shard: bool) -> Replicas:
    """Who holds the weights of `model`: each process all of them, or, if `shard`, its part."""
    if not shard or world.size == 1:
        return Replicas(world)
    from sat.distributed.sharding import Shards  # takes a second to import

    return Shards(world, model)
