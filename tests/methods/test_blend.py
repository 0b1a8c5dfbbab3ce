"""Blending: trees are merged without loss, chances are learnt from the text, and rows are spent as they pay."""

import pytest

from lithe import registry
from lithe.contracts import draft as contract
from lithe.contracts.small import small_folder, small_model
from lithe.decode.plan import plan
from lithe.errors import UsageError
from lithe.ops.tree import Tree
from tests.methods.measure import made, seen, sequence, setting, tokens_per_pass


class Says:
    """A source that always proposes the same paths."""

    def __init__(self, *paths):
        self.paths = paths

    def propose(self, sequences, room):
        return [Tree.trie(s.ids[-1], self.paths).cut(depth=most, nodes=99) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        pass


def blend(sources, **knobs):
    draft = made("blend", **knobs)
    draft.take([type(draft.sources[0])(name, source) for name, source in sources.items()])
    return draft


def paths(tree):
    return {tuple(tree.tokens[n] for n in tree.path(node)) for node in range(1, len(tree))}


def test_trees_are_merged_and_every_node_says_who_proposed_it():
    draft = blend({"a": Says([1, 2], [3]), "b": Says([1, 4], [3])}, row=1e-6)
    tree = draft.propose([sequence(0)], [9])[0]
    assert paths(tree) == {(1,), (1, 2), (1, 4), (3,)}
    who = {tree.tokens[node]: tree.sources[node] for node in range(1, len(tree))}
    assert who == {1: "a+b", 3: "a+b", 2: "a", 4: "b"}
    assert paths(draft.propose([sequence(0)], [1])[0]) == {(1,), (3,)}  # never deeper than there is room


def test_a_source_that_is_right_is_trusted_and_one_that_is_wrong_is_left_out():
    draft, s = blend({"right": Says([5, 6]), "wrong": Says([7, 8])}, row=0.3), sequence(0)
    for _ in range(12):
        s.ids[-1] = 0
        tree = draft.propose([s], [9])[0]
        root_children = [tree.tokens[node] for node in tree.children(0)]
        path = [n for n in range(1, len(tree)) if tree.tokens[n] in (5, 6)]
        seen(draft, s, tree, lambda token, i: {0: 5, 5: 6}.get(token, 9), path)
    assert root_children == [5] and paths(tree) == {(5,), (5, 6)}
    frozen = blend({"right": Says([5, 6]), "wrong": Says([7, 8])}, row=0.3, learn=False)
    assert (7,) in paths(frozen.propose([sequence(0)], [9])[0]) or (5,) not in paths(frozen.propose([sequence(0)], [9])[0])


def test_what_was_not_verified_teaches_too():
    """So dear a row that nothing is drafted: the text still tells who was right, and then the right one is drafted."""
    draft, s = blend({"right": Says([5])}, row=0.8), sequence(0)
    assert len(draft.propose([s], [9])[0]) == 1
    for _ in range(20):
        s.ids[-1] = 0
        tree = draft.propose([s], [9])[0]
        seen(draft, s, tree, lambda token, i: 5 if token == 0 else 9, range(1, len(tree)))
    assert paths(tree) == {(5,)}


def test_dearer_rows_are_spent_more_sparingly():
    model, prompts = setting(3)
    rates = [tokens_per_pass(model, f"blend:row={row}", prompts) for row in (0.01, 2.0)]
    assert rates[0] > rates[1] == 1.0  # two passes for each row can never pay


def test_blending_beats_each_of_its_sources_at_as_many_rows():
    model, prompts = setting(6)
    both = tokens_per_pass(model, "blend:drafts=suffix+token_recycling,row=0.02,nodes=16", prompts)
    assert both > max(tokens_per_pass(model, f"{name}:nodes=16", prompts) for name in ("suffix", "token_recycling"))


def test_sources_take_knobs_and_what_cannot_be_blended_is_refused():
    draft = plan(small_model(), draft="blend:drafts=suffix(nodes=5;depth=9)+token_recycling").draft
    assert [source.draft.knobs.nodes for source in draft.sources] == [5, 24] and draft.sources[0].draft.knobs.depth == 9
    for text, why in (("lookahead", "cannot be blended"), ("easyspec", "cannot be blended"), ("blend", "cannot be blended"),
                      ("suffix+nosuch", "no method 'nosuch'"), ("suffix(nosuch=1)", "no knob 'nosuch'")):
        with pytest.raises(UsageError, match=why):
            plan(small_model(), draft=f"blend:drafts={text}")


@pytest.mark.parametrize("promise", ["same_tokens", "same_law"])
def test_a_model_among_the_sources_keeps_the_promises_drawing_nothing(promise, monkeypatch):
    small = lambda vocab: small_folder(vocab, 64 if vocab > 5 else 16, 7, 3.0 if vocab > 5 else 1.0)
    monkeypatch.setattr(contract, "suited", lambda entry, target: (
        f"blend:drafts=suffix+draft_model(model={small(target.config.vocab)};tokens=3),row=0.001"))
    getattr(contract, f"check_{promise}")(registry.find("blend"))


def test_a_model_among_the_sources_guesses_where_nothing_repeats():
    model, prompts = setting(6)
    with_twin = tokens_per_pass(model, "blend:drafts=suffix+draft_model(model=self;tokens=3),row=0.001", prompts)
    assert with_twin > tokens_per_pass(model, "blend:drafts=suffix,row=0.001", prompts) + 0.5
