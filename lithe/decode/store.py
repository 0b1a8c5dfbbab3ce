"""A corpus in which every occurrence of some tokens is found by bisection: its suffixes, sorted once and kept on disk."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from lithe.model import corpus
from lithe.ops.suffix import suffix_array

LONGEST = 16  # tokens by which the corpus is sorted


class Store:
    """ids: the corpus. `longest` looks the end of a text up in it."""

    def __init__(self, name: str, tokenizer):
        read = corpus.load(name, tokenizer)
        made = read.derived(f"suffixes by {LONGEST}", _sort)
        self.ids, self.order = np.asarray(read.ids), np.asarray(made["order"])
        self.text = np.asarray(made["text"]).view(np.uint8).data  # bytes with the high one first compare as ids do

    def longest(self, ids: list[int], low: int, high: int) -> tuple[np.ndarray, int] | None:
        """Where the longest ending of a text, of `low` to `high` tokens, that occurs begins, and its length."""
        best, high = None, min(high, len(ids))
        while low <= high:  # an ending of what occurs occurs as well
            middle = (low + high) // 2
            places = self.places(ids[-middle:])
            if len(places):
                best, low = (places, middle), middle + 1
            else:
                high = middle - 1
        return best

    def places(self, tokens: list[int]) -> np.ndarray:
        """Where these tokens, at most LONGEST, begin in the corpus, in the order of what follows."""
        size, text = 4 * len(tokens), self.text
        wanted = np.array(tokens, ">u4").tobytes()
        head = lambda at: text[4 * int(at) : 4 * int(at) + size].tobytes()
        first = bisect_left(self.order, wanted, key=head)
        return self.order[first : bisect_right(self.order, wanted, first, key=head)]


def _sort(ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"order": suffix_array(ids, LONGEST), "text": ids.astype(">u4")}
