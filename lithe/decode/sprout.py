"""Trees that a small body grows a level at a time, each level one pass over its rows and those they stand on.

Axes: B trees, N nodes, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq

import torch
from torch import Tensor

from lithe.decode.heads import best
from lithe.decode.trail import Trail
from lithe.ops.tree import Tree

Place = tuple[int, int]  # a tree of the batch, a node of it


class Sprout:
    """What a body says at the nodes of growing trees, behind what its cache holds of the committed text."""

    def __init__(self, trail: Trail, trees: Seq[Tree], enter: Callable[[list[Place]], Tensor], *,
                 roots_BC: Tensor | None = None, back: bool = False):
        """enter(places) gives the rows [N, C] of nodes it has not read.

        roots_BC: what it said at the roots, where committed rows hold them; else they are read like any node. back: once
        read, a node stands for those after it as what the body said there, not as its row.
        """
        self.trail, self.trees, self.enter, self.back = trail, trees, enter, back
        self.said: dict[Place, Tensor] = {} if roots_BC is None else {(b, 0): out_C for b, out_C in enumerate(roots_BC)}
        self.rows: dict[Place, Tensor] = {}

    def __call__(self, places: list[Place]) -> Tensor:
        """What it says [N, C] at these places, all of one level."""
        if any(place not in self.said for place in places):
            self._read(places)
        return torch.stack([self.said[place] for place in places])

    def _read(self, places: list[Place]) -> None:
        self.rows.update(zip(places, self.enter(places), strict=True))
        shown = [sorted({i for at, node in places if at == b for i in (0, *tree.path(node)) if (b, i) in self.rows})
                 for b, tree in enumerate(self.trees)]
        number = [{node: row for row, node in enumerate(nodes)} for nodes in shown]
        parents = [[number[b].get(tree.parents[node], -1) for node in shown[b]] for b, tree in enumerate(self.trees)]
        none = self.rows[places[0]][None][:0]
        rows = [torch.stack([self.rows[b, node] for node in nodes]) if nodes else none for b, nodes in enumerate(shown)]
        out_BTC = self.trail.look(rows, parents)
        self.said.update({(b, node): out_BTC[b, number[b][node]] for b, node in places})
        if self.back:
            self.rows.update({place: self.said[place] for place in places})


def likely(trees: Seq[Tree], most: Seq[int], logits: Callable[[list[Place]], Tensor], *, width: int, nodes: int) -> list[Tree]:
    """Every level's `width` best paths go on with as many guesses each; of all that was met the best nodes stay (EAGLE-2,
    section 4). most[b]: levels. logits(places): [N, V]. Scores are logarithms of joint probability."""
    scores, front = [[0.0] for _ in trees], [(b, 0) for b in range(len(trees))]
    for depth in range(max(most, default=0)):
        front = [(b, node) for b, node in front if depth < most[b]]
        if not front:
            break
        law_NV = logits(front).double().log_softmax(-1)
        best_NR, token_NR = law_NV.topk(min(width, law_NV.shape[-1]))
        below: list[list[tuple[float, int]]] = [[] for _ in trees]
        for (b, node), gains, tokens in zip(front, best_NR.tolist(), token_NR.tolist(), strict=True):
            for gain, token in zip(gains, tokens, strict=True):
                scores[b].append(scores[b][node] + gain)
                below[b].append((-scores[b][-1], trees[b].add(token, node)))
        front = [(b, node) for b, met in enumerate(below) for _, node in sorted(met)[:width]]
    return [best(tree, score, nodes) for tree, score in zip(trees, scores, strict=True)]
