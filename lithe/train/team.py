"""The processes that train together: who we are, sums over all, and weights sharded block by block (FSDP2).

`torchrun --nproc-per-node N -m lithe tune ...` starts them; alone, everything here is free.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lithe.errors import UsageError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Team:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, stacked."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        found = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, tensor.to(self.device))
        return torch.stack(found).to(tensor.device)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def shard(self, root: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Spread the weights over all processes: each block gathers its own for its pass, what lies outside them with root."""
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(root, mesh=mesh)


ALONE = Team()


@contextlib.contextmanager
def join(device: str = "cpu") -> Iterator[Team]:
    """The team that torchrun's environment describes, or that of one; with several, each CUDA process has its own device."""
    try:
        size, rank, local = (int(os.environ.get(name, default)) for name, default in
                             (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
    except ValueError as problem:
        raise UsageError(f"WORLD_SIZE, RANK and LOCAL_RANK must be numbers, as torchrun sets them: {problem}") from None
    if size == 1:
        yield Team(device=torch.device(device))
        return
    own = torch.device(device, local) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Team(rank, size, own)
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, which must all ask; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def alike(tensor: Tensor, model: Any) -> Tensor:
    """A whole tensor, sharded as `model` is."""
    if not hasattr(model, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
