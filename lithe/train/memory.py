"""Bytes a training really holds: weights, gradients, optimizer state, and what a pass keeps for its gradient."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def report(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes of the model, the part of it that trains, that part's gradients, and the optimizers' state."""
    moments = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()
               if isinstance(value, Tensor)]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return {"weights": held([*model.parameters(), *model.buffers()]), "trainable": held(trained), "gradients": held(trained),
            "optimizer": held(moments)}


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, shared ones once; of sharded ones those that this process holds."""
    return sum(size for _, size in _places(tensors))


def kept(passes: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that a pass keeps until its gradient, beside the model's own: every storage that autograd saves, counted once.

    passes: runs it and returns the loss, whose graph is dropped again.
    """
    own = {place for place, _ in _places([*model.parameters(), *model.buffers()])}
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is given out twice

    def note(tensor: Tensor) -> Tensor:
        for place, size in _places([tensor]):
            if place not in own and place not in found:
                found[place] = size
                alive.append(tensor.detach())
        return tensor.detach()  # with its history a saved tensor would keep the graph, and its leaves' shapes, for good

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        passes()
    return sum(found.values())


def peak(device: torch.device) -> int:
    """The most bytes this process has held: of the device's memory where it has its own, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextlib.contextmanager
def kept_pages() -> Iterator[None]:
    """Freed memory stays with the process, where its C library is glibc: a step needs again what the one before gave back.

    Getting pages from the system again costs some 0.7 ms a MiB, a tenth of a step. They are given back at the end.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    try:
        libc.mallopt(MMAP_THRESHOLD, 1 << 30), libc.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
        yield
    finally:  # where its own adjustment ends
        libc.mallopt(MMAP_THRESHOLD, 1 << 25), libc.mallopt(TRIM_THRESHOLD, 1 << 26)
        libc.malloc_trim(0)


def _places(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of each storage, once."""
    seen = set()
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        storage = local.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage.data_ptr(), storage.nbytes()
