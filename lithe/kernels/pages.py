"""Memory for weights in large pages: a pass reads all of them, and with pages of 4 KB it waits for the tables of pages.

Weights lie one behind another in chunks, so that nothing is rounded up for each, and what no one wrote to takes no memory. A
chunk goes when the last of its tensors does. Where the system has no such pages, weights lie in small ones: slower, and the same.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from weakref import ref

import torch
from torch import Tensor

CHUNK, LINE = 1 << 26, 64  # bytes: of a chunk at least, and of what a tensor starts at a multiple of
_last: tuple[ref[mmap.mmap], int] | None = None  # the chunk that has room, and how much of it is taken


def empty(size: int) -> Tensor:
    """So many bytes, not set to anything."""
    global _last
    chunk, taken = (_last[0](), _last[1]) if _last else (None, 0)
    if chunk is None or taken + size > len(chunk):
        chunk, taken = _chunk(max(CHUNK, size)), 0
    _last = ref(chunk), -(-(taken + size) // LINE) * LINE
    return torch.frombuffer(chunk, dtype=torch.uint8, offset=taken, count=size)


def _chunk(size: int) -> mmap.mmap:
    """Memory of this process alone: what processes share lies in other pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system built without them
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
