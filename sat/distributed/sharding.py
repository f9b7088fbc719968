"""Networks whose training state is too large for one device: torch's FSDP2 over all processes.

Weights, gradients, the average and the optimiser's state are shared out; each block's weights are
gathered for its forward and its backward, in the attack's steps as well. To be measured, and for a
checkpoint, the weights are put together again, so a checkpoint is what one process would write.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from sat.distributed.replicas import Replicas
from sat.distributed.world import World

BLOCKS = 16  # a gathered block is at most this part of the network, where its modules allow it


class Shards(Replicas):
    """The weights of a training, shared out over processes."""

    def __init__(self, world: World, whole: nn.Module):
        """`whole`, a model with all weights, is what is measured."""
        super().__init__(world)
        self._whole = whole

    def place(self, model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model)
        shard_(model)
        return model

    def measured(self, model: nn.Module) -> nn.Module:
        copy_whole_(self._whole, model)
        return self._whole

    def images(self, own: int, batch: int) -> float:
        return batch / self.world.size  # torch takes the mean over processes

    def local(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def reduce_(self, gradients: list[Tensor], statistics: list[Tensor], sums: Tensor) -> None:
        self.world.mean_(statistics, sums)  # torch has added up the gradients

    def agree_(self, found: Tensor) -> None:
        self.world.add_([found])  # each looks at its own part
        found.clamp_(max=1)

    def whole(self, state: Any) -> Any:
        return put_together(state)

    def share(self, state: Mapping[str, Any], of: nn.Module | Optimizer) -> dict[str, Any]:
        if isinstance(of, Optimizer):
            return share_out_optimizer(state, of)
        like = of.state_dict()
        return {key: share_out(value, like[key]) for key, value in state.items()}


def shard_(model: nn.Module) -> None:
    """Shares out the weights of `model`, block by block, over all processes."""
    model.to(memory_format=torch.contiguous_format)  # FSDP takes no other
    for block in [*blocks(model, _size(model) // BLOCKS)]:
        fully_shard(block)
    fully_shard(model)


def blocks(module: nn.Module, most: int) -> Iterator[nn.Module]:
    """The largest modules below `module` with at most `most` weights. Tiny ones, and single layers,
    stay with what is around them."""
    for child in module.children():
        size = _size(child)
        if size > most or isinstance(child, nn.ModuleList):
            yield from blocks(child, most)
        elif size > most // BLOCKS and any(True for _ in child.children()):
            yield child


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def put_together(state: Any) -> Any:
    """Nested dicts and lists of tensors, shared out or not, with whole ones; a collective."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: put_together(value) for key, value in state.items()}
    return [put_together(value) for value in state] if isinstance(state, list) else state


def share_out(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which all processes hold, shared out as `like` is."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def share_out_optimizer(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's whole state dict, shared out as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shared = {
        index: {
            name: share_out(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in of_one.items()
        }
        for index, of_one in state["state"].items()
    }
    return {**state, "state": shared}


@torch.no_grad()
def copy_whole_(target: nn.Module, source: nn.Module) -> None:
    """Puts the weights and buffers of a shared out `source` into a `target` that is whole."""
    for to, part in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        to.copy_(put_together(part))
