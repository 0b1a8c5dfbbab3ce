"""REST: the longest match, counted continuations, and a shuffled corpus as the control."""

import json

import numpy as np
import pytest

from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UsageError
from tests.methods.measure import made, sequence, setting, tokens_per_pass


@pytest.fixture
def draft(tmp_path):
    def go(ids, **knobs):
        np.save(tmp_path / "ids.npy", np.array(ids))
        return made("rest", corpus=str(tmp_path / "ids.npy"), **knobs)

    return go


def guess(draft, *ids, most=99):
    (tree,) = draft.propose([sequence(*ids)], [most])
    return tree


def test_the_longest_ending_that_occurs_is_matched(draft):
    made = draft([1, 2, 3, 9, 9, 2, 3, 8, 8, 1, 2, 3, 7])
    longest = lambda ids, made=made: made.store.longest(ids, 2, 16)
    assert longest([5, 1, 2, 3])[1] == 3 and sorted(longest([5, 1, 2, 3])[0]) == [0, 9]
    assert longest([4, 2, 3])[1] == 2 and longest([4, 3]) is None and longest([3]) is None
    assert longest(list(range(30)), draft(list(range(30)) * 2))[1] == 16


def test_continuations_are_counted_in_a_trie(draft):
    made = draft([1, 2, 5, 6, 1, 2, 5, 7, 1, 2, 4, 4, 1, 2, 5, 6], tokens=2)
    tree = guess(made, 9, 1, 2)
    assert [(tree.tokens[i], tree.tokens[tree.parents[i]]) for i in range(1, len(tree))] == [
        (5, 2), (6, 5), (4, 2), (4, 4), (7, 5)]  # 3, 2, 1, 1, 1 times


def test_the_most_frequent_nodes_are_kept_with_their_parents(draft):
    dice = np.random.default_rng(0)
    made = draft(dice.integers(0, 4, 500), nodes=9)
    full, small = guess(draft(dice.integers(0, 4, 500), nodes=1000), 1, 2), guess(made, 1, 2)
    assert len(full) > 50 and len(small) == 10
    assert all(parent < node for node, parent in enumerate(small.parents))


def test_the_draft_ends_where_corpus_or_text_must(draft):
    made = draft([1, 2, 3, 4])
    assert guess(made, 1, 2).tokens == [2, 3, 4] and guess(made, 1, 2, most=1).tokens == [2, 3]
    assert guess(made, 3, 4).tokens == [4] and guess(made, 1, 2, most=0).tokens == [2]


def test_of_many_matches_some_are_counted(draft):
    assert guess(draft([1, 2, 3] * 100, matches=5, tokens=3), 1, 2).tokens == [2, 3, 1, 2]


def test_a_corpus_that_is_not_there_is_told():
    with pytest.raises(UsageError, match="there is no corpus"):
        made("rest", corpus="nowhere.txt")


def test_text_like_the_models_helps_and_shuffled_text_does_not(tmp_path):
    model, prompts = setting(80)
    rows = [request(model, prompt, max_tokens=64) for prompt in prompts[8:]]
    list(run(plan(model), rows))
    texts = [model.tokenizer.decode(row.ids) for row in rows]
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    ids = [i for text in texts for i in model.tokenizer.encode(text)]
    np.save(tmp_path / "shuffled.npy", np.random.default_rng(0).permutation(ids))
    helped = tokens_per_pass(model, f"rest:corpus={tmp_path / 'same.jsonl'}", prompts[:8])
    assert helped > 1.2
    assert tokens_per_pass(model, f"rest:corpus={tmp_path / 'shuffled.npy'}", prompts[:8]) < 1 + 0.5 * (helped - 1)
