"""A whole decoder layer in one call: the compiled twin of `model.decoder.Block`. Axes: B batch, T rows, C width, D head width,
G key-value heads, S slots, R rotated entries.

It knows tensors and numbers only; `model/fast.py` says which blocks it can stand for.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor

from lithe.kernels import library
from lithe.kernels.library import PackedStruct
from lithe.kernels.pack import Packed

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = ("attn_norm", "mlp_norm", "q_norm", "k_norm", "q_bias", "k_bias", "v_bias", "o_bias")


class LayerStruct(ctypes.Structure):
    """Layer of layer.c."""

    _fields_ = (*((name, PackedStruct) for name in MATRICES), *((name, c_void_p) for name in VECTORS),
                *((name, c_int32) for name in ("width", "heads", "kv_heads", "head_dim", "rotated", "ffn")),
                ("eps", c_float), ("scale", c_float))  # fmt: skip


class PassStruct(ctypes.Structure):
    """Pass of layer.c."""

    _fields_ = (*((name, c_void_p) for name in ("x", "out", "cos", "sin", "visible")), ("visible_stride", c_int64),
                ("k", c_void_p), ("v", c_void_p), ("batch_stride", c_int64), ("head_stride", c_int64), ("lengths", c_void_p),
                *((name, c_int32) for name in ("batch", "rows", "slots", "cache_kind", "attn", "mlp", "threads")))  # fmt: skip


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
    heads: int
    kv_heads: int
    head_dim: int
    rotated: int
    eps: float
    scale: float

    @cached_property
    def struct(self) -> LayerStruct:
        made = LayerStruct(width=len(self.attn_norm), ffn=self.up.n if self.up else 0, heads=self.heads,
                           kv_heads=self.kv_heads, head_dim=self.head_dim, rotated=self.rotated, eps=self.eps, scale=self.scale)
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


@dataclass(kw_only=True)
class Rows:
    """What all layers of one pass share. visible [B or 1, T, S] is boolean; None: a row sees all slots up to its own."""

    lengths: list[int]
    rows: int
    visible: Tensor | None
    cos_BTR: Tensor
    sin_BTR: Tensor
    threads: int
    struct: PassStruct = field(init=False)

    def __post_init__(self) -> None:
        B, T = len(self.lengths), self.rows
        self.cos_BTR, self.sin_BTR = (t.float().expand(B, T, -1).contiguous() for t in (self.cos_BTR, self.sin_BTR))
        self.slots = torch.tensor(self.lengths, dtype=torch.int32)
        self.struct = PassStruct(cos=self.cos_BTR.data_ptr(), sin=self.sin_BTR.data_ptr(), lengths=self.slots.data_ptr(),
                                 batch=B, rows=T, threads=self.threads)
        if self.visible is not None:
            self.visible = self.visible.contiguous()
            assert self.visible.dtype == torch.bool and self.visible.shape[0] in (1, B) and self.visible.shape[1] == T
            assert self.visible.shape[2] == max(self.lengths) + T
            self.struct.visible, self.struct.slots = self.visible.data_ptr(), self.visible.shape[2]
            self.struct.visible_stride = self.visible.stride(0) if self.visible.shape[0] > 1 else 0


def layer(weights: LayerWeights, rows: Rows, x_BTC: Tensor, k_BGSD: Tensor | None, v_BGSD: Tensor | None, *,
          attn: bool = True, mlp: bool = True, kernels: library.Library) -> Tensor:
    """One layer over the rows of a pass, float32 [B, T, C]; keys and values are written into the cache behind each length.

    A row's result depends on its own input and the keys it sees, bitwise: not on other rows, the batch or threads.
    """
    attn, mlp = attn and weights.q is not None, mlp and weights.up is not None
    x_BTC = x_BTC.detach().float().contiguous()
    if not (attn or mlp):
        return x_BTC
    out_BTC, run = torch.empty_like(x_BTC), rows.struct
    run.x, run.out, run.attn, run.mlp = x_BTC.data_ptr(), out_BTC.data_ptr(), attn, mlp
    if attn:
        assert k_BGSD is not None and v_BGSD is not None and k_BGSD.stride() == v_BGSD.stride()
        assert k_BGSD.dtype in (torch.float32, torch.bfloat16) and k_BGSD.stride()[2:] == (weights.head_dim, 1)
        assert k_BGSD.shape[2] >= max(rows.lengths) + rows.rows
        run.k, run.v, run.cache_kind = k_BGSD.data_ptr(), v_BGSD.data_ptr(), int(k_BGSD.dtype == torch.bfloat16)
        run.batch_stride, run.head_stride = k_BGSD.stride(0), k_BGSD.stride(1)
    kernels.lib.lithe_layer(ctypes.byref(weights.struct), ctypes.byref(run))
    return out_BTC


def norm(x: Tensor, weight_C: Tensor, eps: float, *, kernels: library.Library) -> Tensor:
    """RMSNorm of rows [..., C] in float32, as the layers compute it."""
    x = x.detach().float().contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    kernels.lib.lithe_norm(x.data_ptr(), weight_C.data_ptr(), out.data_ptr(), width, x.numel() // width, eps)
    return out
