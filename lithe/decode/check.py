"""What a draft or a rule must not get wrong unseen: a wrong guess costs a row, but a wrong root would change the text."""

from __future__ import annotations

from operator import index
from typing import Any

from lithe.decode.plan import DecodePlan
from lithe.errors import LitheError
from lithe.ops.tree import Tree, Walk
from lithe.sampling.sequence import Sequence


def check_trees(plan: DecodePlan, sequences: list[Sequence], trees: Any) -> None:
    """Raise LitheError for what is no tree of these sequences and this vocabulary."""
    if not isinstance(trees, list) or len(trees) != len(sequences):
        what = f"{len(trees)} trees" if isinstance(trees, list) else type(trees).__name__
        raise LitheError(f"{plan.name} is broken: it proposed {what} for {len(sequences)} sequences")
    for sequence, tree in zip(sequences, trees, strict=True):
        if fault := _fault(plan, sequence.ids[-1], tree):
            raise LitheError(f"{plan.name} is broken: it proposed {fault}")


def _fault(plan: DecodePlan, root: int, tree: Any) -> str | None:
    if not isinstance(tree, Tree):
        return f"a {type(tree).__name__} instead of a tree"
    try:
        tree.tokens = list(map(index, tree.tokens))  # numbers of other libraries become plain ones
    except TypeError:
        return f"tokens that are no whole numbers: {tree.tokens!r:.80}"
    vocab, kinds, size = plan.model.config.vocab, plan.kinds, len(tree.tokens)
    if tree.kind not in kinds:
        return f"a tree of kind {tree.kind!r}, while its card says {', '.join(kinds)}"
    if tree.tokens[:1] != [root]:
        return f"a tree that does not begin with the last token, {root}: {tree.tokens[:8]}"
    if min(tree.tokens) < 0 or max(tree.tokens) >= vocab:
        wrong = next(token for token in tree.tokens if not 0 <= token < vocab)
        return f"token {wrong}, which is outside the vocabulary of {vocab}"
    if tree.parents != list(range(-1, size - 1)) and (
            len(tree.parents) != size or any(not (0 <= p < i or p == i - 1 == -1) for i, p in enumerate(tree.parents))):
        return f"a tree where parents do not precede their children: {tree.parents[:16]}"
    for i, (node, above, _) in enumerate(tree.ghosts):
        if not 0 <= node < len(tree) or not -1 <= above < i or (above >= 0 and tree.ghosts[above].node != node):
            return f"a ghost that hangs on no row before it: {tree.ghosts[i]}"
    return None


def check_walk(plan: DecodePlan, tree: Tree, walk: Walk) -> None:
    """Raise LitheError for a walk that does not end at a node of the tree, with a token of the vocabulary."""
    node = walk.path[-1] if walk.path else 0
    leads = node < len(tree.tokens) and (not walk.path or list(walk.path) == tree.path(node))
    if not (leads and 0 <= walk.token < plan.model.config.vocab):
        raise LitheError(f"{plan.specs.get('accept', plan.name)} is broken: {walk} leaves its tree or the vocabulary")
