"""Look the last words up in a corpus and guess what most often follows them there.

REST (He et al., 2024). A suffix array finds the longest ending of the text, of 16 down to 2 tokens, that occurs in
the corpus; the continuations of its occurrences are counted in a trie, whose 64 most frequent nodes are the draft. No training;
the corpus is tokenised and sorted once and then read from disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lithe.card import Card, knob
from lithe.decode.store import LONGEST, Store
from lithe.model import corpus
from lithe.ops.tree import Tree

CARD = Card(
    paper="REST: Retrieval-Based Speculative Decoding (He et al., 2024)",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "corpus"),
    emits=("det",),
)


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
        self.store = Store(knobs.corpus, model.tokenizer)

    def propose(self, sequences, room):
        return [self._tree(s, most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        """Nothing to learn: the corpus stays as it is."""

    def _tree(self, sequence, most: int) -> Tree:
        tree = Tree.root(sequence.ids[-1])
        tokens, found = min(self.knobs.tokens, most), self.store.longest(sequence.ids, self.knobs.shortest, self.knobs.longest)
        if found is None or tokens < 1:
            return tree
        counts, parents, after = self._count(*found, tokens)
        number = {-1: 0}
        for node in np.argsort(-counts, kind="stable")[: self.knobs.nodes].tolist():  # nodes lie by depth: parents stay first
            number[node] = tree.add(int(after[node]), number[int(parents[node])])
        return tree

    def _count(self, places: np.ndarray, length: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The trie of continuations, level by level: how often each node occurs, its parent (-1 the root) and its token."""
        if len(places) > self.knobs.matches:
            places = places[np.arange(self.knobs.matches) * len(places) // self.knobs.matches]
        ids, ends = self.store.ids, places.astype(np.int64) + length
        node, levels, made = np.full(len(ends), -1), [], 0
        for depth in range(tokens):
            inside = ends + depth < len(ids)
            ends, node = ends[inside], node[inside]
            pair = (node + 1) << 32 | ids[ends + depth]
            pairs, which, counts = np.unique(pair, return_inverse=True, return_counts=True)
            levels.append((counts, (pairs >> 32) - 1, pairs & 0xFFFFFFFF))
            node, made = which + made, made + len(pairs)
        return tuple(np.concatenate(column) for column in zip(*levels, strict=True))  # type: ignore[return-value]
