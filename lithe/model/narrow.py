"""Linear layers in fewer bits than the kernels have: how their bytes lie, and what the kernels run in their place.

| kind | a weight is | fields |
|---|---|---|
| int2, int3 | scale * (code - offset) | scale [N, G] |
| int2z, int3z, int4z | scale * (code - zero) | scale, zero [N, G] |
| dual4 | scale * (step * (code - zero)), in brackets a whole number of 8 bits | scale [N], step, zero [N, G] |
| vector8 | scale * book[code], several weights a code | scale [N], book [256, I] |

Codes [N, K], or [N, K / I] of vectors, come last. Scales, real zeros and books are fp16; whole numbers take their bits, the
lowest first, each row on whole bytes. Without a row of whole numbers for the kernels, weights are rounded to bfloat16.

Axes: N outputs, K inputs, G groups of inputs, I inputs of a vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.errors import UsageError
from lithe.kernels.pack import BLOCK, KINDS, LEVELS, Packed, pack, pack_levels, size
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedLinear
from lithe.model.site import Site

CODES = 256  # of a vector's book
NARROW = {"int2": 2, "int3": 3, "int2z": 2, "int3z": 3, "int4z": 4, "dual4": 4, "vector8": 8}  # bits of a code
KNOWN = (*KINDS, *NARROW)
RANGES = {"int2": (-2, 1), "int3": (-4, 3)} | {kind: (low, high) for kind, (low, high, _) in LEVELS.items()}


def fields(kind: str, n: int, k: int, group: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bits of each field, in the order of its bytes. Raises UsageError for what cannot be."""
    inputs = -(-k // BLOCK) * BLOCK
    legal = (1, 2, 4, 8) if kind == "vector8" else (32, 128, inputs)
    if kind not in NARROW or n < 1 or k < 1:
        raise UsageError(f"there are no {kind!r} weights of {n} x {k}; kinds are {', '.join(KNOWN)}")
    if group not in legal:
        raise UsageError(f"groups of {group}: {kind} weights of {k} inputs have {', '.join(map(str, legal))}")
    groups, bits = -(-k // group), NARROW[kind]
    if kind == "vector8":
        return {"scale": ((n,), 16), "book": ((CODES, group), 16), "codes": ((n, groups), bits)}
    if kind == "dual4":
        return {"scale": ((n,), 16), "step": ((n, groups), 8), "zero": ((n, groups), 4), "codes": ((n, k), bits)}
    zero = {"zero": ((n, groups), 16)} if kind.endswith("z") else {}
    return {"scale": ((n, groups), 16), **zero, "codes": ((n, k), bits)}


def bytes_of(kind: str, n: int, k: int, group: int) -> int:
    """Of a matrix of any packed kind."""
    if kind not in NARROW:
        return size(kind, n, k, group)
    return sum(_bytes(*field) for field in fields(kind, n, k, group).values())


@dataclass(frozen=True)
class Narrow:
    """A weight matrix [n, k] in few bits. data: bytes. group: inputs that share a scale, or are one vector."""

    data: Tensor
    kind: str
    n: int
    k: int
    group: int

    def __post_init__(self) -> None:
        wanted = bytes_of(self.kind, self.n, self.k, self.group)
        if self.data.dtype != torch.uint8 or self.data.numel() != wanted or not self.data.is_contiguous():
            raise UsageError(f"{self.kind} weights of {self.n} x {self.k} are {wanted} bytes, not {tuple(self.data.shape)}")
        if self.kind == "dual4" and int(self.whole().abs().max()) > 127:
            raise UsageError("dual4 weights must be within -127 to 127 once they are whole numbers of 8 bits")

    def field(self, name: str) -> Tensor:
        """One field as it was given, whole numbers in uint8."""
        at = 0
        for found, (shape, bits) in fields(self.kind, self.n, self.k, self.group).items():
            taken, at = slice(at, at + _bytes(shape, bits)), at + _bytes(shape, bits)
            if found == name:
                return _read(self.data[taken].clone(), shape, bits)
        raise UsageError(f"{self.kind} weights have no {name}")

    def whole(self) -> Tensor:
        """Whole numbers [N, K] that are times a scale the weights, in int16."""
        code_NK = self.field("codes").short()
        if self.kind == "dual4":
            step_NK, zero_NK = (self._spread(self.field(name).short()) for name in ("step", "zero"))
            return step_NK * (code_NK - zero_NK)
        return code_NK + RANGES[self.kind][0]

    def weight(self) -> Tensor:
        """The weights [N, K] in float32."""
        scale = self.field("scale").float()
        if self.kind == "vector8":
            wide_NK = self.field("book").float()[self.field("codes").long()].flatten(1)[:, : self.k] * scale[:, None]
        elif self.kind.endswith("z"):
            zero_NK = self._spread(self.field("zero").float())
            wide_NK = self._spread(scale) * (self.field("codes").float() - zero_NK)
        else:
            return self.whole().float() * (scale[:, None] if self.kind == "dual4" else self._spread(scale))
        return wide_NK.bfloat16().float()

    def widened(self) -> Packed:
        """The same weights in the narrowest kind that has a kernel."""
        if self.kind == "vector8" or self.kind.endswith("z"):
            return pack(self.weight(), "bf16")
        scale = self.field("scale")
        if self.kind == "dual4":
            return pack_levels(self.whole().to(torch.int8), scale[:, None], "int8")
        return pack_levels(self.whole().to(torch.int8), scale, "int4")

    def _spread(self, value_NG: Tensor) -> Tensor:
        return value_NG.repeat_interleave(self.group, dim=1)[:, : self.k]


def made(kind: str, k: int, group: int, **found: Tensor) -> Narrow:
    """A matrix of these fields. Raises UsageError for fields that do not fit its kind."""
    n = len(found["codes"])
    wanted = fields(kind, n, k, group)
    given = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if given != {name: shape for name, (shape, _) in wanted.items()}:
        raise UsageError(f"{kind} weights of {n} x {k} have fields of other shapes than {given}")
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise UsageError("these weights are too large for scales in half precision, or are no numbers")
    return Narrow(torch.cat([_write(found[name], bits) for name, (_, bits) in wanted.items()]), kind, n, k, group)


def of_levels(levels_NK: Tensor, scale_NG: Tensor, kind: str) -> Packed | Narrow:
    """Levels and scales in a kind of RANGES; the count of scales tells the group."""
    if kind not in NARROW:
        return pack_levels(levels_NK, scale_NG, kind)
    k = levels_NK.shape[1]
    group = next(g for g in (32, 128, -(-k // BLOCK) * BLOCK) if -(-k // g) == scale_NG.shape[1])
    return made(kind, k, group, scale=scale_NG, codes=levels_NK.short() - RANGES[kind][0])


def matrix(data: Tensor, kind: str, n: int, k: int, group: int) -> Packed | Narrow:
    """A packed matrix of any kind from its bytes."""
    return (Narrow if kind in NARROW else Packed)(data, kind, n, k, group)


def layer(found: Packed | Narrow, bias_N: Tensor | None) -> PackedLinear:
    """The linear layer that holds a packed matrix."""
    return NarrowLinear(found, bias_N) if isinstance(found, Narrow) else PackedLinear(found, bias_N)


class NarrowLinear(PackedLinear):
    """A linear layer that holds its weights in few bits and widens them anew in each pass: small, and slow."""

    def __init__(self, narrow: Narrow, bias_N: Tensor | None = None):
        super().__init__(narrow, bias_N)  # type: ignore[arg-type]

    @property
    def narrow(self) -> Narrow:
        return Narrow(self.data, self.kind, self.out_features, self.in_features, self.group)

    @property
    def packed(self) -> Packed:
        """As the kernels take it, made anew."""
        return self.narrow.widened()

    @property
    def weight(self) -> Tensor:
        return self.narrow.weight()


def widen(model: Decoder) -> Decoder:
    """Swap every narrow layer for what the kernels run, in place: fast, and of the wider kind's size in memory."""
    for name, found in list(model.named_modules()):
        if isinstance(found, NarrowLinear):
            Site(name, model).swap(PackedLinear(found.packed, found.bias))
    return model


def _bytes(shape: tuple[int, ...], bits: int) -> int:
    return math.prod(shape[:-1]) * -(-shape[-1] * bits // 8)


def _write(value: Tensor, bits: int) -> Tensor:
    if bits == 16:
        return value.half().contiguous().view(torch.uint8).flatten()
    if int(value.min()) < 0 or int(value.max()) >= 2**bits:
        raise UsageError(f"codes of {bits} bits go from 0 to {2**bits - 1}")
    each = (value.flatten(0, -2).to(torch.uint8)[..., None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    row = each.flatten(1)
    row = torch.nn.functional.pad(row, (0, -row.shape[1] % 8)).view(len(row), -1, 8)
    return (row << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8).flatten()


def _read(data: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    if bits == 16:
        return data.view(torch.float16).view(shape)
    if bits == 8:
        return data.view(shape)
    row = (data.view(math.prod(shape[:-1]), -1)[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    each = row.flatten(1)[:, : shape[-1] * bits].view(*shape, bits)
    return (each << torch.arange(bits, dtype=torch.uint8)).sum(-1).to(torch.uint8)
