"""Weights of which only those that are not zero are held, and products with them. Axes: M rows, N outputs, K inputs, P panels.

The outputs are cut into panels of 32 columns. Of each panel and input a word of 32 bits says which columns have a weight there
(bit c is column c's); the values lie one after another, panel by panel, in it by input, then by column, as fp32 or bf16. Bytes of
words come first, then those of values, then 64 zeros, so that vectors may be read whole.

A product takes activations as they are, in float32, and is bit for bit what the dense kernel gives for the same floats.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.errors import UsageError
from lithe.kernels import library
from lithe.kernels.pack import PANEL

KINDS = {"sparse_fp32": torch.float32, "sparse_bf16": torch.bfloat16}
WAYS = ("auto", "spread", "dense", "walk")  # of computing a product; none changes a bit
BEHIND = 64  # bytes
_ONES = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.int64)


class _Struct(ctypes.Structure):
    """Sparse of sparse.c."""

    _fields_ = (("bitmap", c_void_p), ("values", c_void_p), ("starts", c_void_p), ("kind", c_int32), ("n", c_int32),
                ("k", c_int32))  # fmt: skip


@dataclass(frozen=True)
class Sparse:
    """A weight matrix [n, k] with `count` values. data: bytes, laid out as above. Raises UsageError where they cannot be that."""

    data: Tensor
    kind: str
    n: int
    k: int
    count: int

    def __post_init__(self) -> None:
        wanted = size(self.kind, self.n, self.k, self.count)
        if self.data.dtype != torch.uint8 or self.data.numel() != wanted or not self.data.is_contiguous():
            raise UsageError(f"{self.kind} weights of {self.n} x {self.k} with {self.count} values are {wanted} bytes, not "
                             f"{tuple(self.data.shape)}")
        if not self.data.is_meta and (found := int(self.starts[-1])) != self.count:
            raise UsageError(f"{self.kind} weights of {self.n} x {self.k}: the bitmap tells of {found} values, not {self.count}")

    @property
    def bitmap(self) -> Tensor:
        """Bytes of the words, four each [P, K * 4]."""
        return self.data[: _words(self.n, self.k) * 4].view(-1, self.k * 4)

    @property
    def values(self) -> Tensor:
        """[count] in the kind's precision."""
        start, dtype = _words(self.n, self.k) * 4, KINDS[self.kind]
        return self.data[start : start + self.count * dtype.itemsize].view(dtype)

    @cached_property
    def starts(self) -> Tensor:
        """The number of each panel's first value, then that of all [P + 1]."""
        return F.pad(_ONES[self.bitmap.int()].sum(1).cumsum(0), (1, 0))

    @cached_property
    def struct(self) -> _Struct:
        start = self.data.data_ptr()
        return _Struct(start, start + _words(self.n, self.k) * 4, self.starts.data_ptr(), list(KINDS).index(self.kind), self.n,
                       self.k)

    @property
    def density(self) -> float:
        """The share of weights that are there."""
        return self.count / (self.n * self.k)

    def __reduce__(self):  # a copy must not inherit an address
        return Sparse, (self.data, self.kind, self.n, self.k, self.count)


def size(kind: str, n: int, k: int, count: int) -> int:
    """Bytes of a matrix with so many values, which also holds the numbers against what is legal."""
    if kind not in KINDS or n < 1 or k < 1 or not 0 <= count <= _words(n, k) * PANEL:
        raise UsageError(f"there are no {kind!r} weights of {n} x {k} with {count} values; kinds are {', '.join(KINDS)}")
    return _words(n, k) * 4 + count * KINDS[kind].itemsize + BEHIND


def pack(weight_NK: Tensor, kind: str) -> Sparse:
    """Keep what is not zero of a matrix, rounded to the kind's precision."""
    n, k = weight_NK.shape
    w_PKC = F.pad(weight_NK.detach().to(KINDS[kind]), (0, 0, 0, -n % PANEL)).view(-1, PANEL, k).transpose(1, 2)
    there_PKC = w_PKC != 0
    words_PK = (there_PKC.int() << torch.arange(PANEL, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    values = w_PKC[there_PKC]
    data = torch.cat([words_PK.flatten().view(torch.uint8), values.view(torch.uint8), torch.zeros(BEHIND, dtype=torch.uint8)])
    return Sparse(data, kind, n, k, len(values))


def unpack(sparse: Sparse) -> Tensor:
    """The plain matrix [N, K], bit for bit."""
    bits = sparse.bitmap.reshape(-1, sparse.k, 4, 1) >> torch.arange(8, dtype=torch.uint8) & 1
    there_PKC = bits.view(-1, sparse.k, PANEL).bool()
    out_PKC = torch.zeros(there_PKC.shape, dtype=KINDS[sparse.kind])
    out_PKC[there_PKC] = sparse.values
    return out_PKC.transpose(1, 2).flatten(0, 1)[: sparse.n]


def twin(sparse: Sparse, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """The product in plain PyTorch, in float64: slow, and the measure of the kernel."""
    y_MN = x_MK.double() @ unpack(sparse).double().T
    return (y_MN if bias_N is None else y_MN + bias_N).float()


def linear(sparse: Sparse, x_MK: Tensor, bias_N: Tensor | None = None, *, threads: int | None = None, way: str = "auto",
           kernels: library.Library | None = None) -> Tensor:
    """x W^T + bias in float32 [M, N]. Row i is bitwise the same whatever rows it comes with, on any number of threads, any way.

    Without compiled kernels PyTorch multiplies, slowly.
    """
    if x_MK.dim() != 2 or x_MK.shape[1] != sparse.k or x_MK.device.type != "cpu" or sparse.data.device.type != "cpu":
        raise UsageError(f"{sparse.kind} weights of {sparse.n} x {sparse.k} cannot take {tuple(x_MK.shape)} on {x_MK.device}")
    found = kernels or library.load()
    if found is None:
        return twin(sparse, x_MK, bias_N)
    x = x_MK.detach().float()
    x = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    bias = None if bias_N is None else bias_N.detach().float().contiguous()
    y = torch.empty(len(x), sparse.n)
    call = found.lib.lithe_sparse
    call.restype, call.argtypes = None, (POINTER(_Struct), c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32, c_int32, c_int32)
    call(ctypes.byref(sparse.struct), x.data_ptr(), x.stride(0), None if bias is None else bias.data_ptr(), y.data_ptr(),
         sparse.n, len(x), threads or library.threads(), WAYS.index(way))
    return y


def _words(n: int, k: int) -> int:
    return -(-n // PANEL) * k
