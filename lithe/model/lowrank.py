"""Low-rank parts of linear layers. Axes: N outputs, K inputs, R rank."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.model.adapted import Below, Part, taken, wide, width_problem

EPS = 1e-5  # added to the rank where singular values are kept apart (Zhang et al. 2023, the authors' code)
MOST = 1e6  # a larger alpha is no setting but a mistake


class _Added(torch.autograd.Function):
    """y + scale * B A x, every product added where its sum lies: no pass over the outputs but the one that adds. M: rows."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a_RK: Tensor, b_NR: Tensor, scale: float) -> Tensor:
        x_MK = x.reshape(-1, x.shape[-1])
        inner_MR = x_MK @ a_RK.T
        ctx.save_for_backward(x_MK, inner_MR, a_RK, b_NR)
        ctx.scale = scale
        return torch.addmm(y.reshape(-1, y.shape[-1]), inner_MR, b_NR.T, alpha=scale).view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x_MK, inner_MR, a_RK, b_NR = ctx.saved_tensors
        grad_MN = grad.reshape(-1, grad.shape[-1])
        back_MR = (grad_MN @ b_NR).mul_(ctx.scale)
        wanted = ctx.needs_input_grad
        return (grad if wanted[0] else None,
                (back_MR @ a_RK).view(*grad.shape[:-1], -1) if wanted[1] else None,
                back_MR.T @ x_MK if wanted[2] else None,
                (grad_MN.T @ inner_MR).mul_(ctx.scale) if wanted[3] else None, None)


class LowRank(Part):
    """y + scale * B A x, the scale being alpha / R, or alpha / sqrt(R) with `root` (Kalajdzievski 2023).

    """

    kind = "low_rank"

    def __init__(self, a_RK: Tensor, b_NR: Tensor, alpha: float, *, root: bool = False, dropout: float = 0.0):
        super().__init__()
        self.a, self.b = nn.Parameter(a_RK), nn.Parameter(b_NR)
        self.alpha, self.root, self.dropout = float(alpha), root, dropout

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.root else self.rank)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, K] and B [N, R]."""
        return self.a, self.b

    def product(self, x: Tensor) -> Tensor:
        """scale * B A x in the part's own precision."""
        a_RK, b_NR = self.factors()
        return F.linear(F.linear(F.dropout(x.to(a_RK.dtype), self.dropout, self.training), a_RK), b_NR) * self.scale

    def matrix(self) -> Tensor:
        """The same as a matrix [N, K]."""
        a_RK, b_NR = self.factors()
        return b_NR @ a_RK * self.scale

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        if y.dtype != self.a.dtype or torch.is_autocast_enabled(y.device.type):
            return (y + self.product(x)).to(y.dtype)
        a_RK, b_NR = self.factors()
        return _Added.apply(y, F.dropout(x.to(a_RK.dtype), self.dropout, self.training), a_RK, b_NR, self.scale)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight_NK + wide(self.matrix()).to(weight_NK), bias_N

    def problem(self, module: nn.Module) -> str:
        return width_problem(module, self.a.shape[1], self.b.shape[0])

    def settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "root": self.root, "dropout": self.dropout}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> LowRank:
        alpha, root, dropout = _settings(settings)
        a_RK, b_NR = taken("a low-rank part", tensors, ["a", "b"])
        _check(a_RK, b_NR)
        return cls(a_RK, b_NR, alpha, root=root, dropout=dropout)


class Singular(LowRank):
    """y + scale * B diag(values) A x, the scale being alpha / (over + EPS): directions that can be weighed and dropped.

    over: the rank that the scale counts, which dropping directions does not change.
    """

    kind = "singular_low_rank"

    def __init__(self, a_RK: Tensor, b_NR: Tensor, values_R: Tensor, alpha: float, over: int, *, dropout: float = 0.0):
        super().__init__(a_RK, b_NR, alpha, dropout=dropout)
        self.values, self.over = nn.Parameter(values_R), over

    @property
    def scale(self) -> float:
        return self.alpha / (self.over + EPS)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a * self.values[:, None], self.b

    @torch.no_grad()
    def keep(self, keep_R: Tensor) -> None:
        """Drop all but these directions."""
        self.a, self.b = nn.Parameter(self.a[keep_R].clone()), nn.Parameter(self.b[:, keep_R].clone())
        self.values = nn.Parameter(self.values[keep_R].clone())

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"over": self.over}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Singular:
        alpha, _, dropout = _settings({key: value for key, value in settings.items() if key != "over"})
        over = settings.get("over")
        if type(over) is not int or not 0 < over < 2**20:
            raise FormatError(f"a singular low-rank part counts rank {over!r:.50}: a whole number from 1 is wanted")
        a_RK, b_NR, values_R = taken("a singular low-rank part", tensors, ["a", "b", "values"])
        _check(a_RK, b_NR, values_R, a_RK.shape[:1], least=0)
        return cls(a_RK, b_NR, values_R, alpha, over, dropout=dropout)


class Directed(LowRank):
    """magnitude * (W + scale B A) / its rows' lengths: direction and length apart (Liu et al. 2024, equation 5).

    The lengths are constants to the gradient, as in section 4.3 of the paper.
    """

    kind = "directed_low_rank"

    def __init__(self, a_RK: Tensor, b_NR: Tensor, alpha: float, magnitude_N: Tensor, *, root: bool = False,
                 dropout: float = 0.0):
        super().__init__(a_RK, b_NR, alpha, root=root, dropout=dropout)
        self.magnitude = nn.Parameter(magnitude_N)
        self.held = False  # keep the lengths as they are, as the gradient takes them to be: for checks of it
        self._lengths: tuple[Any, Tensor] | None = None

    def lengths(self, below: Below) -> Tensor:
        """Lengths [N] of the adapted rows. Kept while nothing that they depend on moves, since they take the whole matrix."""
        stamp = None if below.levels else (below.module, self.a._version, self.b._version)
        if self.held and self._lengths is not None:
            return self._lengths[1].to(self.magnitude)
        if stamp is None or self._lengths is None or self._lengths[0] != stamp:
            weight_NK = below.weight
            found = lengths_of(weight_NK + wide(self.matrix()).to(weight_NK))
            self._lengths = stamp, found
        return self._lengths[1].to(self.magnitude)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        factor_N = self.magnitude / self.lengths(below)
        bias_N = below.bias
        product = y if bias_N is None else y - bias_N
        return (y + (factor_N - 1) * product + factor_N * self.product(x)).to(y.dtype)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        moved_NK = weight_NK + wide(self.matrix()).to(weight_NK)
        return moved_NK * (wide(self.magnitude).to(weight_NK) / lengths_of(moved_NK))[:, None], bias_N

    def problem(self, module: nn.Module) -> str:
        return super().problem(module) or ("" if hasattr(module, "weight") else "its weight cannot be read")

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Directed:
        alpha, root, dropout = _settings(settings)
        a_RK, b_NR, magnitude_N = taken("a directed low-rank part", tensors, ["a", "b", "magnitude"])
        _check(a_RK, b_NR, magnitude_N, b_NR.shape[:1])
        return cls(a_RK, b_NR, alpha, magnitude_N, root=root, dropout=dropout)


def lengths_of(weight_NK: Tensor) -> Tensor:
    """Euclidean length of each row."""
    return torch.linalg.vector_norm(weight_NK, dim=1)


def _settings(settings: dict[str, Any]) -> tuple[float, bool, float]:
    alpha, root, dropout = taken("a low-rank part", settings, ["alpha", "root", "dropout"])
    if type(alpha) not in (int, float) or not abs(alpha) <= MOST or type(root) is not bool:
        raise FormatError(f"a low-rank part has alpha {alpha!r:.50} and root {root!r:.50}: a number and a flag are wanted")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise FormatError(f"a low-rank part has dropout {dropout!r:.50}: a number from 0 to below 1 is wanted")
    return alpha, root, dropout


def _check(a_RK: Tensor, b_NR: Tensor, vector: Tensor | None = None, wanted: Any = (), least: int = 1) -> None:
    if a_RK.dim() != 2 or b_NR.dim() != 2 or len(a_RK) != b_NR.shape[1] or len(a_RK) < least:
        raise FormatError(f"matrices of {list(a_RK.shape)} and {list(b_NR.shape)} do not make a low-rank product")
    if vector is not None and vector.shape != torch.Size(wanted):
        raise FormatError(f"a low-rank part has a vector of {list(vector.shape)} where {list(wanted)} is wanted")
