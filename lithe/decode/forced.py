"""What a constraint asks of the loop: masks along every tree, and tokens that must follow, verified as a chain in one pass.

A forced token has all of the constrained law, so every rule accepts it, in trees of every kind: the chain says it was drawn
from that very law. Axes: N nodes, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lithe.errors import UnsupportedError
from lithe.ops.tree import Tree
from lithe.sampling.constraint import ConstraintError
from lithe.sampling.sequence import Sequence

SOURCE = "constraint"  # where an accepted forced token comes from


def check(plan: Any, sequences: list[Sequence]) -> None:
    """Raise UnsupportedError where a plan chooses tokens by itself, so that nothing could hold it to a constraint."""
    if plan.search is not None and any(s.constraint is not None for s in sequences):
        raise UnsupportedError(f"{plan.name} chooses tokens itself, so its text cannot be constrained: use a draft instead")


def tokens(plan: Any, sequences: list[Sequence], room: list[int], slots: int) -> list[list[int]]:
    """Of each sequence the tokens that must follow, no more than there is room for; nothing at all where none has any.

    A draft whose own rows take part in the target's pass, or who speaks between pass and walk, is left to guess alone: the
    tokens are then chosen one by one, the text being the same.
    """
    if any(hasattr(plan.draft, verb) for verb in ("begun", "ghosts", "late")):
        return []
    found = [[] if s.constraint is None else s.constraint.forced(s.tokens)[: max(0, min(depth, slots - 1))]
             for s, depth in zip(sequences, room, strict=True)]
    return found if any(found) else []


def rest(room: list[int], must: list[list[int]]) -> list[int]:
    """How far a draft may guess: not at all where a chain stands in for its tree."""
    return [0 if tokens else depth for depth, tokens in zip(room, must, strict=True)] if must else room


def chains(plan: Any, sequences: list[Sequence], trees: list[Tree], must: list[list[int]]) -> list[Tree]:
    """Trees in which forced tokens stand as a chain of their tree's kind."""
    if not must:
        return trees
    vocab = plan.model.config.vocab
    return [_chain(tree, tokens, 0 if s.law.greedy else vocab) if tokens else tree
            for s, tree, tokens in zip(sequences, trees, must, strict=True)]


def _chain(tree: Tree, must: list[int], vocab: int) -> Tree:
    made = Tree.chain(tree.tokens[0], must)
    made.kind, made.sources = tree.kind, dict.fromkeys(range(1, len(made)), SOURCE)
    if vocab and made.kind != "det":
        made.laws = dict(enumerate(one_hot(torch.tensor(must), vocab).double()))
    return made


def masked(sequence: Sequence, tree: Tree, raw_NV: Tensor) -> Tensor:
    """Logits with -inf where the constraint lets no token follow."""
    assert sequence.constraint is not None
    try:
        return sequence.constraint.mask(sequence.tokens, tree, raw_NV)
    except ConstraintError as problem:
        problem.sequence = sequence
        raise
