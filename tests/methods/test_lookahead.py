"""Lookahead: the window's arithmetic, the pool, and where the tokens come from."""

from itertools import pairwise

from tests.methods.measure import made, measure, seen, sequence, setting, tokens_per_pass

AFTER = lambda token, node=0: (5 * token + 3) % 32  # a model that looks at one token only


def turned(passes, **knobs):
    """A draft after so many passes in which nothing was accepted."""
    draft, s = made("lookahead", **knobs), sequence(*range(1, 30))
    for _ in range(passes):
        (tree,) = draft.propose([s], [99])
        seen(draft, s, tree, AFTER)
    return draft, s, draft.windows.get(s.number)


def test_the_window_fills_and_then_keeps_its_shape():
    for passes, shape in enumerate(([8, 9], [7, 8, 8], [6, 7, 7, 7], [6, 7, 7, 7], [6, 7, 7, 7]), 1):
        assert list(map(len, turned(passes)[2].levels)) == shape


def test_nothing_enters_the_pool_before_an_ngram_is_whole_and_then_one_a_column():
    assert not turned(3)[0].pool
    assert 1 <= sum(map(len, turned(4)[0].pool.values())) <= 7


def test_every_column_is_a_trajectory_of_the_model():
    _, _, window = turned(9)
    for column in zip(*[level[-6:] for level in window.levels], strict=True):
        assert all(AFTER(a) == b for a, b in pairwise(column))


def test_a_window_token_stands_at_its_columns_place_plus_its_level():
    draft, s, window = turned(6)
    draft.pool.clear()
    (tree,) = draft.propose([s], [99])
    assert [tree.depths[node] for node in window.newest] == list(range(3, 10))
    for column, node in enumerate(window.newest):  # behind it lie its own column and the first guesses before that
        behind = window.levels[0][:column] + [level[column] for level in window.levels[1:]]
        assert [tree.tokens[i] for i in tree.path(node)] == behind
    assert len(tree) <= 1 + 6 + 3 * 7


def test_the_window_moves_one_place_a_pass():
    draft, s, window = turned(6)
    before = window.levels
    (tree,) = draft.propose([s], [99])
    seen(draft, s, tree, AFTER)
    assert window.levels[0] == before[1][1:] and window.levels[1:3] == before[2:4]


def test_the_pool_forgets_the_oldest_and_offers_what_begins_with_the_root():
    draft, s = made("lookahead", guesses=2, ngram=3), sequence(1, 2)
    for rest in ((3, 4), (5, 6), (3, 4), (7, 8)):
        draft._keep(2, rest)
    assert list(draft.pool[2]) == [(3, 4), (7, 8)]
    (tree,) = draft.propose([s], [2])  # too near the end for the window
    assert tree.tokens == [2, 7, 8, 3, 4] and tree.parents == [-1, 0, 1, 0, 3]


def test_the_text_fills_the_pool_once_where_asked():
    draft, s = made("lookahead", prompt=True), sequence(*range(10))
    (tree,) = draft.propose([s], [99])
    assert sorted(draft.pool) == list(range(6)) and list(draft.pool[2]) == [(3, 4, 5, 6)]
    seen(draft, s, tree, AFTER)
    assert list(draft.pool[6]) == [(7, 8, 9, AFTER(9))]


def test_ablations_point_where_the_paper_says():
    """The pool gives more than the window itself; a wide window beats a narrow one; longer n-grams beat pairs of tokens."""
    model, prompts = setting(8)
    full, sources = measure(model, "lookahead", prompts)
    assert sources["pool"] > sources["window"]
    assert full > 1.2
    assert full > tokens_per_pass(model, "lookahead:window=2", prompts)
    assert full > tokens_per_pass(model, "lookahead:guesses=1", prompts)
