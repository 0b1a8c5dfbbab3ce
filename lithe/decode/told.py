"""What a pass tells of one tree. Axes: N nodes, R rows of the pass (nodes, then ghosts), V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

from torch import Tensor

from lithe.model.decoder import Output
from lithe.ops import accept


class Told:
    """Logits of a tree's rows: as a tensor for those who ask, which costs some 30 us, and the likeliest tokens without."""

    def __init__(self, rows: Tensor | Callable[[], Tensor], best: Callable[[int], int] | None = None):
        """rows: logits [R, V], or what makes them. best: of a row, where that is to be had without."""
        self._rows, self._best = rows, best

    @classmethod
    def of(cls, out: Output, b: int) -> Told:
        """Of the rows of sequence b in a pass."""
        best = getattr(out, "best", None)
        return cls(out.scores[b]) if best is None else cls(lambda: out.scores[b], partial(best, b))

    @cached_property
    def rows_RV(self) -> Tensor:
        return self._rows if isinstance(self._rows, Tensor) else self._rows()

    @cached_property
    def best(self) -> Callable[[int], int]:
        """The likeliest token behind a row, the lowest of equals, -1 where none is left."""
        return accept.best_of(self.rows_RV) if self._best is None else self._best
