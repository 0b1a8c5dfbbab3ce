"""A weight that moves by a low-rank product while a learnt score decides which of its entries are zero.

Axes: N outputs, K inputs, R rank of the product, Q rank of the score.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lithe.errors import FormatError
from lithe.model.adapted import Below, Part, taken, width_problem

FACTORS = ("beta", "low", "sides")
TENSORS = ("u", "v", "a", "b", "rows", "columns")


class Masked(Part):
    """x (M * W')^T with W' = W + beta U V, M being 0 at the share `sparsity` of entries that score least (Li et al. 2022).

    The score is |W'| + low A B + sides (rows 1^T + 1 columns^T). Its gradient is that of M, as if M were the score itself.
    """

    kind = "masked_low_rank"

    def __init__(self, tensors: dict[str, Tensor], *, beta: float = 1.0, low: float = 1.0, sides: float = 1.0,
                 sparsity: float = 0.0):
        super().__init__()
        self.u, self.v, self.a, self.b, self.rows, self.columns = (nn.Parameter(tensors[name]) for name in TENSORS)
        self.beta, self.low, self.sides, self.sparsity = beta, low, sides, sparsity
        self._held: list[Tensor] | None = None
        self._made: tuple[Any, Tensor] | None = None

    @property
    def held(self) -> bool:
        """Whether mask and score stay as they were when this was set, as the gradient takes them to be: for checks of it."""
        return self._held is not None

    @held.setter
    def held(self, on: bool) -> None:
        self._held = [weight.detach().clone() for weight in self.parameters()] if on else None

    def weight(self, weight_NK: Tensor) -> Tensor:
        """M * W' in wide floats."""
        moved_NK, score_NK = self._scored(weight_NK, *self.parameters())
        fixed_NK = score_NK.detach() if self._held is None else self._scored(weight_NK, *self._held)[1]
        mask_NK = kept(fixed_NK, self.sparsity).to(moved_NK.dtype)
        return (mask_NK + (score_NK - fixed_NK)) * moved_NK

    def _scored(self, weight_NK: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor, rows: Tensor,
                columns: Tensor) -> tuple[Tensor, Tensor]:
        """W' and the score of its entries."""
        moved_NK = weight_NK + self.beta * u @ v
        return moved_NK, moved_NK.abs() + self.low * a @ b + self.sides * (rows[:, None] + columns)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return F.linear(x.to(self.u.dtype), self._current(below), below.bias).to(y.dtype)

    def _current(self, below: Below) -> Tensor:
        """The weight; for a gradient made again instead of kept, else kept while nothing that it depends on moves."""
        if torch.is_grad_enabled():
            if self.held or not self.training:
                return self.weight(below.weight)
            return checkpoint(lambda: self.weight(below.weight), use_reentrant=False)
        stamp = None if below.levels else (below.module, self.sparsity, *(weight._version for weight in self.parameters()))
        if stamp is None or self._made is None or self._made[0] != stamp:
            self._made = stamp, self.weight(below.weight)
        return self._made[1]

    @torch.no_grad()
    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight(weight_NK.to(self.u.dtype)).to(weight_NK), bias_N

    def problem(self, module: nn.Module) -> str:
        return width_problem(module, self.v.shape[1], len(self.u)) or ("" if hasattr(module, "weight") else
                                                                       "its weight cannot be read")

    def settings(self) -> dict[str, Any]:
        return {"beta": self.beta, "low": self.low, "sides": self.sides, "sparsity": self.sparsity}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Masked:
        values = taken("a masked part", settings, [*FACTORS, "sparsity"])
        if any(type(value) not in (int, float) or not abs(value) <= 1e6 for value in values) or not 0 <= values[-1] < 1:
            raise FormatError(f"a masked part has {settings!r:.120}: factors and a share below 1 are wanted")
        u, v, a, b, rows, columns = taken("a masked part", tensors, TENSORS)
        if not (u.dim() == v.dim() == a.dim() == b.dim() == 2 and u.shape[1] == len(v) and a.shape[1] == len(b)
                and rows.shape == (len(u),) == (len(a),) and columns.shape == (v.shape[1],) == (b.shape[1],)):
            raise FormatError(f"a masked part cannot be made of {', '.join(str(list(t.shape)) for t in tensors.values())}")
        return cls(tensors, **{name: float(settings[name]) for name in settings})


def kept(score: Tensor, sparsity: float) -> Tensor:
    """Boolean: False at exactly floor(sparsity * entries) of them, those that score least; of equal ones the first."""
    out = math.floor(sparsity * score.numel())
    if not out:
        return torch.ones_like(score, dtype=torch.bool)
    flat = score.flatten()
    least = flat.kthvalue(out).values
    below, level = flat < least, flat == least
    ties = level & (level.cumsum(0) <= out - below.sum())
    return ~(below | ties).view_as(score)
