"""A last guess that no row of the pass was run for: a draft that works beside the target makes it while the pass runs.

Such a draft has a verb more, `late(sequences, trees)`, called between pass and walk: it may add one leaf to a tree. The walk
may step on it, by the law that the pass gave its parent; it then ends there, and the guess is the token that follows.
Axes: N nodes, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lithe.errors import LitheError
from lithe.ops.tree import Tree, Walk
from lithe.sampling.sequence import Sequence


def add(draft: Any, sequences: list[Sequence], trees: list[Tree]) -> None:
    """Let a draft that is late have its say. Raises LitheError where it did more than add a leaf."""
    before = [(list(tree.tokens), list(tree.parents)) for tree in trees]
    draft.late(sequences, trees)
    for tree, (tokens, parents) in zip(trees, before, strict=True):
        many = len(tokens)
        if (tree.tokens[:many], tree.parents[:many]) != (tokens, parents) or len(tree) > many + 1 or tree.parents[-1] >= many:
            raise LitheError("the draft is broken: after the pass it may add one leaf to a tree, and did something else")


def padded(tree: Tree, scores_NV: Tensor, rows: int) -> Tensor:
    """Scores with a row more where the tree has a leaf more: the rule may read them there, what it makes of them is dropped."""
    return scores_NV if len(tree) <= rows else torch.cat((scores_NV, scores_NV[:1]))


def ended(tree: Tree, walk: Walk, rows: int) -> Walk:
    """The walk as it ends at the last node that had a row."""
    if walk.path and walk.path[-1] >= rows:
        return Walk(walk.path[:-1], tree.tokens[walk.path[-1]])
    return walk
