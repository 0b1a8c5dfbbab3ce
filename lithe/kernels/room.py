"""Memory for packed weights: chunks of private memory in large pages, where the system has them for who asks before writing.

Reading weights takes fewer look-ups of addresses then, and what is read to be packed does not lie between what stays.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from weakref import ref

import torch
from torch import Tensor

PAGE, CHUNK, LINE = 1 << 21, 1 << 25, 64  # bytes: of a large page, of a chunk, and what matrices are aligned to
SMALL = 1 << 16  # bytes that may as well lie in the heap
_lock = Lock()


@dataclass
class _Chunk:
    """memory goes with the last tensor on it; from `free` on to `end` nothing lies."""

    memory: ref[mmap.mmap]
    free: int
    end: int


_open: list[_Chunk] = []


def room(size: int, device: torch.device) -> Tensor:
    """Bytes [size] for a packed matrix. A chunk is given back when the last matrix on it is gone."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8, device=device)
    with _lock:
        for chunk in _open:
            memory = chunk.memory()
            if memory is not None and size <= chunk.end - chunk.free:
                break
        else:
            memory, chunk = _new(size)
            _open[:] = [*(each for each in _open if each.memory() is not None), chunk]
        start, chunk.free = chunk.free, chunk.free + -(-size // LINE) * LINE
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)


def apart(size: int) -> Tensor:
    """Bytes [size] that go back to the system when they are freed; of a heap they would leave holes between what stays."""
    if size < SMALL or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


def tidy() -> None:
    """Give back what lies free in the heap, where the C library can: temporaries of unlike sizes leave holes all over it."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _new(size: int) -> tuple[mmap.mmap, _Chunk]:
    """A chunk with room for so many bytes, from its first whole large page on."""
    large = max(CHUNK, -(-size // PAGE) * PAGE)
    memory = mmap.mmap(-1, large + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that has no large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % PAGE
    return memory, _Chunk(ref(memory), start, start + large)
