"""What drafts with fitted heads share: pieces of their modules, and trees filled level by level from lists of likeliest tokens.

Axes: B rows or sequences, T tokens, C width, N nodes, V vocabulary, R ranks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.model.decoder import Decoder
from lithe.ops.tree import Tree

USUAL = 0.5  # the rate of each rank as a share of the rank before it, where none was measured
Path = tuple[int, ...]


class Ends:
    """The target's input and output embeddings, frozen: what heads look through, and no part of their own weights."""

    def __init__(self, model: Decoder):
        self._model, self.vocab = model, model.config.vocab

    def embed(self, ids: Tensor, like: Tensor) -> Tensor:
        """Input embeddings [..., C] in the precision of `like`."""
        return self._model.embed(ids).to(like.dtype)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of states as they come from the target's final norm."""
        return self._model.unembed(states.to(self._model.dtype)).to(states.dtype)

    def matrix(self) -> Tensor:
        """A copy of the output matrix [V, C]."""
        end: Any = self._model.embed_tokens if self._model.lm_head is None else self._model.lm_head
        return end.weight.detach().clone()


class Residual(nn.Module):
    """x + SiLU(W x), W being zero at the start, so that it begins as nothing (Medusa, section 2.1.1)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class Join(nn.Module):
    """Several states side by side made one, [..., parts * C] to [..., C]; at the start it is the first of them."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.linear = nn.Linear(parts * width, width)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.zero_()[:, :width].fill_diagonal_(1.0)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.linear(torch.cat(parts, dim=-1))


class Output(nn.Module):
    """Logits of a head: a projection of its own that starts as the target's, or the target's itself."""

    def __init__(self, ends: Ends, own: bool):
        super().__init__()
        self.ends = ends
        self.matrix = nn.Parameter(ends.matrix().float()) if own else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ends.logits(x) if self.matrix is None else F.linear(x, self.matrix)


def cross_entropy(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Nats of the text's own tokens, summed."""
    return F.cross_entropy(logits_BTV.flatten(0, -2), ids_BT.flatten(), reduction="sum")


def soft_cross_entropy(logits_BTV: Tensor, teacher_BTV: Tensor) -> Tensor:
    """Cross-entropy with the law of the teacher's logits, in nats, summed."""
    return -(teacher_BTV.softmax(-1) * logits_BTV.log_softmax(-1)).sum()


def likeliest(rates: Sequence[Sequence[float]], nodes: int) -> list[Path]:
    """The rank paths with the largest products of rates[depth][rank], parents first: a fixed tree of that many nodes.

    A path holds the rank of each token among its siblings (Medusa, section 2.3.3; the rates are those of the rank given that
    all tokens before are right).
    """
    chosen: list[Path] = []
    front: list[tuple[float, Path]] = [(-rates[0][0], (0,))] if rates else []
    while front and len(chosen) < nodes:
        cost, path = heapq.heappop(front)
        chosen.append(path)
        depth, rank = len(path), path[-1]
        if depth < len(rates):
            heapq.heappush(front, (cost * rates[depth][0], (*path, 0)))
        if rank + 1 < len(rates[depth - 1]):
            before = math.prod(rates[place][r] for place, r in enumerate(path[:-1]))
            heapq.heappush(front, (-before * rates[depth - 1][rank + 1], (*path[:-1], rank + 1)))
    return sorted(chosen, key=lambda path: (len(path), path))


def usual_rates(depth: int, ranks: int = 10) -> list[list[float]]:
    """Rates for heads that were never measured."""
    return [[USUAL ** (rank + 1) for rank in range(ranks)] for _ in range(depth)]


class Shape:
    """A fixed tree of rank paths, and how trees of tokens are filled along it."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self.ranks = max((path[-1] for path in paths), default=-1) + 1
        self.children: dict[Path, list[Path]] = {}
        for path in self.paths:
            self.children.setdefault(path[:-1], []).append(path)

    def fill(self, trees: Sequence[Tree], room: Sequence[int],
             ranked: Callable[[int, list[tuple[int, int]]], list[list[int]]]) -> None:
        """Grow the trees level by level. ranked(depth, [(tree, node)]) lists the likeliest tokens after each of these nodes."""
        front: dict[tuple[int, int], Path] = {(b, 0): () for b in range(len(trees))}
        depth = 0
        while True:
            parents = {place: path for place, path in front.items() if path in self.children and depth < room[place[0]]}
            if not parents:
                return
            front = {}
            for ((b, node), path), tokens in zip(parents.items(), ranked(depth, list(parents)), strict=True):
                for child in self.children[path]:
                    if child[-1] < len(tokens):
                        front[b, trees[b].add(tokens[child[-1]], node)] = child
            depth += 1


def top(logits_NV: Tensor, ranks: int) -> list[list[int]]:
    """The likeliest tokens of each row, best first."""
    return logits_NV.topk(min(ranks, logits_NV.shape[-1]), dim=-1).indices.tolist()


def onto(tree: Tree, node: int) -> list[int]:
    """The root's token and those on the way to a node."""
    return [tree.tokens[0], *(tree.tokens[i] for i in tree.path(node))]




def best(tree: Tree, scores: Sequence[float], nodes: int) -> Tree:
    """The root and the `nodes` best others; no child may score higher than its parent (EAGLE-2, section 4.2)."""
    order = sorted(range(1, len(tree)), key=lambda node: (-scores[node], node))
    kept = [0, *sorted(order[:nodes])]
    number = {old: new for new, old in enumerate(kept)}
    return Tree([tree.tokens[i] for i in kept], [number[tree.parents[i]] if i else -1 for i in kept])
