"""Look the last words up in a corpus and guess what most often follows them there.

REST (He et al., 2024). A suffix array finds the longest ending of the text, of 16 down to 2 tokens, that occurs in
the corpus; the continuations of its occurrences are counted in a trie, whose 64 most frequent nodes are the draft. No training;
the corpus is tokenised and sorted once and then read from disk.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from lithe.card import Card, knob
from lithe.model import corpus
from lithe.ops.suffix import suffix_array
from lithe.ops.tree import Tree

CARD = Card(
    paper="REST: Retrieval-Based Speculative Decoding (He et al., 2024)",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "corpus"),
    emits=("det",),
)
LONGEST = 16  # tokens by which the corpus is sorted


@dataclass(frozen=True, kw_only=True)
class Knobs:
    corpus: str = knob(corpus.FREE, "a text, .jsonl or .npy file; python: the sources of Python's own library")
    longest: int = knob(16, "most tokens to match", low=1, high=LONGEST)
    shortest: int = knob(2, "fewest tokens to match", low=1, high=LONGEST)
    tokens: int = knob(10, "tokens of a continuation", low=1, high=64)
    nodes: int = knob(64, "most tokens to draft", low=1, high=1024)
    matches: int = knob(1024, "most occurrences to count, evenly spaced among all", low=1)


class Method:
    learns_from_any_tree = True

    def __init__(self, knobs: Knobs, model):
        self.knobs = knobs
        read = corpus.load(knobs.corpus, model.tokenizer)
        made = read.derived(f"suffixes by {LONGEST}", _sort)
        self.ids, self.order = np.asarray(read.ids), np.asarray(made["order"])
        self.text = np.asarray(made["text"]).view(np.uint8).data  # bytes with the high one first compare as ids do

    def propose(self, sequences, room):
        return [self._tree(s, most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        """Nothing to learn: the corpus stays as it is."""

    def _tree(self, sequence, most: int) -> Tree:
        tree = Tree.root(sequence.ids[-1])
        tokens, found = min(self.knobs.tokens, most), self._longest(sequence.ids)
        if found is None or tokens < 1:
            return tree
        counts, parents, after = self._count(*found, tokens)
        number = {-1: 0}
        for node in np.argsort(-counts, kind="stable")[: self.knobs.nodes].tolist():  # nodes lie by depth: parents stay first
            number[node] = tree.add(int(after[node]), number[int(parents[node])])
        return tree

    def _longest(self, ids: list[int]) -> tuple[np.ndarray, int] | None:
        """The places where the longest ending of the text that occurs begins, and its length."""
        best, low, high = None, self.knobs.shortest, min(self.knobs.longest, len(ids))
        while low <= high:  # an ending of what occurs occurs as well
            middle = (low + high) // 2
            places = self._places(ids[-middle:])
            if len(places):
                best, low = (places, middle), middle + 1
            else:
                high = middle - 1
        return best

    def _places(self, tokens: list[int]) -> np.ndarray:
        size, text = 4 * len(tokens), self.text
        wanted = np.array(tokens, ">u4").tobytes()
        head = lambda at: text[4 * int(at) : 4 * int(at) + size].tobytes()
        first = bisect_left(self.order, wanted, key=head)
        return self.order[first : bisect_right(self.order, wanted, first, key=head)]

    def _count(self, places: np.ndarray, length: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The trie of continuations, level by level: how often each node occurs, its parent (-1 the root) and its token."""
        if len(places) > self.knobs.matches:
            places = places[np.arange(self.knobs.matches) * len(places) // self.knobs.matches]
        ends = places.astype(np.int64) + length
        node, levels, made = np.full(len(ends), -1), [], 0
        for depth in range(tokens):
            inside = ends + depth < len(self.ids)
            ends, node = ends[inside], node[inside]
            pair = (node + 1) << 32 | self.ids[ends + depth]
            pairs, which, counts = np.unique(pair, return_inverse=True, return_counts=True)
            levels.append((counts, (pairs >> 32) - 1, pairs & 0xFFFFFFFF))
            node, made = which + made, made + len(pairs)
        return tuple(np.concatenate(column) for column in zip(*levels, strict=True))  # type: ignore[return-value]


def _sort(ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"order": suffix_array(ids, LONGEST), "text": ids.astype(">u4")}
