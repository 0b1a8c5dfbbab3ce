"""Products with a matrix of which few entries are not zero, given by their sorted flat places and values.

Axes: M rows, N outputs, K inputs, S entries. A matrix is `shape` (N, K), `idx_S` int32, ascending, row by row, and `values_S`.
An `idx_S` of no places beside N * K values is a whole matrix.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import torch
from torch import Tensor

Shape = tuple[int, int]
THIN = 0.12  # of a larger share of entries the dense product is as fast (one Zen 3 core, 576 x 1536)
PIECE = 1 << 18  # entries of a dense gradient that are held at a time, where there is no sparse product


def sparse(idx_S: Tensor, shape: Shape) -> bool:
    """Whether the sparse products are worth it here, and there."""
    there = idx_S.device.type == "cuda" or (idx_S.device.type == "cpu" and torch.backends.mkl.is_available())
    return there and 0 < len(idx_S) <= THIN * shape[0] * shape[1]


def spread(idx_S: Tensor, values_S: Tensor, shape: Shape) -> Tensor:
    """The matrix itself [N, K]."""
    if len(values_S) == shape[0] * shape[1]:
        return values_S.view(shape)
    return values_S.new_zeros(shape[0] * shape[1]).index_copy(0, idx_S.long(), values_S).view(shape)


def times(x_MK: Tensor, idx_S: Tensor, values_S: Tensor, shape: Shape) -> Tensor:
    """x W^T [M, N]."""
    if not len(values_S):
        return x_MK.new_zeros(()).expand(len(x_MK), shape[0])
    if not sparse(idx_S, shape):
        return x_MK @ spread(idx_S, values_S, shape).T
    return (_rows(idx_S, values_S, shape) @ x_MK.T).T


def times_back(y_MN: Tensor, idx_S: Tensor, values_S: Tensor, shape: Shape) -> Tensor:
    """y W [M, K]: the way back of `times`."""
    if not len(values_S):
        return y_MN.new_zeros(()).expand(len(y_MN), shape[1])
    if not sparse(idx_S, shape):
        return y_MN @ spread(idx_S, values_S, shape)
    row_S = idx_S // shape[1]
    column_S, order_S = torch.sort(idx_S - row_S * shape[1], stable=True)
    return (_matrix(column_S, row_S[order_S], values_S[order_S], shape[::-1]) @ y_MN.T).T


def gathered(y_MN: Tensor, x_MK: Tensor, idx_S: Tensor, shape: Shape) -> Tensor:
    """The entries idx_S of y^T x: what the gradient of a weight is there."""
    if not len(idx_S):
        return x_MK.new_zeros(0)
    if sparse(idx_S, shape):
        zeros = _rows(idx_S, x_MK.new_zeros(len(idx_S)), shape)
        return torch.sparse.sampled_addmm(zeros, y_MN.T, x_MK).values()
    found, step = [], max(1, PIECE // shape[1])
    ends = torch.arange(0, shape[0] + step, step, device=idx_S.device) * shape[1]
    cuts = torch.searchsorted(idx_S.long(), ends).tolist()
    for start, (low, high) in zip(range(0, shape[0], step), pairwise(cuts), strict=False):
        if low < high:
            piece = (y_MN[:, start : start + step].T @ x_MK).flatten()
            found.append(piece[idx_S[low:high].long() - start * shape[1]])
    return torch.cat(found)


def source(old_S: Tensor, new_S: Tensor) -> Tensor:
    """Where each of the new places stands among the old ones, -1 where it does not. Both ascend."""
    if not len(old_S):
        return torch.full((len(new_S),), -1, device=new_S.device)
    at_S = torch.searchsorted(old_S, new_S).clamp(max=len(old_S) - 1)
    return torch.where(old_S[at_S] == new_S, at_S, -1)


def follow(tensor_S: Tensor, source_S: Tensor) -> Tensor:
    """What belongs to each entry now; zero for entries that are new."""
    if not len(tensor_S):
        return tensor_S.new_zeros(len(source_S))
    return torch.where(source_S >= 0, tensor_S[source_S.clamp(min=0)], torch.zeros_like(tensor_S[:1]))


def _rows(idx_S: Tensor, values_S: Tensor, shape: Shape) -> Tensor:
    row_S = idx_S // shape[1]
    return _matrix(row_S, idx_S - row_S * shape[1], values_S, shape)


def _matrix(row_S: Tensor, column_S: Tensor, values_S: Tensor, shape: Shape) -> Tensor:
    """A compressed matrix of entries whose rows ascend."""
    starts = torch.searchsorted(row_S, torch.arange(shape[0] + 1, dtype=row_S.dtype, device=row_S.device), out_int32=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the layout is young
        return torch.sparse_csr_tensor(starts, column_S, values_S, shape, check_invariants=False)


def packed(mask: Tensor) -> Tensor:
    """A flat mask as bytes of eight flags, the first in the lowest bit."""
    flags = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (flags << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, count: int) -> Tensor:
    """The first so many flags of such bytes."""
    return (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1).flatten()[:count].bool()
