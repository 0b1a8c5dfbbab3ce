"""Parts that change single entries of a weight: sorted places and values, never a mask.

Axes: N outputs, K inputs, S entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lithe.errors import FormatError, UnsupportedError
from lithe.model.adapted import Below, Part, taken, width_problem
from lithe.ops import entries
from lithe.ops.entries import Shape

MOST = 2**31 - 1  # the last place that an index of 32 bits tells


class _Product(torch.autograd.Function):
    """x D^T for a matrix D of few entries. Of D's gradient only those entries are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values_S: Tensor, idx_S: Tensor, shape: Shape, watch: Any) -> Tensor:
        ctx.save_for_backward(x, values_S, idx_S)
        ctx.shape, ctx.watch = shape, watch
        x_MK = x.reshape(-1, shape[1]).to(values_S.dtype)
        return entries.times(x_MK, idx_S, values_S, shape).reshape(*x.shape[:-1], shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        (x, values_S, idx_S), (n, k) = ctx.saved_tensors, ctx.shape
        grad_MN, grad_x, grad_S = grad.reshape(-1, n).to(values_S.dtype), None, None
        if ctx.needs_input_grad[0]:
            grad_x = entries.times_back(grad_MN, idx_S, values_S, ctx.shape).reshape(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            x_MK, whole = x.reshape(-1, k).to(values_S.dtype), len(values_S) == n * k
            if ctx.watch is None and not whole:
                grad_S = entries.gathered(grad_MN, x_MK, idx_S, ctx.shape)
            else:
                grad_NK = grad_MN.T @ x_MK
                if ctx.watch is not None:
                    ctx.watch(grad_NK)
                grad_S = grad_NK.flatten() if whole else grad_NK.flatten()[idx_S.long()]
        return grad_x, grad_S, None, None, None


def few(x: Tensor, values_S: Tensor, idx_S: Tensor, shape: Shape, watch: Callable[[Tensor], None] | None = None) -> Tensor:
    """D x for a matrix D of these entries, in their precision."""
    with torch.autocast(x.device.type, enabled=False):
        return _Product.apply(x, values_S, idx_S, shape, watch)


class Sparse(Part):
    """y + D x, D being values [S] at the flat places idx [S] of the weight, in int32 and ascending, row by row.

    With N * K values and no places it is a whole matrix. watch: while it is set, a function that each pass back gives the whole
    gradient [N, K], which is not kept otherwise.
    """

    kind = "sparse_delta"
    idx: Tensor

    def __init__(self, idx_S: Tensor, values_S: Tensor, shape: Shape):
        super().__init__()
        if shape[0] * shape[1] > MOST:
            raise UnsupportedError(f"a weight of {shape[0]} x {shape[1]} has more entries than 32 bits count")
        self.register_buffer("idx", idx_S.to(torch.int32))
        self.values, self.shape = nn.Parameter(values_S), shape
        self.watch: Callable[[Tensor], None] | None = None

    @classmethod
    def whole(cls, shape: Shape, dtype: torch.dtype) -> Sparse:
        """Every entry, zero."""
        return cls(torch.zeros(0), torch.zeros(shape[0] * shape[1], dtype=dtype), shape)

    @property
    def is_whole(self) -> bool:
        return len(self.idx) < len(self.values)

    @property
    def places(self) -> Tensor:
        """idx, also where it is left out."""
        return torch.arange(len(self.values), dtype=torch.int32, device=self.values.device) if self.is_whole else self.idx

    @torch.no_grad()
    def move(self, idx_S: Tensor) -> Tensor:
        """Hold these ascending places instead: an entry that stays keeps its value and gradient, a new one has zero.

        Returns where each stood before, -1 for new ones: by it an optimizer's state follows (`train.entries.moved`).
        """
        found_S = entries.source(self.places, idx_S.to(self.idx))
        gradient_S = self.values.grad
        replace(self.values, entries.follow(self.values.data, found_S))
        if gradient_S is not None:
            self.values.grad = entries.follow(gradient_S, found_S)
        self.idx = idx_S.to(self.idx)
        return found_S

    def product(self, x: Tensor) -> Tensor:
        """D x in the part's own precision."""
        return few(x, self.values, self.idx, self.shape, self.watch)

    def matrix(self) -> Tensor:
        """D [N, K]."""
        return entries.spread(self.idx, self.values.detach(), self.shape)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return (y + self.product(x)).to(y.dtype)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        values_S = self.values.detach().to(weight_NK)
        return weight_NK.flatten().index_add(0, self.places.long(), values_S).view(self.shape), bias_N

    def problem(self, module: nn.Module) -> str:
        return width_problem(module, self.shape[1], self.shape[0])

    def settings(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Sparse:
        (shape,) = taken("a sparse part", settings, ["shape"])
        (values_S,) = taken("a sparse part", {key: value for key, value in tensors.items() if key != "idx"}, ["values"])
        shape = checked(tensors.get("idx"), values_S, shape)
        return cls(tensors["idx"], values_S, shape)


class Settling(Sparse):
    """The same, where some entries have settled: they count as before and train no more."""

    kind = "settling_sparse_delta"
    settled_idx: Tensor
    settled: Tensor

    def __init__(self, idx_S: Tensor, values_S: Tensor, shape: Shape, settled_idx: Tensor | None = None,
                 settled: Tensor | None = None):
        super().__init__(idx_S, values_S, shape)
        self.register_buffer("settled_idx", self.idx[:0].clone() if settled_idx is None else settled_idx)
        self.register_buffer("settled", values_S[:0].clone() if settled is None else settled)

    @torch.no_grad()
    def settle(self, done_S: Tensor) -> Tensor:
        """Let the entries of this mask train no more. Returns what `move` does."""
        self.settled, self.settled_idx = _joined(self.settled_idx, self.settled, self.idx[done_S], self.values.detach()[done_S])
        return self.move(self.idx[~done_S])

    @torch.no_grad()
    def wake(self) -> None:
        """Settled entries train again: what is saved after training has one list."""
        values, idx = _joined(self.idx, self.values.detach(), self.settled_idx, self.settled)
        self.settled, self.settled_idx = self.settled[:0], self.settled_idx[:0]
        replace(self.values, values)
        self.idx = idx

    def product(self, x: Tensor) -> Tensor:
        moved = super().product(x)
        if not len(self.settled):
            return moved
        return moved + few(x, self.settled, self.settled_idx, self.shape)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight_NK, bias_N = super().merged(weight_NK, bias_N)
        return weight_NK.flatten().index_add(0, self.settled_idx.long(), self.settled.to(weight_NK)).view(self.shape), bias_N

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Settling:
        own = {key: tensors.get(key) for key in ("settled_idx", "settled")}
        part = Sparse.rebuild(settings, {key: tensor for key, tensor in tensors.items() if key not in own})
        if own["settled"] is None:
            raise FormatError("a settling sparse part must have settled values")
        checked(own["settled_idx"], own["settled"], part.shape)
        return cls(part.idx, part.values.detach(), part.shape, own["settled_idx"], own["settled"])


def replace(weight: nn.Parameter, values: Tensor) -> None:
    """Give a weight other values, as many as there are, and no gradient."""
    weight.grad = None
    weight.data = values[:0].half()  # another dtype: autograd, which may still hold a graph, then forgets how many there were
    weight.data = values


def _joined(idx: Tensor, values: Tensor, more_idx: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Values and places of two lists as one that ascends."""
    idx, order = torch.cat([idx, more_idx]).sort()
    return torch.cat([values, more])[order], idx


def checked(idx_S: Tensor | None, values_S: Tensor, shape: Any) -> Shape:
    """The shape, where these are entries of such a matrix. Raises FormatError where they are not."""
    sides = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)
    if not sides or shape[0] * shape[1] > MOST:
        raise FormatError(f"a sparse part has the shape {shape!r:.80}: two whole numbers from 1 are wanted")
    n, k = shape
    if idx_S is None or idx_S.dtype != torch.int32 or idx_S.dim() != 1 or values_S.dim() != 1:
        raise FormatError("a sparse part must have idx, a vector of 32-bit integers, beside its values, a vector too")
    if len(idx_S) != len(values_S) and not (len(idx_S) == 0 and len(values_S) == n * k):
        raise FormatError(f"a sparse part has {len(idx_S)} places for {len(values_S)} values")
    if len(idx_S) and (idx_S[0] < 0 or idx_S[-1] >= n * k or (idx_S.diff() <= 0).any()):
        raise FormatError(f"places of a sparse part must ascend from 0 and end before {n} x {k}")
    return n, k
