"""Acceptance rules: nine ways to bend the law are planted and caught, and the functions keep their word.

Axes: V vocabulary.
"""

from functools import partial

import pytest
import torch

from lithe.contracts.accept import EXACT, law_error, propose, siblings, worst
from lithe.contracts.branches import outcomes
from lithe.ops import accept
from lithe.ops.accept import Dice
from lithe.ops.tree import Tree, Walk

CLEAR = 0.1  # every planted bug bends the law by more than this, every right twin by less than EXACT


def tensor(*p):
    return torch.tensor(p, dtype=torch.float64)


def walker(rule):
    return lambda tree, scores_NV, dice: accept.walk(tree, scores_NV, rule, dice)


CHAIN, IID, WOR, FOLLOW = map(walker, (accept.rejection, accept.with_replacement, accept.without_replacement, accept.follow))


def hooked(kind, change):
    """A draft whose drawn siblings are changed, knowing their law, before the walk."""
    return partial(propose, kind, children=lambda q_V, width, dice: change(list(siblings(kind, q_V, width, dice)), q_V))


# ---- nine bugs. Each: (walk, draft), what it does wrong, and where there is one the right twin that differs by little


def discard(tokens, q_V):
    """1. A chain that throws an unlikely token away, rather than keeping it and stopping."""
    return [token for token in tokens if q_V[token] >= 0.4]


def keep_and_stop(draft, dice, width, depth):
    """Its right twin: whether the next token is drawn may depend on this one, whether this one is kept may not."""
    tree = Tree.root(0, "chain")
    node, text = 0, ()
    for _ in range(depth):
        tree.laws[node] = q_V = draft(text)
        token = dice.draw(q_V)
        node, text = tree.add(token, node), (*text, token)
        if q_V[token] < 0.4:
            break
    return tree


def likeliest_first(tokens, q_V):
    """2. Siblings put in the order of their probability after they were drawn."""
    return sorted(tokens, key=lambda token: -q_V[token])


def rerank(draft, dice, width, depth):
    """3. The likeliest half of a drawn tree, as EAGLE-2 prunes; right only for trees that are walked as chosen ones."""
    tree = propose("wor", draft, dice, width, depth)
    chance = [1.0]
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        chance.append(chance[parent] * tree.laws[parent][tree.tokens[node]].item())
    kept = sorted(sorted(range(len(tree)), key=lambda node: (-chance[node], node))[: 1 + len(tree) // 2])
    return Tree([tree.tokens[i] for i in kept], [kept.index(tree.parents[i]) if i else -1 for i in kept], tree.kind,
                {kept.index(i): law for i, law in tree.laws.items() if i in kept})


def top_list(q_V, width, dice):
    """4. The draft's likeliest tokens, given out as drawn without replacement."""
    return q_V.topk(min(width, int((q_V > 0).sum()))).indices.tolist()


def redrawn(q_V, width, dice):
    """5. A token drawn from a newer law, while the old one is still on record: same support, other probabilities."""
    support = q_V.nonzero().flatten()
    new_V = torch.zeros_like(q_V).index_copy_(0, support, q_V[support].roll(1))
    return [dice.draw(new_V)]


def last_from(change):
    """8. The token after a draft accepted whole comes from `change(p, q)`, q being the law of the last token accepted."""

    def walk(tree, scores_NV, dice):
        last = []

        def rule(p_V, tokens, q_V, dice):
            if tokens:
                last[:] = [accept.drafted(p_V, q_V)]
                return accept.rejection(p_V, tokens, q_V, dice)
            return None, dice.draw(change(p_V, *last))

        return accept.walk(tree, scores_NV, rule, dice)

    return walk


def once(tokens, q_V):
    """9. Independent siblings with repetitions struck out."""
    return list(dict.fromkeys(tokens))


def unnormalised(p_V, q_V):
    left_V = (p_V - q_V).clamp(min=0)
    return left_V if left_V.sum() > 0 else p_V


def zeroed(q_V, token):
    return q_V.index_fill(0, torch.tensor(token), 0)


BUGS = {
    "1 unlikely token discarded": (CHAIN, hooked("chain", discard), {}),
    "2 siblings sorted after drawing": (WOR, hooked("wor", likeliest_first), {}),
    "3 drawn tree reranked and pruned": (WOR, rerank, {}),
    "4 top-k list walked as drawn": (WOR, partial(propose, "wor", children=top_list), {}),
    "5 old law kept after redrawing": (CHAIN, partial(propose, "chain", children=redrawn), {}),
    "6 urn not normalised": (WOR, partial(propose, "wor"), {"without": zeroed}),
    "7a rejected: drawn from p": (CHAIN, partial(propose, "chain"), {"residual": lambda p_V, q_V: p_V}),
    "7b residual not normalised": (WOR, partial(propose, "wor"), {"residual": unnormalised}),
    "8a last token drawn from q": (last_from(lambda p_V, q_V: q_V), partial(propose, "chain"), {}),
    "8b last token drawn from the residual": (last_from(accept.residual), partial(propose, "chain"), {}),
    "9 repeated siblings struck out": (IID, hooked("iid", once), {}),
    "distinct siblings walked as independent": (IID, partial(propose, "wor"), {}),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug, monkeypatch):
    walk, grow, swaps = BUGS[bug]
    for name, wrong in swaps.items():
        monkeypatch.setattr(accept, name, wrong)
    error, _ = worst(walk, grow, seeds=range(6))
    assert error > CLEAR


@pytest.mark.parametrize(("walk", "grow"), [
    pytest.param(CHAIN, keep_and_stop, id="1 unlikely token kept, then stop"),
    pytest.param(FOLLOW, hooked("wor", likeliest_first), id="2 sorted, walked as chosen"),
    pytest.param(FOLLOW, rerank, id="3 reranked and pruned, walked as chosen"),
    pytest.param(FOLLOW, partial(propose, "det"), id="4 top-k list, walked as chosen"),
    pytest.param(FOLLOW, hooked("iid", once), id="9 repeated siblings struck out, walked as chosen"),
])  # fmt: skip
def test_right_twin_is_exact(walk, grow):
    assert worst(walk, grow, seeds=range(6))[0] < EXACT


@pytest.mark.parametrize(("walk", "kind"), [(CHAIN, "chain"), (IID, "iid"), (WOR, "wor")], ids=["chain", "iid", "wor"])
def test_rules_are_exact_on_deeper_trees_and_more_laws(walk, kind):
    """Three tokens of vocabulary 3, two siblings, two steps: up to 729 trees a pair of laws."""
    widths = (1,) if kind == "chain" else (2,)
    assert worst(walk, partial(propose, kind), widths=widths, seeds=range(100, 103), branches=729)[0] < EXACT


def test_an_urn_not_normalised_misses_by_what_the_specification_says(monkeypatch):
    """p = (0, .2, .4, .4), q = (.7, .1, .1, .1): Monte Carlo over a whole engine does not see it."""
    monkeypatch.setattr(accept, "without", zeroed)
    target, draft = (lambda text: tensor(0, 0.2, 0.4, 0.4)), (lambda text: tensor(0.7, 0.1, 0.1, 0.1))
    errors = [law_error(WOR, target, draft, partial(propose, "wor", width=width, depth=1), 1) for width in (1, 2, 3)]
    assert errors[0] < EXACT and max(errors) == pytest.approx(0.13, abs=0.005)


# ---- how often a draft is kept


def kept(rule, p_V, kind, q_V, width=1):
    """The chance that a child is followed."""
    decided = outcomes(lambda dice: rule(p_V, list(siblings(kind, q_V, width, dice)), q_V, dice)[0] is not None)
    return decided.get(True, 0.0)


def test_a_chain_is_kept_as_often_as_the_laws_overlap():
    p_V, q_V = tensor(0.1, 0.2, 0.7), tensor(0.5, 0.3, 0.2)
    for rule in (accept.rejection, accept.with_replacement, accept.without_replacement):
        assert kept(rule, p_V, "chain", q_V) == pytest.approx(torch.minimum(p_V, q_V).sum().item(), abs=1e-12)
    assert kept(accept.rejection, p_V, "chain", p_V) == pytest.approx(1, abs=1e-12)


def test_distinct_siblings_that_cover_the_vocabulary_are_never_all_rejected():
    assert kept(accept.without_replacement, tensor(0.05, 0.15, 0.8), "wor", tensor(0.6, 0.3, 0.1), 3) == pytest.approx(1)
    # Where the target is sure and the draft is not, independent siblings repeat themselves.
    assert kept(accept.without_replacement, tensor(1, 0), "wor", tensor(0.5, 0.5), 2) == pytest.approx(1)
    assert kept(accept.with_replacement, tensor(1, 0), "iid", tensor(0.5, 0.5), 2) == pytest.approx(0.75)


# ---- what the functions refuse, and edges


@pytest.mark.parametrize(("rule", "tokens", "q_V", "says"), [
    (accept.rejection, [0, 1], tensor(0.5, 0.5, 0), "one child"),
    (accept.rejection, [0], None, "without a law"),
    (accept.rejection, [2], tensor(0.5, 0.5, 0), "no chance"),
    (accept.without_replacement, [0, 0], tensor(0.9, 0.1, 0), "no chance"),
    (accept.rejection, [0], tensor(2, 3, 1), "sums to 6"),
    (accept.rejection, [0], tensor(0.5, float("nan"), 0.5), "sums to nan"),
    (accept.rejection, [0], tensor(0.25, 0.25, 0.25, 0.25), "cut it"),
])  # fmt: skip
def test_a_draft_that_belies_its_law_is_refused(rule, tokens, q_V, says):
    p_V = tensor(0, 0, 1)
    with pytest.raises(ValueError, match=says):
        outcomes(lambda dice: rule(p_V, tokens, q_V, dice))


def test_scores_that_leave_no_token_are_refused_where_they_are_visited():
    scores_NV = torch.tensor([[1.0, 0.0], [float("-inf")] * 2])
    for walk in (accept.greedy, partial(accept.walk, rule=accept.follow, dice=Dice(torch.Generator()))):
        assert walk(Tree.chain(0, [1]), torch.tensor([[1.0, float("-inf")], [float("-inf")] * 2])) == Walk((), 0)
        with pytest.raises(ValueError, match="no token to choose"):
            walk(Tree.root(0), scores_NV[1:])
        with pytest.raises(ValueError, match="not numbers"):
            walk(Tree.root(0), scores_NV * float("nan"))


def test_a_draft_law_may_be_short_and_of_another_dtype():
    q_V = accept.drafted(tensor(0.1, 0.2, 0.3, 0.4), torch.tensor([0.1, 0.2, 0.7]))
    assert q_V.dtype == torch.float64 and q_V[3] == 0 and q_V.sum() == pytest.approx(1, abs=1e-15)


def test_greedy_takes_the_lowest_of_equals_and_its_first_child():
    scores_NV = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 3.0]])
    tree = Tree([0, 2, 1, 1], [-1, 0, 0, 0])
    assert accept.greedy(tree, scores_NV) == Walk((2,), 2)


class Fixed(Dice):
    """Dice that show a given number."""

    def __init__(self, number):
        self.number = number

    def uniform(self):
        return self.number


def test_dice_invert_the_cumulated_law():
    p_V = tensor(0, 0.25, 0, 0.5, 0.25, 0)
    shown = {number: Fixed(number).draw(p_V) for number in (0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53)}
    assert list(shown.values()) == [1, 1, 3, 3, 4, 4]
    # 0.1 added ten times is less than one, and the last product rounds up to the whole.
    tenths_V = tensor(*[0.1] * 10, 0)
    assert Fixed(1 - 2**-53).draw(tenths_V) == 9
    assert Fixed(0.3).toss(0.31) and not Fixed(0.3).toss(0.3) and Fixed(1 - 2**-53).toss(1.0) and not Fixed(0.0).toss(0.0)


def test_dice_have_the_law_and_repeat_with_their_seed():
    p_V = torch.tensor([0.1, 0.0, 0.6, 0.3])
    draws = [[Dice(dice).draw(p_V) for _ in range(4000)] for dice in (torch.Generator().manual_seed(3) for _ in range(2))]
    assert draws[0] == draws[1]
    counts = torch.tensor(draws[0]).bincount(minlength=4)
    wanted = p_V * 4000
    assert counts[1] == 0
    assert ((counts - wanted) ** 2 / wanted.clamp(min=1e-9)).sum() < 21  # 2 degrees of freedom: a chance of 3 in 100 000


def test_outcomes_weigh_every_branch():
    found = outcomes(lambda dice: (dice.toss(0.25), dice.draw(tensor(0.5, 0, 0.5))))
    assert found == {(False, 0): 0.375, (False, 2): 0.375, (True, 0): 0.125, (True, 2): 0.125}
    assert outcomes(lambda dice: dice.toss(3.0)) == {True: 1.0}
