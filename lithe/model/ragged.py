"""A pass without padding: the rows of its sequences stand one below another. Axes: R rows, T rows of one sequence, S slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lithe.errors import UnsupportedError, UsageError
from lithe.model.mask import Causal, Mask, Pass, Tree, ancestors, over_cache, positions

if TYPE_CHECKING:
    from lithe.model.cache import Cache
    from lithe.model.decoder import Decoder


class Ragged(Pass):
    """A pass over unequal numbers of rows. Chains cost no mask."""

    def __init__(self, model: Decoder, pos_R1: Tensor, last: int, mask: Causal | Tree, counts: Sequence[int], cache: Cache):
        super().__init__(model, pos_R1, last, mask, None, list(cache.lengths), cache)
        self.counts = list(counts)
        self.trees = [None] * len(counts) if isinstance(mask, Causal) else [
            None if list(parents) == list(range(-1, len(parents) - 1)) else list(parents) for parents in mask.parents_B]
        self.plain = not any(self.trees)
        self.causal = self.everything = False
        self._seen: dict[int | None, list[Tensor]] = {}

    def squares(self) -> list[Tensor | None]:  # type: ignore[override]
        """Who sees whom among the rows of each sequence, [T, T]; None: a row sees those up to itself."""
        return [None if parents is None else ancestors(parents, count)
                for parents, count in zip(self.trees, self.counts, strict=True)]

    def visible(self, window: int | None) -> list[Tensor]:  # type: ignore[override]
        """Who sees which slot of its sequence, boolean [1, T, S] for each."""
        if window not in self._seen:
            places, found = [0, *accumulate(self.counts)], []
            for (start, end), square, length in zip(pairwise(places), self.squares(), self.lengths, strict=True):
                T = end - start
                among = torch.ones(T, T, dtype=torch.bool).tril() if square is None else square
                seen = over_cache(among[None].to(self.pos_BT.device), [length])
                if window is not None:
                    pos_T = self.pos_BT[start:end, 0]
                    keys_S = torch.cat((torch.arange(length, device=pos_T.device), pos_T))
                    seen = seen & ((pos_T[:, None] - keys_S[None]).abs() < window)
                found.append(seen)
            self._seen[window] = found
        return self._seen[window]


def ragged(model: Decoder, rows: int, pos: Tensor | list[list[int]] | None, mask: Mask, counts: Sequence[int],
           cache: Cache | None) -> Ragged:
    """What the blocks of such a pass share. Raises UnsupportedError without a cache that can, UsageError for wrong counts."""
    if cache is None or "pages" not in cache.can or not isinstance(mask, Causal | Tree):
        raise UnsupportedError("a pass of rows without padding wants a paged cache and a causal or tree mask")
    if len(counts) != len(cache.lengths) or min(counts, default=0) < 0:
        raise UsageError(f"counts has {len(counts)} entries for a cache of {len(cache.lengths)} sequences; none may be below 0")
    if rows != sum(counts):
        raise UsageError(f"a pass of {rows} rows was given counts that make {sum(counts)}")
    cast(Any, cache).reserve(counts)
    if pos is None:
        pos = [[n + step] for n, count in zip(cache.lengths, counts, strict=True) for step in range(count)]
    pos_R1, last = positions(pos, [0], 1, model.device)
    return Ragged(model, pos_R1, last, mask, counts, cache)
