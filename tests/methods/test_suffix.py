"""Suffix decoding: laws from counts, drafts as long as their match allows, the better of two sources."""

from tests.methods.measure import made, sequence, setting, tokens_per_pass


def guess(draft, *ids, most=99):
    (tree,) = draft.propose([sequence(*ids)], [most])
    return tree


def test_branches_come_in_the_order_of_their_counts():
    tree = guess(made("suffix", alpha=4), 1, 2, 3, 1, 2, 4, 1, 2, 3, 9, 1, 2)
    assert [tree.tokens[node] for node in tree.children(0)] == [3, 4]
    assert guess(made("suffix", alpha=4, tree=False), 1, 2, 3, 1, 2, 4, 1, 2, 3, 9, 1, 2).tokens[1] == 3


def test_no_more_tokens_than_the_match_and_alpha_allow():
    text = [*range(1, 20), 0, *range(5, 10)]  # five tokens match, ten follow
    for alpha, nodes in ((0.5, 2), (1.0, 5), (1.5, 7)):
        assert guess(made("suffix", alpha=alpha), *text).tokens == [9, *range(10, 10 + nodes)]
    assert len(guess(made("suffix", depth=3), *text)) == 1 + 3
    assert len(guess(made("suffix", offset=4), *text)) == 1 + 9
    assert len(guess(made("suffix", nodes=2), *text)) == 1 + 2
    assert len(guess(made("suffix"), *text, most=1)) == 1 + 1


def test_nothing_below_the_floor_is_drafted():
    text = [t for other in range(10, 14) for t in (1, 2, other)] + [1, 2]  # four followers, a quarter each
    assert len(guess(made("suffix", floor=0.25, alpha=9), *text)) > 1
    assert len(guess(made("suffix", floor=0.26, alpha=9), *text)) == 1


def test_finished_outputs_are_looked_up_apart_and_outlive_the_prompt():
    draft = made("suffix")
    draft.index.keep([5, 6, 7, 8, 9])
    draft.index.keep([10, 11])
    draft.start([])
    tree = guess(draft, 1, 5, 6, 7)
    assert tree.tokens == [7, 8, 9] and set(tree.sources.values()) == {"outputs"}  # nothing beyond an output's end
    assert guess(made("suffix", outputs=False), 1, 5, 6, 7).tokens == [7]


def test_the_better_source_wins():
    draft = made("suffix", alpha=2)
    draft.index.keep([5, 6, 20, 21, 22])
    assert guess(draft, 5, 6, 30, 4, 4, 5, 6).tokens[1] == 30  # both match two tokens and are sure: the text comes first
    assert guess(draft, 6, 30, 4, 4, 5, 6).tokens[1] == 20  # one token matches in the text, two in the outputs


def test_the_index_of_outputs_has_an_end():
    draft = made("suffix", limit=10)
    for _ in range(20):
        draft.index.keep(list(range(5)))
    assert draft.index.states < 2 * 10 + 2 * 6


def test_ablations_point_where_the_paper_says():
    """Both sources beat one; longer drafts for long matches beat a constant short one."""
    model, prompts = setting(10)
    full = tokens_per_pass(model, "suffix", prompts)
    assert full > 1.2
    assert full > tokens_per_pass(model, "suffix:outputs=false", prompts)
    assert full > tokens_per_pass(model, "suffix:alpha=0,offset=1", prompts)


def test_without_a_size_as_many_tokens_are_drafted_as_pay():
    """The same draft on a machine where rows are free, dear, and where the second is free."""
    draft = made("suffix", nodes=0)
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    sizes = []
    for costs in ([1.0] * 65, [1.0, *[9.0] * 64], [1.0, 1.0, *[9.0] * 63]):
        draft.priced(costs)
        sizes.append(len(draft.propose([sequence(*text)], [9])[0]) - 1)
    assert sizes == [4, 0, 1]
