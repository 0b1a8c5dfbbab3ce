"""How many guesses pay: a node more is worth its chance of being accepted, and costs what a pass of one row more takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from lithe.model.decoder import Decoder
from lithe.model.runtime import stored

ROW = 0.05  # cost of a further row in passes of one, where no cost curve is stored


def costs(model: Decoder, nodes: int, row: float = 0.0) -> list[float]:
    """The time of a pass over a root and 0, 1, ... `nodes` guesses, in passes of one row: by the stored curve of this machine.

    row: what each further row costs instead. Nothing is measured here.
    """
    known = None if row else stored(model)
    curve = known.curves.get(model.threads) if known else None
    return [curve.ratio(1 + n) if curve else 1 + (row or ROW) * n for n in range(nodes + 1)]


def pays(chances: Sequence[float], costs: Sequence[float]) -> int:
    """How many guesses give the most tokens for their time. chances: that each is accepted, its whole path, falling.

    >>> pays([0.6, 0.3, 0.05], [1.0, 1.1, 1.2, 1.3]), pays([0.05], [1.0, 1.1])
    (2, 0)
    """
    expected = list(accumulate(chances, initial=1.0))[: len(costs)]
    return max(range(len(expected)), key=lambda n: (expected[n] / costs[n], -n))
