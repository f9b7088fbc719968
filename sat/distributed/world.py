"""Several processes of one run, as torchrun starts them: each takes its rows of every batch.

There is no wrapper around the network. The gradients of an update are added up in one collective,
weighted by images, after the last of its parts; with them go the statistics of batch norm and the
sums that are logged, so that afterwards all processes hold the same. An attack asks for gradients
of its own rows alone and never waits for another process. What the hosts must agree on (when to
save, when to stop, what a file holds) goes through a second group, which asks nothing of a GPU.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat.errors import Fault, Lost, Refused, is_out_of_memory
from sat.launch import local_rank, processes

# Of the hosts, who wait for files, figures and locks of the first. A process that dies is noticed
# at once, since its connections break.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """The processes of a run, of which this is number `rank` (from 0) of `size`.

    The first one writes the run's directory. A method raises Lost where another process is gone.
    """

    rank: int = 0
    size: int = 1
    hosts: Any = None  # a gloo group

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def own(self) -> slice:
        """This process's places in what is shared out image by image, such as an evaluation."""
        return slice(self.rank, None, self.size)

    def rows(self, batch_size: int, parts: int) -> list[Tensor]:
        """This process's rows of a batch, ascending within each of its accumulation `parts`.

        The parts are those of a single process, and every process has a share of each: so batch
        norm that is synchronised sees the same images whatever the number of processes.
        """
        whole = torch.arange(batch_size).tensor_split(parts)
        return [rows.tensor_split(self.size)[self.rank] for rows in whole]

    def add_(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes its sum over the processes; float32, on one device, in one collective."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _together():
            dist.all_reduce(flat)
        summed = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            [*tensors], [s.view_as(t) for s, t in zip(summed, tensors, strict=True)]
        )

    def mean_(self, means: Sequence[Tensor], sums: Tensor) -> None:
        """Means over this process's images become means over all, and `sums`, of which the last
        counts the images, become sums over all."""
        if means:
            torch._foreach_mul_([*means], sums[-1])
        self.add_([*means, sums])
        if means:
            torch._foreach_div_([*means], sums[-1])

    def broadcast_(self, model: nn.Module) -> None:
        """The weights and buffers of the first process, on all."""
        if self.size == 1:
            return
        with torch.no_grad(), _together():
            for tensor in model.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def on_rank0(self, ask: Callable[[], Any]) -> Any:
        """What `ask` gives the first process, which alone calls it, or its Refused or Fault; on
        all."""
        if self.size == 1:
            return ask()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = ask()
            except (Refused, Fault) as error:
                box[1] = (Refused if isinstance(error, Refused) else Fault, str(error))
        with _together():
            dist.broadcast_object_list(box, 0, group=self.hosts)
        if box[1] is not None:
            kind, text = box[1]
            raise kind(text) if self.first else Refused(text)  # which the first alone tells
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order; on all."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        with _together():
            dist.all_gather_object(values, value, group=self.hosts)
        return values

    def all_max(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number that a process has; on all."""
        if self.size == 1:
            return numbers
        told = torch.tensor(numbers)
        with _together():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.hosts)
        return tuple(told.tolist())

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """First by one process of each machine, then by its others: what is downloaded, say."""
        if local_rank():
            self.all_max(0)
        try:
            yield
        finally:
            if not local_rank():
                self.all_max(0)

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """What one process refuses meanwhile, all refuse, with the same line."""
        text = None
        try:
            yield
        except Refused as error:
            text = str(error)
        texts = self.gather(text)
        if (rank := next((r for r, text in enumerate(texts) if text), None)) is not None:
            raise Refused(f"process {rank}: {texts[rank]}" if rank else texts[rank])


ALONE = World()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _lost(error) from error


def _lost(error: RuntimeError) -> Lost:
    reason = " ".join(str(error).split()).split(". This is")[0][:200] or type(error).__name__
    return Lost(
        "another process of this run has ended (why stands above, unless it was killed), and so do"
        f" all; the same command goes on from the last checkpoint [{reason}]"
    )


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started with this one, for the time of a run."""
    rank, size = processes()
    if size == 1:
        yield ALONE
        return
    on_gpu = device.type == "cuda"
    try:
        if on_gpu:  # with NCCL's own patience
            dist.init_process_group("nccl")
            hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
            hosts = dist.group.WORLD
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Fault(f"process {rank} can't meet the {size - 1} others ({reason})") from error
    try:
        yield World(rank, size, hosts)
    except RuntimeError as error:  # of a collective inside the network
        if isinstance(error, dist.DistError) or re.search("gloo|NCCL", str(error)):
            raise _lost(error) from error
        raise
    dist.destroy_process_group()  # after a fault it would wait for those who are gone


def local_statistics(model: nn.Module) -> list[Tensor]:
    """Means and variances of batch norms that see one process's images alone."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]


def normed_by_attack(attack: Any) -> bool:
    """Whether batch norm is in training mode in its forwards."""
    return attack.batch_norm == "train"


def shared(model: nn.Module, sync_batch_norm: bool | None, attack: Any, world: World) -> nn.Module:
    """`model` made ready to be trained by all processes, with the weights of the first. Batch norm
    becomes one over all processes on a GPU, where nothing speaks against it."""
    if world.size == 1:
        return model
    world.broadcast_(model)
    if world.rank:  # else all would draw the same dropout
        torch.manual_seed(torch.initial_seed() + world.rank)
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    if on_gpu and not normed_by_attack(attack) and sync_batch_norm is not False:
        from timm.layers import convert_sync_batchnorm  # timm takes seconds to import

        return convert_sync_batchnorm(model)
    return model
