"""The best fixed tree for how often the first, second, third ... guess at a node turns out right.

Sequoia (Chen et al., 2024), sections 3.1 and 3.2. a_r is the chance that the child of rank r is the one accepted, given that
its parent was; a dynamic program over size and depth finds the tree of so many nodes with the most accepted tokens
expected. Children are drawn without replacement. The paper measures a_r beforehand; here the loop's own rounds are counted,
and the tree is shaped anew now and then.

Axes: N nodes, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lithe.card import Card, knob
from lithe.decode.grow import distinct

CARD = Card(
    paper="Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("wor",),
)

RANKS = 16  # children of a node, at most
REBUILD = 64  # rounds after which the tree is shaped anew; sooner at first
Path = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Knobs:
    nodes: int = knob(64, "size of the tree, its root left out", low=1, high=256)
    depth: int = knob(10, "levels, at most", low=1, high=32)


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs
        self.right = 0.5 ** np.arange(1, RANKS + 1)  # before anything is known, a guess is right half the time
        self.tested = np.ones(RANKS)
        self.rounds, self.due = 0, 8
        self.shape = best(self.right / self.tested, knobs.nodes, knobs.depth)

    def grow(self, tree, chance, *, depth, greedy):
        return distinct(tree, chance, lambda path: self.shape.get(path, 0), depth)

    def observe(self, rounds):
        for r in rounds:
            for node, after in zip((0, *r.walk.path), (*r.walk.path, None), strict=True):
                children = r.tree.children(node)
                self.tested[: len(children)] += 1
                if after is not None:
                    self.right[children.index(after)] += 1
            self.rounds += 1
        if self.rounds >= self.due:
            self.due = self.rounds + min(self.rounds, REBUILD)
            self.shape = best(self.right / self.tested, self.knobs.nodes, self.knobs.depth)


def best(rate_R: np.ndarray, nodes: int, depth: int) -> dict[Path, int]:
    """How many children a node of the best tree has, by the ranks on the way to it. nodes: its root left out."""
    value_N, levels = np.ones(nodes + 2), []  # value_N[n]: expected tokens of the best tree of n nodes, its root included
    value_N[0] = 0
    for _ in range(depth):
        shared_N, taken = np.zeros(nodes + 1), []  # shared_N[m]: of m nodes among the children of rank r and higher
        for rate in rate_R[::-1]:
            with_N = np.array([(rate * value_N[1 : m + 1] + shared_N[m - 1 :: -1] if m else np.zeros(1)).max()
                               for m in range(nodes + 1)])
            at_N = [1 + int((rate * value_N[1 : m + 1] + shared_N[m - 1 :: -1]).argmax()) if m else 0 for m in range(nodes + 1)]
            shared_N = with_N
            taken.append(at_N)
        levels.append(taken[::-1])
        value_N = np.concatenate(([0.0], 1 + shared_N))
    return _shape(levels, nodes)


def _shape(levels: list[list[list[int]]], nodes: int) -> dict[Path, int]:
    """Follow the choices down: levels[d][r][m] is what the child of rank r takes of m nodes, d + 1 levels from the bottom."""
    shape: dict[Path, int] = {}
    front: list[tuple[Path, int]] = [((), nodes)]
    for taken in reversed(levels):
        below = []
        for path, left in front:
            rank = 0
            while left > 0 and rank < len(taken):
                size = taken[rank][left]
                below.append(((*path, rank), size - 1))
                left, rank = left - size, rank + 1
            if rank:
                shape[path] = rank
        front = below
    return shape
