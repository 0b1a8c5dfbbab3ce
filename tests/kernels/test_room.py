"""Memory of packed weights: apart, aligned, reused, and given back with the last matrix on it."""

import mmap

import pytest
import torch

from lithe.kernels import room

CPU = torch.device("cpu")


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")
def test_matrices_share_chunks_that_go_with_them():
    room._open.clear()
    sizes = [1000, 64, room.CHUNK // 2, room.CHUNK // 2, 3 * room.CHUNK, 7]
    held = [room.room(size, CPU) for size in sizes]
    for i, each in enumerate(held):
        each.fill_(i + 1)
    assert [len(each) for each in held] == sizes and all(each.data_ptr() % room.LINE == 0 for each in held)
    assert all(bool((each == i + 1).all()) for i, each in enumerate(held))  # none lies in another
    assert held[5].data_ptr() - held[1].data_ptr() in range(room.CHUNK)  # what a large one left is filled
    assert held[4].data_ptr() % room.PAGE == 0 and len(room._open) == 3
    del each, held[2:]
    assert sum(chunk.memory() is not None for chunk in room._open) == 1
    held.clear()
    assert not any(chunk.memory() for chunk in room._open)


@pytest.mark.parametrize("size", [0, 1, room.SMALL, 3 * room.SMALL + 5])
def test_bytes_apart_can_be_written(size):
    data = room.apart(size)
    assert data.dtype == torch.uint8 and data.shape == (size,) and int(data.fill_(3).sum(dtype=torch.int64)) == 3 * size
