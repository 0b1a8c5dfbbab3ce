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
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lithe.kernels import library
from lithe.kernels.library import PackedStruct
from lithe.kernels.pack import Packed

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = ("attn_norm", "mlp_norm", "q_norm", "k_norm", "q_bias", "k_bias", "v_bias", "o_bias", "attn_out_norm",
           "mlp_out_norm")


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

    _fields_ = (*((name, c_void_p) for name in ("x", "out", "pos", "lengths", "among")), ("among_stride", c_int64),
                *((name, c_int32) for name in ("batch", "rows", "attn", "mlp", "threads")))  # fmt: skip


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
        made.batch_stride, made.head_stride = k.stride(0), k.stride(1)
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


class Rows:
    """What all layers of one pass share: positions [B, T], the slot of each sequence's first row, and who sees whom.

    A row sees what is cached and, among the rows of the pass, those up to itself, or what `among` [B or 1, T, T] says.
    last: no position lies past it.
    """

    def __init__(self, pos_BT: Tensor, lengths: list[int], among_BTT: Tensor | None, last: int, threads: int):
        B, T = pos_BT.shape
        self.last, self.slots = last, max(lengths) + T
        self.pos_BT, self.lengths = pos_BT.contiguous(), (c_int32 * B)(*lengths)
        assert self.pos_BT.dtype == torch.int64 and len(lengths) == B
        self.struct = PassStruct(pos=self.pos_BT.data_ptr(), lengths=ctypes.addressof(self.lengths), batch=B, rows=T,
                                 threads=threads)
        if among_BTT is not None:
            self.among_BTT = among_BTT = among_BTT.contiguous()
            assert among_BTT.dtype == torch.bool and among_BTT.shape[0] in (1, B) and among_BTT.shape[1:] == (T, T)
            self.struct.among, self.struct.among_stride = among_BTT.data_ptr(), T * T if among_BTT.shape[0] > 1 else 0


def layers(stack: Stack, rows: Rows, x_BTC: Tensor, first: int, count: int = 1, *, attn: bool = True, mlp: bool = True,
           kernels: library.Library) -> Tensor:
    """`count` layers of a stack over the rows of a pass, float32 [B, T, C]; keys and values go behind each sequence's length.

    A row's result depends on its own input and the keys it sees, bitwise: not on other rows, the batch or threads.
    """
    x_BTC = x_BTC.detach().float().contiguous()
    out_BTC, run = torch.empty_like(x_BTC), rows.struct
    assert 0 <= first < first + count <= len(stack.weights) and all(stack.layer_array[first : first + count])
    assert x_BTC.shape[-1] == stack.width
    assert x_BTC.shape[:2] == rows.pos_BT.shape and rows.slots <= stack.room and len(x_BTC) <= stack.batch
    assert rows.last < stack.positions
    run.x, run.out, run.attn, run.mlp = x_BTC.data_ptr(), out_BTC.data_ptr(), attn, mlp
    kernels.lib.lithe_layers(ctypes.byref(stack.layer_array, first * ctypes.sizeof(c_void_p)),
                             ctypes.byref(stack.place_array, first * ctypes.sizeof(PlaceStruct)), count, ctypes.byref(run))
    return out_BTC


class Stores:
    """Each [G, S, D] of one sequence's cache, as the kernels take them: made once, good for many moves. Shapes may differ."""

    def __init__(self, stores: Sequence[Tensor]):
        count = self.count = len(stores)
        assert all(t.stride()[1:] == (t.shape[2], 1) for t in stores)
        self.stores, self.room = list(stores), min((t.shape[1] for t in stores), default=0)
        self.data = (c_void_p * count)(*(t.data_ptr() for t in stores))
        self.strides = (c_int64 * count)(*(t.stride(0) * t.element_size() for t in stores))
        self.heads = (c_int32 * count)(*(t.shape[0] for t in stores))
        self.sizes = (c_int64 * count)(*(t.shape[2] * t.element_size() for t in stores))

    def gather(self, start: int, rows: Sequence[int], *, kernels: library.Library) -> None:
        """Slots start + rows[i], rising, move to start + i."""
        assert all(a < b for a, b in pairwise((-1, *rows)))
        assert not rows or start + rows[-1] < self.room
        kernels.lib.lithe_gather(self.data, self.strides, self.heads, self.sizes, self.count, start,
                                 (c_int64 * len(rows))(*rows), len(rows))


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
