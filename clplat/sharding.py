"""Fully sharded training: a backbone's parameters, gradients, optimiser state and importances cut among the ranks.

torch's ``fully_shard`` (FSDP2) gathers each block's weights for its forward and backward pass and adds gradients up
into the piece that a rank owns. Encoder and head, which may grow, stay whole on every rank. Checkpoints hold whole
tensors, so they do not depend on how many ranks there were. Works with gloo on CPUs; NCCL on GPUs was not tried yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from clplat.backbones.block import Block
from clplat.ranks import Ranks
from clplat.state import Remembering


def shard(backbone: nn.Module, ranks: Ranks) -> None:
    """Cut a backbone's parameters among the ranks, block by block; with one rank there is nothing to cut."""
    if ranks.world == 1:
        return
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for module in backbone.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    for part in _parts(backbone):
        part.set_gradient_divide_factor(1.0)  # ranks hold shares of a sum, not means
        part.set_reshard_after_forward(True, recurse=False)  # strategies look at parameters in between


def is_cut(tensor: Tensor) -> bool:
    """Whether this rank holds a piece only."""
    return isinstance(tensor, DTensor)


def whole(state: Any) -> Any:
    """A nested state with whole tensors in place of pieces. Call it on all ranks alike."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), state)


def local(tensor: Tensor) -> Tensor:
    """This rank's piece, or the tensor itself where it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that all ranks hold whole, cut as ``like`` is if it has the same shape."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def cut_state(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of whole tensors, cut where the state dict ``like`` is."""
    return {name: cut(value, like[name]) if name in like else value for name, value in state.items()}


def cut_remembered(modules: nn.Module, network: Mapping[str, nn.Parameter]) -> None:
    """Cut what strategies remember by the names of parameters as the parameters are."""
    for module in modules.modules():
        if isinstance(module, Remembering):
            for key in {name.split(":")[0] for name in module._buffers if ":" in name}:
                held = module.recall(key)
                if held and held.keys() <= network.keys():
                    module.remember(key, {name: cut(tensor, network[name]) for name, tensor in held.items()})


def cut_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state of whole tensors, cut as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        **state,
        "state": {
            number: {key: cut(t, parameters[number]) if isinstance(t, Tensor) else t for key, t in of_it.items()}
            for number, of_it in state["state"].items()
        },
    }


def sum_pieces(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of all elements of this rank's pieces."""
    return torch.stack([local(tensor).sum() for tensor in tensors] or [torch.zeros(())]).sum()


def total(piece: Tensor) -> Tensor:
    """A scalar term of the loss, equal on all ranks, from each rank's share of it.

    The engine divides scalar terms by the number of ranks, because each of them adds its gradient for the parameters it
    holds whole. A piece has one owner, so the gradient is multiplied by that number again.
    """
    return cast(Tensor, _Total.apply(piece))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor) -> Tensor:
        summed = piece.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


@contextlib.contextmanager
def gathered(backbone: nn.Module) -> Iterator[None]:
    """Have all weights whole on every rank: for estimates that look at gradients of single samples."""
    parts = list(_parts(backbone))
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
            part.set_reshard_after_backward(True, recurse=False)


def _parts(backbone: nn.Module) -> Iterator[FSDPModule]:
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            yield module
