"""What drafts do each round: the compiled search and merging do what their slow twins do, to the last node."""

import random

import pytest
import torch

from lithe.kernels import draft, library
from lithe.ops import merge, rank
from lithe.ops.tree import Tree
from tests.kernels.variants import compiled

COSTS = [1.0, 1.01, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6]


@compiled
@pytest.mark.parametrize(("rows", "width", "k"), [(1, 4096, 8), (5, 1000, 3), (3, 70, 64), (2, 8, 8)])
def test_the_largest_scores_are_topks(rows, width, k):
    scores_NV = torch.randn(rows, width + 5, generator=torch.Generator().manual_seed(width))[:, :width]  # rows lie apart
    assert draft.top(scores_NV, k).tolist() == scores_NV.topk(k, dim=-1).indices.tolist()
    assert draft.top(scores_NV.double(), k).tolist() == rank.top(scores_NV.double(), k).tolist()


@compiled
def test_equal_scores_leave_the_lower_id_first_and_masked_ones_come_last():
    scores_NV = torch.zeros(1, 100)
    scores_NV[0, :40] = -torch.inf
    assert draft.top(scores_NV, 4).tolist() == [[40, 41, 42, 43]]
    assert draft.top(scores_NV[:, :42], 4).tolist() == [[40, 41, 0, 1]]


@compiled
def test_merging_and_learning_are_the_slow_twins():
    fast, slow, dice = draft.merger(COSTS), merge.Merger(COSTS), random.Random(0)
    assert type(fast) is not type(slow)
    sizes = set()
    for _ in range(300):
        most, trees = dice.randrange(1, 7), [(name, grown(dice, name)) for name in "abc"]
        (tree, union), (same, other) = (each.merge(0, trees, most) for each in (fast, slow))
        assert (tree.tokens, tree.parents, tree.sources) == (same.tokens, same.parents, same.sources)
        truth = [dice.randrange(4) for _ in range(dice.randrange(1, 5))]
        fast.learn(union, truth)
        slow.learn(other, truth)
        sizes.add(len(tree))
    assert len(sizes) > 4


def grown(dice: random.Random, name: str) -> Tree:
    """A random tree of tokens 0 to 3, siblings unlike; one source in three tells of two indices it looks into."""
    tree = Tree.root(0)
    for _ in range(dice.randrange(0, 14)):
        parent, token = dice.randrange(len(tree)), dice.randrange(4)
        if tree.child(parent, token) is None:
            tree.add(token, parent, dice.choice(["text", "outputs"]) if name == "c" else None)
    return tree


def test_more_names_than_bits_share_the_last_one():
    merger = merge.Merger(COSTS)
    voices = [merger.voices(name, Tree.root(0))[0] for name in "abcdefgh"]
    assert voices == [1, 2, 4, 8, 16, 32, 32, 32]


def test_without_kernels_the_slow_twins_run(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: None)
    draft._functions.cache_clear()
    try:
        assert type(draft.merger(COSTS)) is merge.Merger
        assert draft.top(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist() == [[1, 2]]
    finally:
        draft._functions.cache_clear()
