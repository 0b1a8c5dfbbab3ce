"""The product of activations with packed weights. Axes: M rows, N outputs, K inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lithe.errors import UsageError
from lithe.kernels import library, twins
from lithe.kernels.pack import Packed, unpack


def linear(packed: Packed, x_MK: Tensor, bias_N: Tensor | None = None, *, threads: int | None = None,
           kernels: library.Library | None = None) -> Tensor:
    """x W^T + bias in float32, [M, N]. Row i is bitwise the same whatever rows it comes with, on any number of threads.

    Without compiled kernels the same arithmetic runs in PyTorch, slowly.
    """
    if x_MK.dim() != 2 or x_MK.shape[1] != packed.k or x_MK.device.type != "cpu" or packed.data.device.type != "cpu":
        raise UsageError(f"{packed.kind} weights of {packed.n} x {packed.k} cannot take {tuple(x_MK.shape)} on {x_MK.device}")
    found = kernels or library.load()
    if found is None:
        return twins.linear(packed, x_MK, bias_N)
    x = x_MK.detach().float()
    x = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    bias = None if bias_N is None else bias_N.detach().float().contiguous()
    y = torch.empty(len(x), packed.n)
    found.lib.lithe_linear(packed.pointer, x.data_ptr(), x.stride(0), None if bias is None else bias.data_ptr(),
                           y.data_ptr(), packed.n, len(x), threads or library.threads())
    return y


def rows(packed: Packed, ids: Tensor, *, kernels: library.Library | None = None) -> Tensor:
    """Rows of packed weights as floats [len(ids), K], which is how a tied embedding is read. ids: [M].

    Raises IndexError for a row that is not there.
    """
    found = kernels or library.load()
    if found is None or ids.device.type != "cpu":
        return unpack(packed, ids)
    ids = ids.long().contiguous()
    out = torch.empty(len(ids), packed.k)
    wrong = found.lib.lithe_rows(packed.pointer, ids.data_ptr(), len(ids), out.data_ptr())
    if wrong >= 0:
        raise IndexError(f"there is no row {int(ids[wrong])} among {packed.n}")
    return out
