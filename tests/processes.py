"""Run by torchrun from test_distributed.py, `processes.py <device> <case> ...`: several processes
train as one would; prints JSON."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat import objectives
from sat.acceleration.device import find_device
from sat.attacks import PGD, Multi
from sat.attacks.outcomes import AttackOutcomes
from sat.attacks.series import ensemble_of
from sat.distributed.world import ALONE, World, join, shared
from sat.evaluation.measure import measure_together
from sat.evaluation.store import digest_of
from sat.launch import end, local_rank
from sat.objectives import Adversarial, Method
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

BATCH, STEPS, IMAGES = 22, 4, 88
CASES = {
    "plain": {},
    "accumulate": {"accumulate": 3},
    "average": {"ema": 0.5, "accumulate": 2},
    "clip and bf16": {"clip": 0.1, "precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
    "batch norm": {},
    "compiled": {"compile": True},
    "perturbed weights": {"accumulate": 2},
    "two views": {"accumulate": 2},
    "learned weight": {"accumulate": 2},
    "gradients of gradients": {"accumulate": 2},
    "several balls": {"accumulate": 2},
    "sharded": {"shard": True, "accumulate": 2, "ema": 0.5, "clip": 0.1},
}
METHODS = {  # where it is not the usual one
    "perturbed weights": {"objective": objectives.TRADES(), "weight_attack": objectives.AWP(0.05)},
    "two views": {"objective": objectives.Consistency()},
    "learned weight": {
        "objective": objectives.MART(),
        "regulariser": objectives.AdaptiveELLE(20.0),
    },
    "gradients of gradients": {
        "objective": objectives.GradientNorm(20.0),
        "regulariser": objectives.GradAlign(0.2),
    },
    "several balls": {"attack": Multi({"linf": 20, "l1": 400}, 2)},
}
counts = {"collectives": 0}


def counted(name: str) -> None:
    """Counts the calls of a collective."""
    plain = getattr(dist, name)

    def call(*arguments: Any, **named: Any) -> Any:
        counts["collectives"] += 1
        return plain(*arguments, **named)

    setattr(dist, name, call)


class Collectives(TorchDispatchMode):
    """Counts those of batch norms and hooks as well."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace in ("c10d", "_c10d_functional")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Watched(PGD):
    """Notes how many collectives an attack calls."""

    def __call__(self, *arguments: Any) -> Any:
        with Collectives() as told:
            x_adv = super().__call__(*arguments)
        counts["in attacks"] = counts.get("in attacks", 0) + told.count
        return x_adv


class Network(nn.Module):
    def __init__(self, normed: bool):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8) if normed else nn.Identity(), nn.SiLU(),
            nn.Flatten(), nn.Linear(8 * 36, 10),
        )  # fmt: skip
        self.autocast, self.channels_last = None, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            return self.layers(x).float()


def trained(world: World, case: str, broken: bool = False) -> TrainState:
    """After STEPS updates of the case, one of which sees a pixel that is no number."""
    schedule = Schedule(**{"epochs": 1.0, "batch_size": BATCH, **CASES[case]})
    precision = {"auto": "fp32"}.get(schedule.precision, schedule.precision)
    choices = {"precision": precision, "channels_last": False, "compile": case == "compiled"}
    attack = (PGD if case == "compiled" else Watched)(20, 2)  # dynamo takes no such mode
    net = Network(normed=case == "batch norm").to(device)
    if world.size > 1:
        net = shared(net, schedule.sync_batch_norm, attack, world)
    counts.update({"collectives": 0, "in attacks": 0})
    plan = Plan(schedule, IMAGES, 0, choices)
    method = Method(**{"attack": attack, "objective": Adversarial(), **METHODS.get(case, {})})
    trainer = TrainState(net, method, plan, world)
    rows = torch.cat(world.rows(BATCH, schedule.accumulate))
    x = torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    y = torch.arange(IMAGES).to(device) % 10
    for step in range(STEPS):
        own = step * BATCH + rows
        batch = x[own].clone()
        if broken and step == 1 and 0 in rows:
            batch[0] = torch.nan
        views = method.objective.views
        update(trainer, torch.cat([batch, batch.flip(3)][:views]), torch.cat([y[own]] * views))
    return trainer


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of a weight or a buffer."""
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def told_by(trainer: TrainState) -> list[dict[str, torch.Tensor]]:
    """All tensors of a checkpoint: weights, their average, what the optimiser remembers, and what
    attack and regulariser have learned."""
    state = trainer.state_dict()
    memory = {
        f"{index}.{name}": value
        for index, one in state["optimizer"]["state"].items()
        for name, value in one.items()
        if isinstance(value, torch.Tensor)
    }
    learned = [state.get(part, {}) for part in ("attack", "regulariser")]
    return [state["model"], state.get("average", {}), memory, *learned]


def compare(world: World) -> dict[str, Any]:
    found = {}
    for case in sys.argv[2:]:
        together = trained(world, case)
        told = {"collectives": counts["collectives"], "in attacks": counts["in attacks"]}
        alone = trained(ALONE, case)
        logged = together.read(), alone.read()
        mine, one = told_by(together), told_by(alone)
        found[case] = told | {
            "weights": max(apart(a, b) for a, b in zip(mine, one, strict=True) if a),
            "measured": apart(together.measured.state_dict(), alone.measured.state_dict()),
            "logs": max(abs(logged[0][key] - logged[1][key]) for key in logged[1]),
            "same on all": len({*world.gather(digest_of(mine[0] | mine[2]))}) == 1,
        }
        together.load_state_dict(alone.state_dict())
        found[case]["loaded"] = max(
            apart(a, b) for a, b in zip(told_by(together), one, strict=True) if a
        )
    together = trained(world, "plain", broken=True)
    found["broken"] = {
        "skipped": world.gather(together.skips.counts[1].item()),
        "finite": all(bool(torch.isfinite(p).all()) for p in together.model.parameters()),
    }
    return found


def evaluated(world: World, quick: bool) -> dict[str, Any]:
    """An attack on 37 images by all processes and by one, by its letter or searched quickly."""
    net = Network(normed=False)
    x = torch.rand(37, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    y = net(x).argmax(1)
    judge, tallies = ensemble_of(PGD(20, 3), 2, 5, quick), []
    for these in (world, ALONE):
        outcomes, seen = AttackOutcomes.new(judge.names, 37), []

        def images(own, seen=seen):
            for i in torch.arange(37)[own].split(5):
                seen.extend(i.tolist())
                yield i, x[i], y[i]

        tallies.append(measure_together(these, net, images, judge, 0, outcomes))
        if these is world:
            measured = sorted(image for each in world.gather(seen) for image in each)
    pairs = [(outcomes.fell, outcomes.passed) for outcomes in tallies]
    same = all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    return {"same": same, "images": measured, "robust": int(tallies[0].robust.sum())}


if __name__ == "__main__":
    for name in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list"):
        counted(name)
    device = find_device(sys.argv[1], local_rank())
    torch.backends.cudnn.allow_tf32 = False
    with join(device) as world:
        answer = {"training": compare(world), "evaluation": evaluated(world, False),
                  "quick evaluation": evaluated(world, True)}  # fmt: skip
        answer["told"] = world.gather(world.on_rank0(lambda: "by the first"))
        answer["most"] = world.all_max(world.rank, 5 - world.rank)
        with Collectives() as told:
            world.add_([torch.ones(2, device=device)])
        answer["counted"] = told.count
        if world.first:
            json.dump(answer, sys.stdout)
    end(0)
