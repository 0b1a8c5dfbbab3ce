"""Weights of which only those that are not zero are held, and products with them. Axes: M rows, N outputs, K inputs, P panels.

Stored (`Sparse`): outputs are cut into panels of 32 columns. Of each panel and input a word of 32 bits says which columns
have a weight there (bit c is column c's); the values lie one after another, panel by panel, in it by input, then by column, as
fp32 or bf16. Bytes of words come first, then those of values, then 64 zeros, so that vectors may be read whole.

Multiplied with (`Ready`): as stored, or, where few are left, as strips: groups of eight outputs, step by step the next value of
each and its input's number in 16 bits; outputs with fewer than others of their group end with zeros at input 0.

A product takes activations as they are, in float32. In either form it gives, bit for bit, what the dense kernel does.
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
FEW = {"sparse_fp32": 0.32, "sparse_bf16": 0.22}  # share of weights left below which strips win (docs/log/compress/sparse.md)
GROUP, INPUTS = 8, 2**16  # of strips: outputs, and inputs at most
BEHIND = 64  # bytes
_ONES = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.int64)


class _Struct(ctypes.Structure):
    """Sparse of sparse.c."""

    _fields_ = (*((name, c_void_p) for name in ("places", "values", "starts")),
                *((name, c_int32) for name in ("kind", "n", "k", "strips")))


@dataclass(frozen=True)
class Sparse:
    """A weight matrix [n, k] with `count` values. data: bytes as above. Raises UsageError where they cannot be that."""

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
            raise UsageError(f"{self.kind} weights of {self.n} x {self.k}: the bitmap tells of {found} values, not "
                             f"{self.count}")

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

    @property
    def density(self) -> float:
        """The share of weights that are there."""
        return self.count / (self.n * self.k)


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


@dataclass(frozen=True)
class Ready:
    """A matrix as the kernel multiplies with it. places: words of bits or inputs' numbers; values: with zeros behind them;
    starts: of each panel or group; strips: which of the two."""

    places: Tensor
    values: Tensor
    starts: Tensor
    n: int
    k: int
    strips: bool

    @property
    def kind(self) -> str:
        return next(kind for kind, dtype in KINDS.items() if dtype == self.values.dtype)

    @cached_property
    def struct(self) -> _Struct:
        pointers = (tensor.data_ptr() for tensor in (self.places, self.values, self.starts))
        return _Struct(*pointers, list(KINDS).index(self.kind), self.n, self.k, self.strips)

    def __reduce__(self):  # a copy must not inherit an address
        return Ready, (self.places, self.values, self.starts, self.n, self.k, self.strips)


def ready(sparse: Sparse, strips: bool | None = None) -> Ready:
    """The form that is fastest for so many weights, or the one asked for. As stored, it shares the bytes."""
    if strips is None:
        strips = sparse.density < FEW[sparse.kind] and sparse.k <= INPUTS
    if strips:
        return _strips(sparse)
    start = _words(sparse.n, sparse.k) * 4
    return Ready(sparse.data[:start], sparse.data[start:].view(KINDS[sparse.kind]), sparse.starts, sparse.n, sparse.k, False)


def _strips(sparse: Sparse) -> Ready:
    if sparse.k > INPUTS:
        raise UsageError(f"strips count inputs in 16 bits: {sparse.k} are too many")
    weight_NK = unpack(sparse)
    row_S, column_S = weight_NK.nonzero(as_tuple=True)
    count_N = F.pad(row_S.bincount(minlength=sparse.n), (0, -sparse.n % GROUP))
    starts = F.pad(count_N.view(-1, GROUP).amax(1).cumsum(0), (1, 0))
    nth_S = torch.arange(len(row_S)) - (count_N.cumsum(0) - count_N)[row_S]  # of its row
    place_S = (starts[row_S // GROUP] + nth_S) * GROUP + row_S % GROUP
    room = int(starts[-1]) * GROUP + BEHIND
    values = torch.zeros(room, dtype=weight_NK.dtype).index_copy_(0, place_S, weight_NK[row_S, column_S])
    places = torch.zeros(room, dtype=torch.int32).index_copy_(0, place_S, column_S.int())
    return Ready(places.to(torch.uint16), values, starts, sparse.n, sparse.k, True)


def plain(held: Ready) -> Tensor:
    """The matrix [N, K] of either form, bit for bit."""
    if not held.strips:
        return unpack(stored(held))
    steps = held.starts.diff()
    group_S = torch.repeat_interleave(torch.arange(len(steps)), steps * GROUP)
    row_S = group_S * GROUP + torch.arange(len(group_S)) % GROUP
    out = torch.zeros(len(steps) * GROUP, held.k, dtype=held.values.dtype)
    out.index_put_((row_S, held.places[: len(row_S)].long()), held.values[: len(row_S)], accumulate=True)
    return out[: held.n]


def stored(held: Ready) -> Sparse:
    """What `ready` made this of."""
    if held.strips:
        return pack(plain(held), held.kind)
    data, values = held.places, held.values.view(torch.uint8)
    count = (len(values) - BEHIND) // held.values.element_size()
    return Sparse(torch.cat((data, values)), held.kind, held.n, held.k, count)


def twin(held: Ready, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """The product in plain PyTorch, in float64: slow, and the measure of the kernel."""
    y_MN = x_MK.double() @ plain(held).double().T
    return (y_MN if bias_N is None else y_MN + bias_N).float()


def linear(held: Ready, x_MK: Tensor, bias_N: Tensor | None = None, *, threads: int | None = None,
           kernels: library.Library | None = None) -> Tensor:
    """x W^T + bias in float32 [M, N]. Row i is bitwise the same whatever rows it comes with, on any number of threads.

    Without compiled kernels PyTorch multiplies, slowly.
    """
    if x_MK.dim() != 2 or x_MK.shape[1] != held.k or x_MK.device.type != "cpu" or held.values.device.type != "cpu":
        raise UsageError(f"{held.kind} weights of {held.n} x {held.k} cannot take {tuple(x_MK.shape)} on {x_MK.device}")
    found = kernels or library.load()
    if found is None:
        return twin(held, x_MK, bias_N)
    x = x_MK.detach().float()
    x = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    bias = None if bias_N is None else bias_N.detach().float().contiguous()
    y = torch.empty(len(x), held.n)
    call = found.lib.lithe_sparse
    call.restype, call.argtypes = None, (POINTER(_Struct), c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32, c_int32)
    call(ctypes.byref(held.struct), x.data_ptr(), x.stride(0), None if bias is None else bias.data_ptr(), y.data_ptr(), held.n,
         len(x), threads or library.threads())
    return y


def _words(n: int, k: int) -> int:
    return -(-n // PANEL) * k
