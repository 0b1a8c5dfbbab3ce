"""A model with several exits: a row goes up as far as it is wanted, those that stopped below wait for the next that does.

The layers between two exits hold rows up to a length of their own. What a row had become where it left is kept until those
layers run again; then all that wait are read in order, so that no row is missing from what later ones attend to.

Axes: T rows of a lane, C width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence as Seq
from itertools import pairwise

import torch
from torch import Tensor

from lithe.decode.inner import shared
from lithe.decode.lanes import CHUNK, Lanes
from lithe.decode.second import WAITING
from lithe.errors import UsageError
from lithe.model.decoder import NONE
from lithe.model.mask import CAUSAL, Tree as TreeMask
from lithe.sampling.sequence import Sequence


def exits(text: str, layers: int) -> tuple[int, ...]:
    """Layers after which a model of so many can be left, as "6/9/12"; "" for half, three quarters and all of them.

    >>> exits("", 12)
    (6, 9, 12)
    """
    if not text:
        return tuple(sorted({max(1, layers // 2), max(1, 3 * layers // 4), layers}))
    parts = text.split("/")
    made = tuple(int(part) for part in parts if part.isdecimal() and len(part) < 6)
    if len(made) != len(parts) or any(a >= b for a, b in pairwise((0, *made))) or made[-1] != layers:
        raise UsageError(f"exits={text!r} must be rising numbers of layers joined by slashes, the last of them all {layers}")
    return made


class Part:
    """Layers between two exits, on storage that all parts share, and the rows that wait to be read by them."""

    def __init__(self, lanes: Lanes, layers: range):
        self.layers, self.lanes = layers, shared(lanes)
        self.waiting: list[Tensor] = []  # of each lane, [T, C]

    @property
    def lengths(self) -> list[int]:
        return self.lanes.cache.lengths

    def keep(self, order: Seq[int], base: Lanes, below: Seq[int], none: Tensor) -> None:
        """Follow the lanes to their new places (-1: a new one) and forget what the layers below no longer hold."""
        cache = self.lanes.cache
        self.lanes.held, cache.capacity = base.held, base.cache.capacity
        waiting = [self.waiting[lane] if lane >= 0 else none for lane in order]
        cache.lengths = [min(cache.lengths[lane], n) if lane >= 0 else 0 for lane, n in zip(order, below, strict=True)]
        self.waiting = [rows[: n - held] for rows, n, held in zip(waiting, below, cache.lengths, strict=True)]


class Nested:
    """The lanes of a model with exits after these numbers of layers, the last of them all."""

    def __init__(self, lanes: Lanes, after: Seq[int]):
        self.lanes, self.model, self.exits = lanes, lanes.model, len(after)
        self.first = range(after[0])
        self.upper = [Part(lanes, range(a, b)) for a, b in pairwise(after)]
        self.none = lanes.model.norm.weight.new_zeros(0, lanes.model.config.width)

    def sync(self, sequences: Seq[Sequence]) -> None:
        """As `Lanes.sync`, and what waits follows. Long texts are read at once, through every layer."""
        place = {id(held): lane for lane, held in enumerate(self.lanes.held)}
        order = [place.get(id(sequence), -1) for sequence in sequences]
        self.lanes.sync(sequences)
        below = self.lanes.cache.lengths
        for part in self.upper:
            part.keep(order, self.lanes, below, self.none)
            below = part.lengths
        if max(len(s.ids) - n for s, n in zip(sequences, self.lanes.cache.lengths, strict=True)) > WAITING:
            self._prefill(sequences)

    def enter(self, rows: Seq[Seq[int]], kept: Seq[int], tree: Mapping[int, list[int]] | None = None) -> list[Tensor]:
        """States [T, C] at the first exit of these tokens of each lane. The first kept[b] stay, and wait to go on.

        tree[b]: parents of the rows after those, by their number among them; -1 for what follows the kept ones.
        """
        out = self._run(self.lanes, rows, kept, tree or {}, layers=self.first)
        self.lanes.commit(kept)
        self._leave(0, out, kept)
        return [states[: len(row)] for states, row in zip(out, rows, strict=True)]

    def climb(self, exit: int, lanes: Seq[int], beside: Mapping[int, Tensor] | None = None,
              tree: Mapping[int, list[int]] | None = None) -> dict[int, Tensor]:
        """States [T, C] at exit number 1 or later of all that waits below it in these lanes, in order; it waits no more.

        beside[b]: rows that follow those and that nothing keeps, tree[b] their parents as `enter` has them.
        """
        part, beside = self.upper[exit - 1], beside or {}
        kept = [len(rows) if b in lanes else 0 for b, rows in enumerate(part.waiting)]
        rows = [torch.cat((waiting, beside.get(b, self.none))) if b in lanes else self.none
                for b, waiting in enumerate(part.waiting)]
        if not any(map(len, rows)):
            return {b: self.none for b in lanes}
        out = self._run(part.lanes, [[0] * len(row) for row in rows], kept, tree or {}, layers=part.layers, states=rows)
        part.lanes.cache.commit(kept)
        part.waiting = [self.none if b in lanes else waiting for b, waiting in enumerate(part.waiting)]
        self._leave(exit, out, kept)
        return {b: out[b, : len(rows[b])] for b in lanes}

    def _leave(self, exit: int, out_BTC: Tensor, kept: Seq[int]) -> None:
        """Rows that stay wait below the next layers."""
        if exit < len(self.upper):
            part = self.upper[exit]
            part.waiting = [torch.cat((rows, states[:n])) if n else rows
                            for rows, states, n in zip(part.waiting, out_BTC, kept, strict=True)]

    def _run(self, lanes: Lanes, rows: Seq[Seq[int]], kept: Seq[int], tree: Mapping[int, list[int]], **given) -> Tensor:
        if (slots := max(lanes.cache.lengths) + max(map(len, rows))) > lanes.cache.capacity:
            self.lanes.cache.grow(slots)
            for part in self.upper:
                part.lanes.cache.capacity = slots
        if not tree:
            return lanes.run(rows, mask=CAUSAL, logits=NONE, **given).hidden
        parents = [[*range(-1, n - 1), *(n + p if p >= 0 else n - 1 for p in tree.get(b, []))] for b, n in enumerate(kept)]
        depths: list[list[int]] = []
        for above in parents:
            depths.append([])
            for parent in above:
                depths[-1].append(depths[-1][parent] + 1 if parent >= 0 else 0)
        return lanes.run(rows, mask=TreeMask(parents), depths=depths, logits=NONE, **given).hidden

    def _prefill(self, sequences: Seq[Sequence]) -> None:
        """Read every committed token but the last of each sequence, in chunks."""
        while any(pieces := [s.ids[n : min(n + CHUNK, len(s.ids) - 1)]
                             for s, n in zip(sequences, self.lanes.cache.lengths, strict=True)]):
            self.enter(pieces, list(map(len, pieces)))
            for exit in range(1, self.exits):
                self.climb(exit, [b for b, piece in enumerate(pieces) if piece])
