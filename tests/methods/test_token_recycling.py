"""Token Recycling: the paper's tree, its table, and ablations in the paper's direction (sections 3 and 4.5)."""

from collections import Counter

import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.loop import Round
from lithe.decode.told import Told
from lithe.ops.tree import Tree, Walk
from lithe.sampling.sequence import Sequence
from tests.methods.measure import setting, tokens_per_pass

method = registry.find("token_recycling").module


def made(**knobs):
    return method.Method(method.Knobs(**knobs), small_model())


def seen(draft, tree, path, token, logits):
    draft.observe([Round(Sequence([1, 2], limit=9, context=64), tree, Walk(path, token), Told(logits), {}, len(tree))])


def test_the_tree_is_the_papers():
    paths = method.template()
    assert [n for _, n in sorted(Counter(map(len, paths)).items())] == [8, 21, 25, 15, 8, 3]
    assert all(path[:-1] == () or path[:-1] in paths for path in paths)
    assert all(path[-1] == 0 or (*path[:-1], path[-1] - 1) in paths for path in paths)


def test_the_table_weighs_what_the_paper_says():
    draft = made()
    assert draft.table.nbytes == small_model().config.vocab * 8 * 4


def test_every_verified_row_writes_its_candidates_and_the_later_row_wins():
    draft = made(k=2)
    logits = torch.zeros(3, 32)
    for row, best in enumerate(([7, 8], [9, 10], [11, 12])):
        logits[row, best] = torch.tensor([2.0, 1.0])
    tree = Tree([5, 6, 6], [-1, 0, 1])
    seen(draft, tree, (), 7, logits)
    assert draft.table[5].tolist() == [7, 8] and draft.table[6].tolist() == [11, 12]
    accepted = made(k=2, update="accepted")
    seen(accepted, tree, (), 7, logits)
    assert accepted.table[5].tolist() == [7, 8] and accepted.table[6].tolist() == [0, 0]


def test_the_tree_is_filled_from_the_table_and_unknown_tokens_are_left_out():
    draft = made(k=4)
    draft.table[3] = [4, 5, 0, 0]
    draft.table[4] = [6, 0, 0, 0]
    (tree,) = draft.propose([Sequence([1, 3], limit=9, context=64)], [8])
    assert [(tree.tokens[i], tree.tokens[tree.parents[i]]) for i in range(1, len(tree))] == [(4, 3), (5, 3), (6, 4)]
    (shallow,) = draft.propose([Sequence([1, 3], limit=9, context=64)], [1])
    assert shallow.tokens == [3, 4, 5]


def test_a_smaller_tree_keeps_the_likeliest_paths_prefix_closed():
    draft = made(nodes=6)
    for _ in range(200):  # rank 1 at the root is always right
        draft.right[0][1] += 1
        draft.tested[0] += 1
    paths = draft._shape()
    assert len(paths) == 6 and (1,) in paths
    assert all(path[:-1] == () or path[:-1] in paths for path in paths)


def test_cold_start_forgets():
    for hot in (True, False):
        draft = made(hot=hot)
        draft.table[3] = 1
        draft.start([])
        assert bool(draft.table.any()) is hot


def test_ablations_point_where_the_paper_says():
    """On a real model: all rows beat accepted rows only, a hot start a cold one, k = 8 is no worse than k = 2."""
    model, prompts = setting(10)
    full = tokens_per_pass(model, "token_recycling", prompts)
    assert full > 1.2
    assert full > tokens_per_pass(model, "token_recycling:update=accepted", prompts)
    assert full > tokens_per_pass(model, "token_recycling:hot=false", prompts)
    assert full >= tokens_per_pass(model, "token_recycling:k=2", prompts)


def test_without_a_size_the_tree_is_as_large_as_pays():
    draft = made(nodes=0)
    draft.right = [[0.6] + [1e-9] * (len(level) - 1) for level in draft.right]
    draft.tested = [1.0] * len(draft.right)
    draft.right[0][1] = 0.3  # chances of paths: 0.6, 0.36, 0.3, 0.216, ...
    for costs, paths in (([1.0, 1.0, *[9.0] * 79], [(0,)]), ([1.0, 1.1, 1.15, 1.2, *[9.0] * 77], [(0,), (1,), (0, 0)])):
        draft.costs = costs
        assert draft._shape() == paths
