"""What drafts do each round: the compiled search and merging do what their slow twins do, to the last node."""

import random

import numpy as np
import pytest
import torch

from lithe.kernels import draft, library
from lithe.ops import merge
from lithe.ops.tree import Tree
from tests.kernels.variants import compiled

COSTS = [1.0, 1.01, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6]


def noted(scores_NV, k):
    """The table's rows, written by a lookup of each row in turn."""
    table_NK = np.zeros((len(scores_NV), k), np.int32)
    draft.note_top(table_NK, range(len(scores_NV)), scores_NV, range(len(scores_NV)))
    return table_NK.tolist()


@compiled
@pytest.mark.parametrize(("rows", "width", "k"), [(1, 4096, 8), (5, 1000, 3), (3, 70, 64), (2, 8, 8)])
def test_the_largest_scores_are_topks(rows, width, k):
    scores_NV = torch.randn(rows, width + 5, generator=torch.Generator().manual_seed(width))[:, :width]  # rows lie apart
    assert noted(scores_NV, k) == scores_NV.topk(k, dim=-1).indices.tolist() == noted(scores_NV.double(), k)


@compiled
def test_equal_scores_leave_the_lower_id_first_and_masked_ones_come_last():
    scores_NV = torch.zeros(1, 100)
    scores_NV[0, :40] = -torch.inf
    assert noted(scores_NV, 4) == [[40, 41, 42, 43]]
    assert noted(scores_NV[:, :42], 4) == [[40, 41, 0, 1]]


@compiled
def test_of_two_rows_for_one_place_the_later_one_stays():
    scores_NV = torch.eye(3)
    table_VK = np.full((4, 1), 9, np.int32)
    draft.note_top(table_VK, [2, 0, 2], scores_NV, [0, 1, 2])
    assert table_VK.tolist() == [[1], [9], [2], [9]]


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
        assert noted(torch.tensor([[1.0, 3.0, 2.0]]), 2) == [[1, 2]]
    finally:
        draft._functions.cache_clear()
