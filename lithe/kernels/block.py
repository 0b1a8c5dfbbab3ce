"""Whole decoder layers, one or many in a call: the compiled twin of `model.decoder.Block`. Axes: B batch, T rows, C width,
D head width, G key-value heads, S slots, P positions, R rotated entries.

It knows tensors and numbers only; `model/fast.py` says which blocks it can stand for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from operator import add, lt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lithe.kernels import library
from lithe.kernels.library import PackedStruct
from lithe.kernels.pack import Packed

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = ("attn_norm", "mlp_norm", "q_norm", "k_norm", "q_bias", "k_bias", "v_bias", "o_bias", "attn_out_norm",
           "mlp_out_norm")
FEW = 512  # pages that are looked through one by one


class LayerStruct(ctypes.Structure):
    """Layer of layer.c."""

    _fields_ = (*((name, PackedStruct) for name in MATRICES), *((name, c_void_p) for name in VECTORS),
                *((name, c_int32) for name in ("width", "heads", "kv_heads", "head_dim", "rotated", "ffn", "gelu")),
                *((name, c_float) for name in ("eps", "scale", "cap")))  # fmt: skip


class PlaceStruct(ctypes.Structure):
    """Place of layer.c."""

    _fields_ = (*((name, c_void_p) for name in ("k", "v", "cos", "sin")), ("batch_stride", c_int64), ("head_stride", c_int64),
                ("cache_kind", c_int32), ("window", c_int32))  # fmt: skip


class PassStruct(ctypes.Structure):
    """Pass of layer.c."""

    _fields_ = (*((name, c_void_p) for name in ("x", "out", "pos", "lengths", "starts", "owners", "order", "spans", "tables",
                                                "among", "among_at")), ("table_stride", c_int64),
                *((name, c_int32) for name in ("batch", "rows", "groups", "shift", "attn", "mlp", "threads")))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """What one layer multiplies with; vectors are float32. A layer may lack its attention half or its FFN."""

    q: Packed | None
    k: Packed | None
    v: Packed | None
    o: Packed | None
    gate: Packed | None
    up: Packed | None
    down: Packed | None
    attn_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    attn_out_norm: Tensor | None = None
    mlp_out_norm: Tensor | None = None
    heads: int
    kv_heads: int
    head_dim: int
    rotated: int
    eps: float
    scale: float
    cap: float = 0.0  # of scores; 0 for none
    gelu: bool = False  # in its tanh form, where SiLU gates otherwise

    @cached_property
    def struct(self) -> LayerStruct:
        made = LayerStruct(width=len(self.attn_norm), ffn=self.up.n if self.up else 0, heads=self.heads,
                           kv_heads=self.kv_heads, head_dim=self.head_dim, rotated=self.rotated, eps=self.eps, scale=self.scale,
                           cap=self.cap, gelu=self.gelu)
        for name in MATRICES:
            if (packed := getattr(self, name)) is not None:
                setattr(made, name, packed.struct)
        for name in VECTORS:
            if (vector := getattr(self, name)) is not None:
                assert vector.dtype == torch.float32 and vector.is_contiguous()
                setattr(made, name, vector.data_ptr())
        return made

    def __reduce__(self):  # a copy must not inherit addresses
        return _layer_weights, ({one.name: getattr(self, one.name) for one in fields(self)},)


def _layer_weights(values: dict) -> LayerWeights:
    return LayerWeights(**values)


class Place(NamedTuple):
    """What differs from layer to layer beside weights: the cache [B, G, S, D], the rotation tables [P, R], the window."""

    k_BGSD: Tensor
    v_BGSD: Tensor
    cos_PR: Tensor
    sin_PR: Tensor
    window: int | None = None

    def fill(self, made: PlaceStruct) -> None:
        k, v = self.k_BGSD, self.v_BGSD
        assert k.stride() == v.stride() and k.shape == v.shape and k.stride()[2:] == (k.shape[3], 1)
        assert k.dtype in (torch.float32, torch.bfloat16) and v.dtype == k.dtype
        assert all(t.dtype == torch.float32 and t.is_contiguous() for t in (self.cos_PR, self.sin_PR))
        made.k, made.v, made.cos, made.sin = (t.data_ptr() for t in self[:4])
        made.batch_stride, made.head_stride = k.stride(0) if len(k) > 1 else 0, k.stride(1)  # pages: one store for all
        made.cache_kind, made.window = int(k.dtype == torch.bfloat16), self.window or 0


class Stack:
    """Layers that follow one another and their places, as the kernels take them: made once, good for many passes.

    None stands for a layer that the kernels cannot run.
    """

    def __init__(self, weights: Sequence[LayerWeights | None], places: Sequence[Place | None]):
        self.weights, self.places = list(weights), list(places)
        self.layer_array = (c_void_p * len(self.weights))()
        self.place_array = (PlaceStruct * len(self.weights))()
        self.width = next(len(weight.attn_norm) for weight in self.weights if weight)
        self.room = self.batch = self.positions = 2**31 - 1  # slots, sequences and positions that all have
        for i, (weight, place) in enumerate(zip(self.weights, self.places, strict=True)):
            if weight is None or place is None:
                continue
            self.layer_array[i] = ctypes.addressof(weight.struct)
            place.fill(self.place_array[i])
            B, G, S, D = place.k_BGSD.shape
            assert (weight.kv_heads, weight.head_dim) == (G, D) and place.cos_PR.shape[1] == weight.rotated
            self.room, self.batch = min(self.room, S), min(self.batch, B)
            self.positions = min(self.positions, len(place.cos_PR))


class Paging(NamedTuple):
    """Where the slots of paged sequences lie: the page of each 2^shift slots [B, P], and the pages that the stores hold."""

    pages_BP: np.ndarray
    shift: int
    pages: int
    order: Sequence[int] | None = None  # attention takes rows in this order,
    spans: Sequence[int] | None = None  # and lets those between two of these places share loads; each sequence's own alone


class Rows:
    """What all layers of one pass share: positions, the slot of each sequence's first row, and who sees whom.

    The rows of a pass lie end to end, counts[b] of them sequence b's. A row sees what is cached and, among the rows of its
    sequence, those up to itself, or what squares[b] [T, T] says. last: no position lies past it.
    """

    def __init__(self, pos_R: Tensor, lengths: Sequence[int], counts: Sequence[int], squares: Sequence[Tensor | None] | None,
                 last: int, threads: int, paging: Paging | None = None):
        B, self.last, self.paging = len(lengths), last, paging
        self.slots = max(map(add, lengths, counts))
        self.pos_R, starts = pos_R.contiguous(), [0, *accumulate(counts)]
        assert self.pos_R.dtype == torch.int64 and len(counts) == B and starts[-1] == pos_R.numel()
        owners = [0] * starts[-1] if B == 1 else np.repeat(np.arange(B), counts)
        self.struct = PassStruct(pos=self.pos_R.data_ptr(), batch=B, rows=starts[-1], groups=B, threads=threads)
        self.held: list = []  # what the struct points to
        self._put(lengths=lengths, starts=starts, spans=starts, owners=owners)
        if paging is not None:
            self._page(paging, lengths, counts)
        if squares is not None:
            self._see(squares, counts)

    def _put(self, **arrays: Sequence[int] | np.ndarray) -> None:
        for name, array in arrays.items():
            made = np.ascontiguousarray(array, dtype=np.int32)
            self.held.append(made)
            setattr(self.struct, name, made.ctypes.data)

    def _page(self, paging: Paging, lengths: Sequence[int], counts: Sequence[int]) -> None:
        pages_BP = paging.pages_BP
        assert pages_BP.dtype == np.int32 and len(pages_BP) == len(lengths) == len(counts)
        assert pages_BP.shape[1] << paging.shift >= max(map(add, lengths, counts))
        held = pages_BP.view(np.uint32)  # so that none is below 0; numpy's own `max` takes many times as long for few
        assert max(held.ravel().tolist(), default=0) < paging.pages if held.size < FEW else held.max() < paging.pages
        self._put(tables=pages_BP)
        self.struct.table_stride, self.struct.shift = pages_BP.shape[1], paging.shift
        if paging.order is not None and paging.spans is not None:
            assert sorted(paging.order) == list(range(self.struct.rows))
            assert paging.spans[0] == 0 and paging.spans[-1] == self.struct.rows
            assert all(map(lt, paging.spans, paging.spans[1:]))
            self._put(order=paging.order, spans=paging.spans)
            self.struct.groups = len(paging.spans) - 1

    def _see(self, squares: Sequence[Tensor | None], counts: Sequence[int]) -> None:
        """Squares one after another; one that several sequences share is there once."""
        places: dict[int, int] = {}
        kept: list[Tensor] = []
        end = 0
        for square, count in zip(squares, counts, strict=True):
            if square is not None and id(square) not in places:
                assert square.dtype == torch.bool and square.shape == (count, count)
                places[id(square)], end = end, end + count * count
                kept.append(square.reshape(-1))
        among = kept[0].contiguous() if len(kept) == 1 else torch.cat(kept) if kept else torch.zeros(1, dtype=torch.bool)
        at = np.array([-1 if square is None else places[id(square)] for square in squares], dtype=np.int64)
        self.held += [among, at]
        self.struct.among, self.struct.among_at = among.data_ptr(), at.ctypes.data


def layers(stack: Stack, rows: Rows, x_BTC: Tensor, first: int, count: int = 1, *, attn: bool = True, mlp: bool = True,
           kernels: library.Library) -> Tensor:
    """`count` layers of a stack over the rows of a pass, float32 [..., C]; keys and values go behind each sequence's length.

    A row's result depends on its own input and the keys it sees, bitwise: not on other rows, the batch or threads.
    """
    x_BTC = x_BTC.detach().float().contiguous()
    out_BTC, run = torch.empty_like(x_BTC), rows.struct
    assert 0 <= first < first + count <= len(stack.weights) and all(stack.layer_array[first : first + count])
    assert x_BTC.shape[-1] == stack.width
    assert x_BTC.shape[:-1].numel() == rows.struct.rows and rows.last < stack.positions
    if rows.paging is None:
        assert rows.slots <= stack.room and rows.struct.batch <= stack.batch
    else:
        assert rows.paging.pages << rows.paging.shift <= stack.room
    run.x, run.out, run.attn, run.mlp = x_BTC.data_ptr(), out_BTC.data_ptr(), attn, mlp
    kernels.lib.lithe_layers(ctypes.byref(stack.layer_array, first * ctypes.sizeof(c_void_p)),
                             ctypes.byref(stack.place_array, first * ctypes.sizeof(PlaceStruct)), count, ctypes.byref(run))
    return out_BTC


class Stores:
    """Each [G, S, D] of a cache, as the kernels take them: made once, good for many moves. Shapes may differ."""

    def __init__(self, stores: Sequence[Tensor]):
        count = self.count = len(stores)
        assert all(t.stride()[1:] == (t.shape[2], 1) for t in stores)
        self.stores, self.room = list(stores), min((t.shape[1] for t in stores), default=0)
        self.data = (c_void_p * count)(*(t.data_ptr() for t in stores))
        self.strides = (c_int64 * count)(*(t.stride(0) * t.element_size() for t in stores))
        self.heads = (c_int32 * count)(*(t.shape[0] for t in stores))
        self.sizes = (c_int64 * count)(*(t.shape[2] * t.element_size() for t in stores))

    def move(self, old: Sequence[int], new: Sequence[int], *, kernels: library.Library) -> None:
        """What lies in slot old[i] goes to slot new[i], one after another."""
        assert len(old) == len(new) and (not old or 0 <= min(*old, *new) <= max(*old, *new) < self.room)
        kernels.lib.lithe_move(self.data, self.strides, self.heads, self.sizes, self.count,
                               (c_int64 * len(old))(*old), (c_int64 * len(new))(*new), len(old))


def norm(x: Tensor, weight_C: Tensor, eps: float, *, kernels: library.Library) -> Tensor:
    """RMSNorm of rows [..., C] in float32, as the layers compute it."""
    x = x.detach().float().contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    kernels.lib.lithe_norm(x.data_ptr(), weight_C.data_ptr(), out.data_ptr(), width, x.numel() // width, eps)
    return out


def head(packed: Packed, x: Tensor, weight_C: Tensor, eps: float, bias_N: Tensor | None, *, kernels: library.Library) -> Tensor:
    """The product of packed weights [N, C] with the norm of rows [..., C], in float32: `norm` and `linear` in one call."""
    x = x.detach().float().contiguous()
    assert x.shape[-1] == packed.k == len(weight_C) and (bias_N is None or bias_N.is_contiguous())
    y, bias = torch.empty(*x.shape[:-1], packed.n), None if bias_N is None else bias_N.data_ptr()
    kernels.lib.lithe_head(packed.pointer, x.data_ptr(), weight_C.data_ptr(), eps, bias, y.data_ptr(), x.numel() // packed.k,
                           library.threads())
    return y
