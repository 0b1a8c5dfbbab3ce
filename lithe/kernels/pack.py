"""How weights lie in memory for the kernels: the one place that says so. Axes: N outputs, K inputs, G groups of inputs.

The outputs are cut into panels of 32 columns, each of two tiles of 16; a vector lane is a column. N is padded to whole panels
with zeros, K as the kind needs it:

- fp32: a panel is [K][32] floats.
- bf16: a panel is [K / 2][32][2]: pairs of inputs, K padded to 2.
- int8: a tile is its scales [G][16] in fp16, padded to 64 bytes, then [K / 32][8][16][4] bytes: blocks of 32 inputs, in them
  quads of 4, in them 16 columns. A byte is the weight + 128; weights are -127 to 127; K is padded to 32.
- int4: the same with [K / 32][4][16][4] bytes: byte j of quad q holds weight + 8 of quad q in its low half and of quad q + 4 in
  its high half; weights are -8 to 7.

A group is 32 or 128 inputs, or all of them (one scale a column); the last may be short. Activations are rounded as each kind
asks: to bfloat16 for bf16; to whole numbers with one scale a row and block of 32 inputs for int8 and int4, whatever the group.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.errors import UsageError
from lithe.kernels.library import KINDS, PackedStruct

PANEL, TILE, BLOCK = 32, 16, 32
UNIT = {"fp32": 1, "bf16": 2, "int8": BLOCK, "int4": BLOCK}  # what K is padded to
LEVELS = {"int8": (-127, 127, 128), "int4": (-8, 7, 8)}  # least, greatest, offset


@dataclass(frozen=True)
class Packed:
    """A weight matrix [n, k] as the kernels read it. data: bytes. group: inputs that share a scale; 0 for floats."""

    data: Tensor
    kind: str
    n: int
    k: int
    group: int = 0

    def __post_init__(self) -> None:
        wanted = size(self.kind, self.n, self.k, self.group)
        if self.data.dtype != torch.uint8 or self.data.numel() != wanted or not self.data.is_contiguous():
            raise UsageError(f"{self.kind} weights of {self.n} x {self.k} are {wanted} bytes, not {tuple(self.data.shape)}")

    @cached_property
    def struct(self) -> PackedStruct:
        return PackedStruct(self.data.data_ptr(), KINDS.index(self.kind), self.n, self.k, self.group)

    def __reduce__(self):  # a copy must not inherit an address
        return Packed, (self.data, self.kind, self.n, self.k, self.group)

    @property
    def pointer(self):
        return ctypes.byref(self.struct)


def size(kind: str, n: int, k: int, group: int = 0) -> int:
    """Bytes of packed weights, which also holds the shape and settings against what is legal."""
    if kind not in KINDS or n < 1 or k < 1:
        raise UsageError(f"there are no {kind!r} weights of {n} x {k}; kinds are {', '.join(KINDS)}")
    columns, inputs = _up(n, PANEL), _up(k, UNIT[kind])
    if kind in ("fp32", "bf16"):
        if group:
            raise UsageError(f"{kind} weights have no scales, so no groups of {group}")
        return columns * inputs * (4 if kind == "fp32" else 2)
    if group not in (32, 128, inputs):
        raise UsageError(f"groups of {group}: choose 32, 128 or {inputs}, all the inputs")
    return columns // TILE * (_scale_bytes(inputs, group) + inputs * TILE * (8 if kind == "int8" else 4) // 8)


def pack(weight_NK: Tensor, kind: str, group: int = 0) -> Packed:
    """Lay a weight matrix out, rounding it to nearest as `kind` asks. group 0: 32 in int8 and int4; -1: all inputs."""
    n, k = weight_NK.shape
    if kind in LEVELS:
        return pack_levels(*quantize(weight_NK, kind, group), kind)
    return lay_out(weight_NK, kind, torch.empty(size(kind, n, k, group), dtype=torch.uint8, device=weight_NK.device))


def lay_out(weight_NK: Tensor, kind: str, data: Tensor) -> Packed:
    """Lay a matrix out as floats in `data`, bytes as many as `size` says; unless padded, with nothing beside them."""
    n, k = weight_NK.shape
    w_NK, more = weight_NK.detach(), (0, -k % UNIT[kind], 0, -n % PANEL)
    w_NK = F.pad(w_NK, more) if any(more) else w_NK
    panels = w_NK.reshape(-1, PANEL, w_NK.shape[1] // UNIT[kind], UNIT[kind]).permute(0, 2, 1, 3)
    data.view(torch.float32 if kind == "fp32" else torch.bfloat16).view(panels.shape).copy_(panels)
    return Packed(data, kind, n, k)


def quantize(weight_NK: Tensor, kind: str, group: int = 0) -> tuple[Tensor, Tensor]:
    """Levels [N, K] in int8 and fp16 scales [N, G], nearest to a weight matrix.

    int8: scale = largest size / 127. int4: the weight of largest size becomes -8, which uses all sixteen levels.
    """
    n, k = weight_NK.shape
    low, high, _ = LEVELS[kind]
    group = _group(group, k)
    size(kind, n, k, group)
    w_NGI = F.pad(weight_NK.detach().float(), (0, -k % group)).view(n, -1, group)
    top_NG = w_NGI.gather(-1, w_NGI.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scale_NG = (top_NG.abs() / 127 if kind == "int8" else top_NG / -8).half()
    if not scale_NG.isfinite().all():
        raise UsageError("these weights are too large for scales in half precision, or are no numbers")
    wide_NG1 = scale_NG.float().unsqueeze(-1)
    levels_NGI = torch.where(wide_NG1 == 0, 0.0, w_NGI / wide_NG1).round().clamp(low, high)
    return levels_NGI.to(torch.int8).view(n, -1)[:, :k], scale_NG


def pack_levels(levels_NK: Tensor, scale_NG: Tensor, kind: str) -> Packed:
    """Lay out what a quantizer chose: whole numbers in the kind's range, and scales, whose count tells the group."""
    n, k = levels_NK.shape
    low, high, offset = LEVELS[kind]
    inputs, columns, groups = _up(k, BLOCK), _up(n, PANEL), scale_NG.shape[1]
    group = next((g for g in (32, 128, inputs) if -(-k // g) == groups), 0)
    total = size(kind, n, k, group)
    if int(levels_NK.min()) < low or int(levels_NK.max()) > high:
        raise UsageError(f"{kind} levels go from {low} to {high}")
    levels = F.pad(levels_NK.to(torch.int16), (0, inputs - k, 0, columns - n)) + offset
    quads = levels.to(torch.uint8).view(columns // TILE, TILE, inputs // BLOCK, 8, 4).permute(0, 2, 3, 1, 4)
    if kind == "int4":
        quads = quads[:, :, :4] | quads[:, :, 4:] << 4
    scale = F.pad(scale_NG.half(), (0, 0, 0, columns - n)).view(columns // TILE, TILE, groups).transpose(1, 2)
    scale_bytes = F.pad(scale.reshape(columns // TILE, -1), (0, (_scale_bytes(inputs, group) - groups * TILE * 2) // 2))
    data = torch.cat((scale_bytes.contiguous().view(torch.uint8), quads.reshape(columns // TILE, -1)), dim=1)
    assert data.numel() == total
    return Packed(data.flatten(), kind, n, k, group)


def unpack(packed: Packed, rows: Tensor | None = None) -> Tensor:
    """The weights as a plain matrix [N, K], or only some rows of it: bit for bit, or levels times scales."""
    row_N = torch.arange(packed.n) if rows is None else rows
    if packed.kind in LEVELS:
        levels_NK, scale_NG = levels(packed, row_N)
        wide_NK = scale_NG.float().repeat_interleave(packed.group, dim=1)[:, : packed.k]
        return levels_NK.float() * wide_NK
    dtype = torch.float32 if packed.kind == "fp32" else torch.bfloat16
    unit = UNIT[packed.kind]
    panels = packed.data.view(dtype).view(-1, _up(packed.k, unit) // unit, PANEL, unit)
    return panels[row_N // PANEL, :, row_N % PANEL].flatten(1)[:, : packed.k]


def levels(packed: Packed, row_N: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [N, K] in int8 and fp16 scales [N, G] of some rows of packed int8 or int4 weights."""
    inputs, offset = _up(packed.k, BLOCK), LEVELS[packed.kind][2]
    groups, start = -(-inputs // packed.group), _scale_bytes(inputs, packed.group)
    tiles = packed.data.view(_up(packed.n, PANEL) // TILE, -1)
    tile_N, column_N = row_N // TILE, row_N % TILE
    scale = tiles[:, : groups * TILE * 2].contiguous().view(torch.float16).view(-1, groups, TILE)
    quads = tiles[:, start:].view(len(tiles), inputs // BLOCK, -1, TILE, 4)[tile_N, :, :, column_N]
    if packed.kind == "int4":
        quads = torch.cat((quads & 15, quads >> 4), dim=2)
    whole = (quads.flatten(1).to(torch.int16) - offset).to(torch.int8)
    return whole[:, : packed.k], scale[tile_N, :, column_N]


def _group(group: int, k: int) -> int:
    return _up(k, BLOCK) if group == -1 else group or 32


def _scale_bytes(inputs: int, group: int) -> int:
    """Of a tile, padded so that the weights behind them start on a vector's boundary."""
    return _up(-(-inputs // group) * TILE * 2, 64)


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
