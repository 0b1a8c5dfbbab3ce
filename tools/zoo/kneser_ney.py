"""The zoo's rival: an interpolated modified Kneser-Ney n-gram model over token ids (Chen and Goodman 1999, section 4.1).

An n-gram is one uint64, its newest token in the lowest bits, so that sorting puts the continuations of one context side by
side. Orders below the highest count the distinct tokens seen in front of an n-gram instead of its occurrences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """One order's table: n-grams and contexts, both sorted."""

    grams: np.ndarray  # uint64
    share: np.ndarray  # (count - discount) / total of the context
    contexts: np.ndarray  # uint64
    backoff: np.ndarray  # the weight that a context leaves to the next lower order


class KneserNey:
    """p(token | up to order - 1 tokens before it)."""

    def __init__(self, streams: list[np.ndarray], *, vocab: int, order: int = 5):
        """streams: runs of ids; no n-gram reaches from one into the next."""
        self.vocab, self.order, self.bits = vocab, order, max(1, (vocab - 1).bit_length())
        if self.bits * order > 64:
            raise ValueError(f"{order}-grams over {vocab} ids do not fit into 64 bits")
        grams, counts = np.unique(np.concatenate([self._grams(ids, order) for ids in streams]), return_counts=True)
        orders = []
        for n in range(order, 0, -1):
            orders.append(self._table(grams, counts))
            if n > 1:  # drop the oldest token: how many different ones there were is the lower order's count
                grams, counts = np.unique(grams & self._mask(n - 1), return_counts=True)
        self.orders = orders[::-1]

    def p(self, ids: np.ndarray) -> np.ndarray:
        """Probability of every id but the first `order - 1`, given those before it."""
        grams = self._grams(ids, self.order)
        return self._p(grams)

    def stream(self, ids: np.ndarray) -> np.ndarray:
        """Probability of every id but the first; the earliest ones have shorter contexts."""
        early = [self._p(self._grams(ids[: n + 1], n + 1)[-1:], order=n + 1) for n in range(1, self.order - 1)]
        return np.concatenate([*early, self.p(ids)])

    def _p(self, grams: np.ndarray, order: int | None = None) -> np.ndarray:
        p = np.full(len(grams), 1 / self.vocab)
        for n, table in enumerate(self.orders[:order], start=1):
            gram = grams & self._mask(n)
            left = lookup(table.contexts, table.backoff, gram >> np.uint64(self.bits), default=1.0)
            p = lookup(table.grams, table.share, gram, default=0.0) + left * p
        return p

    def _mask(self, n: int) -> np.uint64:
        return np.uint64((1 << (self.bits * n)) - 1)

    def _grams(self, ids: np.ndarray, n: int) -> np.ndarray:
        rows = max(0, len(ids) - n + 1)
        grams = np.zeros(rows, np.uint64)
        for i in range(n):
            grams = (grams << np.uint64(self.bits)) | ids[i : i + rows].astype(np.uint64)
        return grams

    def _table(self, grams: np.ndarray, counts: np.ndarray) -> Order:
        d = np.array([0.0, *discounts(counts)])[np.minimum(counts, 3)]
        contexts, first = np.unique(grams >> np.uint64(self.bits), return_index=True)
        totals = np.add.reduceat(counts, first)
        sizes = np.diff(first, append=len(grams))
        backoff = np.add.reduceat(d, first) / totals
        return Order(grams, ((counts - d) / np.repeat(totals, sizes)).astype(np.float32), contexts, backoff.astype(np.float32))


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of one, of two, and of three or more: equation 26. Small data leave it undefined: 0.75."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return 0.75, 0.75, 0.75
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return tuple(min(max(d, 0.0), float(n)) for n, d in enumerate(found, start=1))


def lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: float) -> np.ndarray:
    """values[key] for each wanted key, or the default."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], default).astype(np.float64)
