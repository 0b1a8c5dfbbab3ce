"""Jacobi: what is confirmed is kept, what is corrected begins the next block; random blocks are the control."""

from lithe import registry
from tests.methods.measure import made, seen, sequence, setting, tokens_per_pass


def test_the_corrected_rest_is_the_next_block():
    draft, s = made("jacobi", tokens=6), sequence(1, 2, 3)
    (tree,) = draft.propose([s], [99])
    assert len(tree) == 7 and set(tree.tokens) <= {1, 2, 3}
    seen(draft, s, tree, lambda token, node: 10 + node, path=[1, 2])  # nodes 1 and 2 stood; 12 follows them
    (tree,) = draft.propose([s], [99])
    assert tree.tokens[:5] == [12, 13, 14, 15, 16] and len(tree) == 7


def test_a_fixed_point_is_accepted_whole():
    """Nothing but the depth of the dependency matters: a model that counts its rows is solved in one correction."""
    draft, s = made("jacobi", tokens=5), sequence(1, 2)
    (tree,) = draft.propose([s], [99])
    seen(draft, s, tree, lambda token, node: 20 + node)
    (tree,) = draft.propose([s], [99])
    assert tree.tokens[:6] == [20, 21, 22, 23, 24, 25]


def test_the_block_ends_where_the_text_must():
    draft = made("jacobi")
    assert [len(tree) for tree in draft.propose([sequence(1, 2), sequence(1, 2)], [0, 3])] == [1, 4]


def test_corrections_help_and_random_blocks_hardly_do(monkeypatch):
    model, prompts = setting(20)
    full = tokens_per_pass(model, "jacobi", prompts)
    monkeypatch.setattr(registry.find("jacobi").module.Method, "observe", lambda self, rounds: None)
    assert 1 <= tokens_per_pass(model, "jacobi", prompts) < full  # the text's own tokens are no bad guesses in loops
