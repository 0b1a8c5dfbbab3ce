"""Memory for weights in large pages where the system has them: a pass reads all weights, and small pages cost it a sixth."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

CHUNK = 64 << 20  # bytes taken at once
_chunk: mmap.mmap | None = None
_used = 0  # of the chunk


def room(size: int) -> Tensor:
    """Bytes for one matrix, aligned as vectors want it. Matrices share chunks, as most are smaller than a large page.

    What is never written is never taken from the system; a chunk lasts as long as any matrix in it.
    """
    global _chunk, _used
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    if size > CHUNK // 4:
        return torch.frombuffer(_taken(size), dtype=torch.uint8, count=size)
    if _chunk is None or _used + size > CHUNK:
        _chunk, _used = _taken(CHUNK), 0
    start, _used = _used, _used + -(-size // 64) * 64
    return torch.frombuffer(_chunk, dtype=torch.uint8, count=size, offset=start)


def _taken(size: int) -> mmap.mmap:
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without
        made.madvise(mmap.MADV_HUGEPAGE)
    return made
