"""The processes of one run: which one this is, and the few collectives that everything else is built from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clplat import batch
from clplat.errors import UsageError


class Ranks:
    """This process among its peers. With one process every collective is free.

    Args:
        rank, world: this process's number and how many there are.
        device: what this rank computes on.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, torch.device(device)

    @classmethod
    def from_environment(cls, accelerator: str = "auto") -> Ranks:
        """Join the group described by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, if any.

        Read once, at the start: Lightning removes some of them after each fit.

        Raises:
            UsageError: a GPU was asked for and there is none, or there are fewer than ranks on this machine.
        """
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cpu")
        # With accelerator=cpu CUDA is never asked: asking starts it, which a forked process must not do.
        if accelerator != "cpu":
            gpus = torch.cuda.device_count()
            needed = int(os.environ.get("LOCAL_WORLD_SIZE", world))
            if gpus >= needed:
                device = torch.device("cuda", local)
                torch.cuda.set_device(device)
            elif accelerator == "gpu" or gpus:
                raise UsageError(
                    f"{needed} GPU{'s' if needed > 1 else ''} wanted, {gpus} found: lower trainer.devices or choose "
                    "trainer.accelerator=cpu"
                )
        if world > 1 and not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(minutes=10))
        return cls(rank, world, device)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The rows of a global batch of ``n`` that are this rank's."""
        return batch.part(n, self.rank, self.world)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_many(self, tensors: Iterable[Tensor]) -> None:
        """Sum each over ranks, in place, by one message for each dtype."""
        if self.world == 1:
            return
        groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault(tensor.dtype, []).append(tensor)
        for group in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            start = 0
            for tensor in group:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def gather_rows(self, local: Tensor, n_global: int) -> Tensor:
        """All rows of a global batch, in global order, from each rank's share (no gradient)."""
        if self.world == 1:
            return local.detach()
        whole = local.new_zeros((n_global, *local.shape[1:]))
        whole[self.part(n_global)] = local.detach()
        return self.all_reduce(whole)

    def each(self, values: list[float]) -> list[list[float]]:
        """The numbers of all ranks, a row for each."""
        if self.world == 1:
            return [values]
        found = torch.zeros(self.world, len(values), dtype=torch.float64, device=self.device)
        found[self.rank] = torch.tensor(values, dtype=torch.float64)
        rows: list[list[float]] = self.all_reduce(found).tolist()
        return rows

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.world == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found.item())

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.largest(int(flag)))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            self.all_reduce(torch.zeros(1, device=self.device))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum ``.grad`` over ranks by one flat message. A gradient that is None on every rank stays None. Parameters
        that are cut among the ranks (``clplat.sharding``) are left alone: their gradients are summed already.

        Presence is summed along, so that ranks whose rows reached different parameters still send equal messages.
        """
        if self.world == 1:
            return
        wanted = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        if not wanted:
            return
        present = torch.tensor([p.grad is not None for p in wanted], dtype=wanted[0].dtype, device=wanted[0].device)
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
        flat = torch.cat([*(piece.reshape(-1) for piece in pieces), present])
        dist.all_reduce(flat)
        start = 0
        for p, piece, anywhere in zip(wanted, pieces, flat[-len(wanted) :].tolist(), strict=True):
            if anywhere:
                p.grad = flat[start : start + piece.numel()].view_as(piece).clone()
            start += piece.numel()
