"""Search a table of which token follows which two for the likeliest continuations, and let the text correct it.

ADED (Liu et al., 2024). The table holds the twelve likeliest followers of every pair of tokens in a corpus. Before each draft
the pairs of the last sixteen tokens gain a little score for what truly followed them. A Monte Carlo tree search over the table
then weighs what is likely against what was seldom tried; the most visited paths, each with the likeliest token after it, are
the draft. No training; the table is read from disk, and what it learns lives on across prompts.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from random import Random

import numpy as np

from lithe.card import Card, knob
from lithe.model import corpus
from lithe.ops.tree import Tree

CARD = Card(
    paper="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    row=5,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "corpus"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    corpus: str = knob(corpus.FREE, "a text, .jsonl or .npy file; python: the sources of Python's own library")
    iterations: int = knob(150, "of the search; 0: a chain of likeliest followers instead", low=0, high=10_000)
    length: int = knob(4, "tokens of a searched path, the last one of the text included", low=2, high=16)
    c1: float = knob(32.0, "weight of what was seldom tried", low=0.0)
    c2: float = knob(8.0, "visits after which that weight begins to grow", low=1e-6)
    top: int = knob(12, "followers of a pair taken from the corpus", low=1, high=1024)
    recent: int = knob(16, "last tokens that correct the table before a draft", low=0, high=1024)
    step: float = knob(0.04, "score a follower gains each time", low=0.0)
    cap: float = knob(3.0, "highest score", low=0.0)
    paths: int = knob(24, "most visited paths to draft", low=1, high=1024)
    nodes: int = knob(64, "most tokens to draft", low=1, high=1024)
    hot: bool = knob(True, "keep what the table learnt from one prompt to the next")


def count(ids: np.ndarray, top: int) -> dict[str, np.ndarray]:
    """The table of a corpus: pairs in order, where the followers of each begin, the followers, likeliest first, their laws."""
    base, ids = int(ids.max(initial=0)) + 1, ids.astype(np.int64)
    triples, counts = np.unique((ids[:-2] * base + ids[1:-1]) * base + ids[2:], return_counts=True)
    order = np.lexsort((-counts, triples // base))
    triples, counts = triples[order], counts[order]
    pairs, starts = np.unique(triples // base, return_index=True)
    sizes = np.diff(np.append(starts, len(triples)))
    rank = np.arange(len(triples)) - np.repeat(starts, sizes)
    law = counts / np.repeat(np.add.reduceat(counts, starts) if len(starts) else starts, sizes)
    begins = np.concatenate([[0], np.cumsum(np.minimum(sizes, top))])
    return {"pairs": pairs // base << 32 | pairs % base, "begins": begins.astype(np.int32),
            "followers": (triples % base)[rank < top].astype(np.int32), "laws": law[rank < top].astype(np.float32)}


@dataclass(slots=True)
class Node:
    """A searched path: its last pair, the score of its last token, and what the search found there."""

    pair: tuple[int, int]
    score: float
    visits: int = 0
    reward: float = 0.0
    children: list[Node] = field(default_factory=list)  # likeliest first; those visited come before the others
    tried: int = 0


class Method:
    learns_from_any_tree = True

    def __init__(self, knobs: Knobs, model):
        self.knobs = knobs
        made = corpus.load(knobs.corpus, model.tokenizer).derived(f"triples {knobs.top}", lambda ids: count(ids, knobs.top))
        self.table = {name: np.asarray(array) for name, array in made.items()}
        self.bytes = sum(array.nbytes for array in self.table.values())  # on disk
        self.scores: dict[tuple[int, int], dict[int, float]] = {}  # of the pairs met so far, corrected
        self.ranked: dict[tuple[int, int], tuple[list[int], list[float], list[float]]] = {}
        self.dice = Random(0)

    def start(self, sequences):
        self.dice = Random(0)
        if not self.knobs.hot:
            self.scores.clear()
            self.ranked.clear()

    def propose(self, sequences, room):
        return [self._tree(s.ids, most) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        """Nothing to do: the next draft reads what was accepted from the text."""

    def _tree(self, ids: list[int], most: int) -> Tree:
        self._correct(ids)
        tree = Tree.root(ids[-1])
        if len(ids) < 2 or most < 1:
            return tree
        pair, limit = (ids[-2], ids[-1]), self.knobs.nodes
        if not self.knobs.iterations:
            tree.grow(self._chain(pair, min(limit, most)))
            return tree
        for path in self._candidates(self.search(pair, min(self.knobs.length - 1, most))):
            tree.grow(path[:most])
            if len(tree) > limit:
                return tree.cut(depth=most, nodes=limit + 1)
        return tree

    def _correct(self, ids: list[int]) -> None:
        """What followed the pairs of the last tokens gains score; scores are no longer laws then."""
        recent = ids[-self.knobs.recent :] if self.knobs.recent else []
        for pair, token in zip(pairwise(recent), recent[2:], strict=False):
            scores = self._scores(pair)
            scores[token] = min(scores.get(token, 0.0) + self.knobs.step, self.knobs.cap)
            self.ranked.pop(pair, None)

    def search(self, pair: tuple[int, int], depth: int) -> Node:
        """The searched tree below a pair: `depth` tokens at most; its root was visited once an iteration."""
        root, c1, c2 = Node(pair, 0.0), self.knobs.c1, self.knobs.c2
        for _ in range(self.knobs.iterations):
            node, path = root, [root]
            while node.children and node.visits:
                if node.tried < len(node.children):  # one never tried comes first
                    node.tried += 1
                    node = node.children[node.tried - 1]
                else:
                    seldom = (c1 + math.log((node.visits + c2 + 1) / c2)) * math.sqrt(node.visits)
                    node = max(node.children, key=lambda n: n.reward / n.visits + seldom * n.score / (1 + n.visits))
                path.append(node)
            if len(path) <= depth and not node.children:
                followers, scores, _ = self._followers(node.pair)
                node.children = [Node((node.pair[1], t), score) for t, score in zip(followers, scores, strict=True)]
            reward = 1.0 + sum(n.score for n in path) + self._simulate(node.pair, depth + 1 - len(path))
            for node in path:
                node.visits += 1
                node.reward += reward
        return root

    def _simulate(self, pair: tuple[int, int], tokens: int) -> float:
        """The scores along a path of followers drawn in proportion to their scores."""
        total = 0.0
        for _ in range(tokens):
            followers, scores, sums = self._followers(pair)
            if not followers or not sums[-1]:
                break
            drawn = min(bisect(sums, self.dice.random() * sums[-1]), len(sums) - 1)
            total, pair = total + scores[drawn], (pair[1], followers[drawn])
        return total

    def _candidates(self, root: Node) -> list[list[int]]:
        """The most visited paths, each with the likeliest token after it."""
        visited: list[tuple[int, list[int], Node]] = []
        front: list[tuple[list[int], Node]] = [([], root)]
        for tokens, node in front:
            for child in node.children:
                if child.visits:
                    front.append(([*tokens, child.pair[1]], child))
                    visited.append((child.visits, *front[-1]))
        visited.sort(key=lambda one: -one[0])
        return [tokens + self._followers(node.pair)[0][:1] for _, tokens, node in visited[: self.knobs.paths]]

    def _chain(self, pair: tuple[int, int], tokens: int) -> list[int]:
        chain: list[int] = []
        while len(chain) < tokens and (best := self._followers(pair)[0][:1]):
            chain, pair = chain + best, (pair[1], best[0])
        return chain

    def _followers(self, pair: tuple[int, int]) -> tuple[list[int], list[float], list[float]]:
        """A pair's followers, best first, their scores and the sums of those so far."""
        if pair not in self.ranked:
            best = sorted(self._scores(pair).items(), key=lambda item: -item[1])
            scores = [score for _, score in best]
            self.ranked[pair] = [token for token, _ in best], scores, list(accumulate(scores))
        return self.ranked[pair]

    def _scores(self, pair: tuple[int, int]) -> dict[int, float]:
        if pair not in self.scores:
            pairs, begins, key = self.table["pairs"], self.table["begins"], pair[0] << 32 | pair[1]
            at = int(np.searchsorted(pairs, key))
            span = slice(begins[at], begins[at + 1]) if at < len(pairs) and pairs[at] == key else slice(0)
            followers, laws = (self.table[name][span].tolist() for name in ("followers", "laws"))
            self.scores[pair] = dict(zip(followers, laws, strict=True))
        return self.scores[pair]
