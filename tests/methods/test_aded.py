"""ADED: the table, what the text teaches it, the search, and ablations in the paper's direction."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from lithe import registry
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from tests.methods.measure import made, sequence, setting, tokens_per_pass

count = registry.find("aded").module.count


@pytest.fixture
def draft(tmp_path):
    def go(ids, **knobs):
        np.save(tmp_path / "ids.npy", np.array(ids, dtype=np.int64))
        return made("aded", corpus=str(tmp_path / "ids.npy"), **knobs)

    return go


def guess(draft, *ids, most=99):
    (tree,) = draft.propose([sequence(*ids)], [most])
    return tree


def test_the_table_holds_the_likeliest_followers_of_every_pair(draft):
    ids = np.random.default_rng(0).integers(0, 6, 900)
    truth = defaultdict(Counter)
    for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
        truth[int(a), int(b)][int(c)] += 1
    made = draft(ids, top=4)
    for pair, followers in truth.items():
        found = made._scores(pair)
        assert len(found) == min(4, len(followers))
        assert min(followers[c] for c in found) >= max([followers[c] for c in followers if c not in found], default=0)
        assert all(abs(score - followers[c] / followers.total()) < 1e-6 for c, score in found.items())
    assert made._scores((7, 7)) == {}


def test_the_table_weighs_what_its_arrays_do(draft):
    """Eight bytes a pair, four to say where its followers begin, eight a follower."""
    made = draft(np.random.default_rng(0).integers(0, 9, 3000))
    pairs, followers = len(made.table["pairs"]), len(made.table["followers"])
    assert made.bytes == 8 * pairs + 4 * (pairs + 1) + 8 * followers <= pairs * (12 + 8 * 12) + 4


def test_a_corpus_too_short_for_a_triple_is_an_empty_table(draft):
    assert guess(draft([1, 2]), 1, 2).tokens == [2] and guess(draft([]), 1, 2).tokens == [2]


def test_with_one_successor_everywhere_the_tree_is_a_chain(draft):
    tree = guess(draft(list(range(20))), 3, 4)
    assert tree.tokens == [4, 5, 6, 7, 8] and tree.parents == [-1, 0, 1, 2, 3]  # three searched, one appended
    assert len(guess(draft(list(range(20)), length=7), 3, 4)) == 1 + 7
    assert guess(draft(list(range(20))), 3, 4, most=2).tokens == [4, 5, 6]


def test_the_root_is_visited_once_an_iteration_and_visits_add_up(draft):
    made = draft(np.random.default_rng(1).integers(0, 8, 2000))
    root = made.search((1, 2), 3)
    assert root.visits == 150 == 1 + sum(child.visits for child in root.children)
    likely = sorted(root.children, key=lambda node: -node.score)
    assert likely[0].visits > likely[-1].visits > 0


def test_the_last_tokens_correct_the_table_up_to_the_cap(draft):
    made = draft([1, 2, 3, 1, 2, 3, 1, 2, 4], cap=1.0, recent=3)
    before = dict(made._scores((1, 2)))
    guess(made, 1, 2, 9)
    assert made._scores((1, 2)) == {**before, 9: pytest.approx(0.04)}
    for _ in range(60):
        guess(made, 1, 2, 9)
    assert made._scores((1, 2))[9] == 1.0
    made.start([])
    assert made._scores((1, 2))[9] == 1.0  # hot
    cold = draft([1, 2, 3], hot=False)
    guess(cold, 1, 2, 9)
    cold.start([])
    assert cold._scores((1, 2)) == {3: 1.0}


def test_no_more_nodes_than_asked_for_and_the_most_visited_first(draft):
    ids = np.random.default_rng(2).integers(0, 8, 2000)
    full, small = guess(draft(ids), 1, 2), guess(draft(ids, nodes=5), 1, 2)
    assert 24 < len(full) <= 65 and len(small) == 6 and full.tokens[:6] == small.tokens


def test_without_search_it_is_a_chain_of_likeliest_followers(draft):
    made = draft([1, 2, 3, 1, 2, 3, 1, 2, 4, 5], iterations=0, nodes=4, step=0)
    assert guess(made, 1, 2).tokens == [2, 3, 1, 2, 3]


def test_ablations_point_where_the_paper_says(tmp_path):
    """What the text teaches helps on unlike text; a short search is worse; so is a table of noise."""
    model, prompts = setting(20)
    rows = [request(model, prompt, max_tokens=48) for prompt in prompts[8:]]
    list(run(plan(model), rows))
    ids = np.array([i for row in rows for i in row.ids])
    np.save(tmp_path / "same.npy", ids)
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).permutation(ids))
    same, noise = (f"aded:corpus={tmp_path / name}.npy" for name in ("same", "noise"))
    full = tokens_per_pass(model, same, prompts[:8])
    assert full > 1.2
    assert full > tokens_per_pass(model, f"{same},iterations=10", prompts[:8])
    assert full > tokens_per_pass(model, f"{same},step=0", prompts[:8])
    assert full > tokens_per_pass(model, noise, prompts[:8]) > tokens_per_pass(model, f"{noise},step=0", prompts[:8])
