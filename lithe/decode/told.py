"""What a pass tells of one tree. Axes: N nodes, R rows of the pass (nodes, then ghosts), V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from lithe.kernels.draft import Floats
from lithe.model.decoder import Output
from lithe.model.express import Quick
from lithe.ops import accept


class Told:
    """Logits [R, V] of a tree's rows, and the likeliest tokens."""

    def __init__(self, rows_RV: Tensor):
        self.rows_RV = rows_RV

    @staticmethod
    def of(out: Output, b: int) -> Told:
        """Of the rows of sequence b in a pass."""
        return Asked(out, b) if type(out) is Quick else Told(out.scores[b])

    @cached_property
    def best(self) -> Callable[[int], int]:
        """The likeliest token behind a row, the lowest of equals, -1 where none is left."""
        return accept.best_of(self.rows_RV)

    @property
    def scores(self) -> Tensor | Floats:
        """The logits as `kernels.draft` takes them."""
        return self.rows_RV


class Asked(Told):
    """The same of a quick pass: a tensor of them for those who ask, which costs some 30 us, and the likeliest without."""

    def __init__(self, out: Quick, b: int):
        self.out, self.b = out, b

    @cached_property
    def rows_RV(self) -> Tensor:  # type: ignore[override]
        return self.out.scores[self.b]

    @property
    def scores(self) -> Tensor | Floats:
        return self.out.floats(self.b)

    def best(self, row: int) -> int:  # type: ignore[override]
        return self.out.best(self.b, row)
