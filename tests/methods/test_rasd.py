"""RASD: two sources in one tree; what each adds, what pruning keeps out, and that either may be missing."""

import pytest
import torch

import lithe
from lithe import registry
from lithe.contracts.small import small_folder, small_model
from tests.methods.measure import measure, sequence, setting

MODULE = registry.find("rasd").module
Guess = MODULE.Guess


def draft(**knobs):
    return MODULE.Method(MODULE.Knobs(model=str(small_folder(32, 64, 7, 3.0)), **knobs), small_model())


def law(**chances):
    law_V = torch.full((32,), 1e-4, dtype=torch.float64)
    for token, chance in chances.items():
        law_V[int(token[1:])] = chance
    return law_V


def test_a_beginning_that_both_have_stands_once():
    guess = Guess(scores={(5,): 0.6, (5, 6): 0.3}, sources={(5,): "model", (5, 6): "model"},
                  laws={(): law(t5=0.6, t9=0.2), (5,): law(t6=0.5, t7=0.4)})
    d = draft()
    d._look_up(guess, {(5, 7, 8, 9): 1})
    tree = d._tree(sequence(1, 2), guess)
    paths = {tuple(tree.tokens[i] for i in tree.path(node)): tree.sources[node] for node in range(1, len(tree))}
    assert paths == {(5,): "model+lookup", (5, 6): "model", (5, 7): "lookup", (5, 7, 8): "lookup", (5, 7, 8, 9): "lookup"}
    assert guess.scores[5, 7, 8, 9] == pytest.approx(0.24)  # the draft's law as far as it is known, then all occurrences


def test_what_the_draft_holds_unlikely_is_kept_out():
    laws = {(): law(t5=0.6, t6=0.2, t9=0.1)}
    paths = {(5, 1): 1, (9, 1): 1}
    kept = {}
    for top in (2, 3, 0):
        guess = Guess(laws=dict(laws))
        draft(top=top)._look_up(guess, paths)
        kept[top] = set(guess.scores)
    assert kept[2] == {(5,), (5, 1)} and kept[3] == kept[0] == {(5,), (5, 1), (9,), (9, 1)}


def test_below_the_models_tree_occurrences_count():
    guess = Guess(laws={(): law(t5=0.8)})
    draft()._look_up(guess, {(5, 1): 3, (5, 2): 1})
    assert guess.scores[5, 1] == pytest.approx(0.6) and guess.scores[5, 2] == pytest.approx(0.2)


def test_without_lookups_it_is_the_models_tree_and_without_the_model_the_lookups():
    text = [3, 4, 5, 3, 4]
    alone, both, lookups = draft(ngram=0, nodes=99), draft(nodes=99, top=0), draft(levels=0, nodes=99)
    trees = [d.propose([sequence(*text)], [20])[0] for d in (alone, both, lookups)]
    paths = [{tuple(tree.tokens[i] for i in tree.path(node)) for node in range(1, len(tree))} for tree in trees]
    assert set(trees[0].sources.values()) == {"model"} and len(trees[0]) == 1 + 4 + 3 * 16
    assert paths[2] == {(5,), (5, 3), (5, 3, 4)} and paths[0] < paths[1]


def test_the_models_tree_is_its_likeliest_paths():
    d = draft(levels=2, width=3, ngram=0, nodes=99)
    (tree,) = d.propose([sequence(1, 2, 3)], [20])
    model = d.second.model
    with torch.inference_mode():
        first = torch.softmax(model(torch.tensor([[1, 2, 3]]), logits="all").logits[0, -1].double(), -1)
    top = first.topk(3).indices.tolist()
    assert [tree.tokens[node] for node in range(1, len(tree)) if tree.parents[node] == 0] == top


def test_a_budget_keeps_the_best_and_their_parents():
    (small,), (full,) = (draft(nodes=n).propose([sequence(3, 4, 5, 3, 4)], [20]) for n in (5, 99))
    assert len(small) == 6 and small.tokens == full.tokens[:6] and all(p < i for i, p in enumerate(small.parents))


def test_together_they_give_more_than_either():
    target, prompts = lithe.load("zoo:tiny"), setting(4)[1]
    spec = "rasd:nodes=12,width=3"
    both, model = measure(target, f"{spec},levels=2", prompts, 24), measure(target, f"{spec},levels=2,ngram=0", prompts, 24)
    lookups = measure(target, f"{spec},levels=0", prompts, 24)
    assert both[0] > max(model[0], lookups[0])
    assert any("lookup" in source for source in both[1])
