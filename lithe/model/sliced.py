"""Parts that are matrices: all of a linear layer's weight, or some columns or rows of it trained as a small dense one.

Axes: N outputs, K inputs, S chosen columns or rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.model.adapted import Below, Part, taken, wide, width_problem


class _Columns(torch.autograd.Function):
    """x[..., places]. Only the chosen columns are copied, so a product of them keeps nothing else of x for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places_S: Tensor) -> Tensor:
        ctx.width = x.shape[-1]
        ctx.save_for_backward(places_S)
        return x.index_select(-1, places_S)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (places_S,) = ctx.saved_tensors
        full = grad.new_zeros(*grad.shape[:-1], ctx.width)
        return full.index_copy_(-1, places_S, grad), None


class Slice(Part):
    """The weight plus a matrix in some of its columns (`where` "in", [N, S]) or rows ("out", [S, K])."""

    kind = "slice"
    places: Tensor

    def __init__(self, matrix: Tensor, places_S: Tensor, where: str):
        super().__init__()
        self.matrix, self.where = nn.Parameter(matrix), where
        self.register_buffer("places", places_S)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        dtype = self.matrix.dtype
        if self.where == "in":
            chosen = _Columns.apply(x, self.places).to(dtype)
            return (y + F.linear(chosen, self.matrix)).to(y.dtype)
        rows = F.linear(x.to(dtype), self.matrix)
        return y.to(dtype).index_add(-1, self.places, rows).to(y.dtype)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        axis = 1 if self.where == "in" else 0
        return weight_NK.index_add(axis, self.places, wide(self.matrix).to(weight_NK)), bias_N

    def problem(self, module: nn.Module) -> str:
        inputs, outputs = getattr(module, "in_features", 0), getattr(module, "out_features", 0)
        kept, cut = (outputs, inputs) if self.where == "in" else (inputs, outputs)
        across = self.matrix.shape[0 if self.where == "in" else 1]
        if across != kept or int(self.places[-1]) >= cut:
            return width_problem(module, inputs, across) if self.where == "in" else width_problem(module, across, outputs)
        return width_problem(module, inputs, outputs)

    def settings(self) -> dict[str, Any]:
        return {"where": self.where}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Slice:
        (where,) = taken("a slice", settings, ["where"])
        places_S = tensors.get("places")
        (matrix,) = taken("a slice", {key: tensor for key, tensor in tensors.items() if key != "places"}, ["matrix"])
        if where not in ("in", "out") or matrix.dim() != 2:
            raise FormatError(f"a slice is {where!r:.50} with {list(matrix.shape)}: \"in\" or \"out\" and a matrix are wanted")
        count = matrix.shape[1 if where == "in" else 0]
        if places_S is None or places_S.dtype != torch.int64 or places_S.shape != (count,) or not count or \
                int(places_S[0]) < 0 or not bool((places_S.diff() > 0).all()):
            raise FormatError(f"a slice of {count} needs as many places, whole numbers that rise")
        return cls(matrix, places_S, where)


class Whole(Part):
    """The weight plus a matrix of its own shape: all of a layer is trained, and the base stays as it is."""

    kind = "whole_matrix"

    def __init__(self, matrix_NK: Tensor):
        super().__init__()
        self.matrix = nn.Parameter(matrix_NK)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return (y + F.linear(x.to(self.matrix.dtype), self.matrix)).to(y.dtype)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight_NK + wide(self.matrix).to(weight_NK), bias_N

    def problem(self, module: nn.Module) -> str:
        return width_problem(module, self.matrix.shape[1], self.matrix.shape[0])

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Whole:
        _, (matrix_NK,) = taken("a whole matrix", settings, []), taken("a whole matrix", tensors, ["matrix"])
        if matrix_NK.dim() != 2:
            raise FormatError(f"a whole matrix has shape {list(matrix_NK.shape)}")
        return cls(matrix_NK)
