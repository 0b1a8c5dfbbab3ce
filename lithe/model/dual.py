"""Parts that take pruned entries out of a weight, alone and beside a low-rank and an entry-wise change.

Axes: N outputs, K inputs, R rank, S entries, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.model.adapted import Below, Part, taken, wide, width_problem
from lithe.model.sparse import MOST, checked, few
from lithe.ops import entries
from lithe.ops.entries import Shape


class _Removed(torch.autograd.Function):
    """What pruned entries of a weight give. The dense matrix of them is made anew for the way back, and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Thinned, below: Below) -> Tensor:
        ctx.part, ctx.below = part, below
        return F.linear(x, part.gone(below.weight).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad @ ctx.part.gone(ctx.below.weight).to(grad.dtype), None, None


class Thinned(Part):
    """W without its pruned entries: `pruned` has one bit for each, eight in a byte, or none at all.

    gates_H, where given: what W reads is in as many equal parts, each of which is multiplied by its gate.
    """

    kind = "thinned"
    pruned: Tensor

    def __init__(self, shape: Shape, pruned: Tensor | None = None, gates_H: Tensor | None = None):
        super().__init__()
        self.shape = shape
        self.gates = None if gates_H is None else nn.Parameter(gates_H)
        self.register_buffer("pruned", torch.zeros(0, dtype=torch.uint8) if pruned is None else pruned)

    def prune(self, places: Tensor) -> None:
        """Take these flat places out."""
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=places.device)
        self.pruned = entries.packed(mask.index_fill(0, places.long(), True))

    def gone(self, weight_NK: Tensor) -> Tensor:
        """The pruned entries of a weight, the others zero."""
        return weight_NK * entries.unpacked(self.pruned, weight_NK.numel()).view(self.shape)

    def before(self, x: Tensor) -> Tensor:
        return x if self.gates is None else (x * self._gates_K(self.gates)).to(x.dtype)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return (y - _Removed.apply(self.before(x), self, below)).to(y.dtype) if len(self.pruned) else y

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        thin_NK = weight_NK - self.gone(weight_NK) if len(self.pruned) else weight_NK
        return (thin_NK if self.gates is None else thin_NK * self._gates_K(wide(self.gates)).to(thin_NK)), bias_N

    def _gates_K(self, gates_H: Tensor) -> Tensor:
        return gates_H.repeat_interleave(self.shape[1] // len(gates_H))

    def problem(self, module: nn.Module) -> str:
        narrow = width_problem(module, self.shape[1], self.shape[0])
        return narrow or ("" if hasattr(module, "weight") else "its weight cannot be read")

    def settings(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Thinned:
        (shape,) = taken("a thinned part", settings, ["shape"])
        taken("a thinned part", {key: tensor for key, tensor in tensors.items() if key not in ("gates", "pruned")}, [])
        return cls(*_bits(shape, tensors.get("pruned")), _gates(shape, tensors.get("gates")))


class Dual(Thinned):
    """W without its pruned entries, plus alpha / R * (B A + D), D having few entries (Chen et al. 2023)."""

    kind = "thinned_dual"
    idx: Tensor

    def __init__(self, a_RK: Tensor, b_NR: Tensor, idx_S: Tensor, values_S: Tensor, alpha: float, pruned: Tensor | None = None,
                 gates_H: Tensor | None = None):
        super().__init__((len(b_NR), a_RK.shape[1]), pruned, gates_H)
        self.a, self.b, self.values = nn.Parameter(a_RK), nn.Parameter(b_NR), nn.Parameter(values_S)
        self.register_buffer("idx", idx_S.to(torch.int32))
        self.alpha = float(alpha)

    @property
    def scale(self) -> float:
        return self.alpha / len(self.a)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        read = self.before(x)
        rows = F.linear(F.linear(read.to(self.a.dtype), self.a), self.b)
        return (super().after(x, y, below) + self.scale * (rows + few(read, self.values, self.idx, self.shape))).to(y.dtype)

    def matrix(self) -> Tensor:
        """The change alone [N, K]."""
        return self.scale * (self.b @ self.a + entries.spread(self.idx, self.values, self.shape))

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        thin_NK, bias_N = super().merged(weight_NK, bias_N)
        change_NK = wide(self.matrix()).to(weight_NK)
        if self.gates is not None:
            change_NK = change_NK * self._gates_K(wide(self.gates)).to(change_NK)
        return thin_NK + change_NK, bias_N

    def settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Dual:
        (alpha,) = taken("a dual part", settings, ["alpha"])
        floats = {key: tensor for key, tensor in tensors.items() if key not in ("idx", "pruned", "gates")}
        a_RK, b_NR, values_S = taken("a dual part", floats, ["a", "b", "values"])
        if type(alpha) not in (int, float) or not abs(alpha) <= 1e6:
            raise FormatError(f"a dual part has alpha {alpha!r:.50}: a number is wanted")
        if a_RK.dim() != 2 or b_NR.dim() != 2 or len(a_RK) != b_NR.shape[1] or not len(a_RK):
            raise FormatError(f"matrices of {list(a_RK.shape)} and {list(b_NR.shape)} do not make a low-rank product")
        shape = checked(tensors.get("idx"), values_S, [len(b_NR), a_RK.shape[1]])
        return cls(a_RK, b_NR, tensors["idx"], values_S, alpha, _bits(shape, tensors.get("pruned"))[1],
                   _gates(shape, tensors.get("gates")))


def _bits(shape: Any, pruned: Tensor | None) -> tuple[Shape, Tensor]:
    """Both, where the one has a bit for each entry of the other or none. Raises FormatError."""
    sides = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)
    if not sides or shape[0] * shape[1] > MOST:
        raise FormatError(f"a thinned part has the shape {shape!r:.80}: two whole numbers from 1 are wanted")
    if pruned is None or pruned.dtype != torch.uint8 or pruned.dim() != 1:
        raise FormatError("a thinned part must have pruned, a vector of bytes")
    if len(pruned) not in (0, -(-shape[0] * shape[1] // 8)):
        raise FormatError(f"{len(pruned)} bytes do not say which of {shape[0]} x {shape[1]} entries are pruned")
    return (shape[0], shape[1]), pruned


def _gates(shape: Shape, gates_H: Tensor | None) -> Tensor | None:
    """The gates, where they part what is read evenly. Raises FormatError."""
    if gates_H is not None and (gates_H.dim() != 1 or not gates_H.is_floating_point() or not len(gates_H)
                                or shape[1] % len(gates_H)):
        raise FormatError(f"gates of {list(gates_H.shape)} do not part {shape[1]} inputs evenly: a vector of floats is wanted")
    return gates_H
