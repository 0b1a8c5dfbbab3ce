"""k-SEQ: what it keeps, how near it comes to the best rule, what breaks it; and tries of independent draws."""

from functools import partial
from itertools import product
from math import e

import pytest
import torch

from lithe.contracts.accept import EXACT, everywhere, law_error, pair, propose, random_pair, worst
from lithe.contracts.branches import outcomes
from lithe.contracts.tree import grown
from lithe.decode.grow import independent
from lithe.ops import accept

CLEAR = 0.1  # what a planted bug is off by, at least
PAIRS = [*map(random_pair, range(20))]


def walker(rule):
    return lambda tree, scores_NV, dice: accept.walk(tree, scores_NV, rule, dice)


KSEQ, IID = walker(accept.k_seq), walker(accept.with_replacement)


def kept(rule, p_V, q_V, k):
    """The chance that one of k independent draws is followed."""

    def once(dice):
        return rule(p_V, [dice.draw(q_V) for _ in range(k)], q_V, dice)[0] is not None

    return outcomes(once).get(True, 0.0)


def optimum(p_V, q_V, k):
    """What no exact rule can exceed: a flow's narrowest cut, over sets of tokens, p(set) + 1 - q(set)^k."""
    masks = torch.tensor(list(product((0.0, 1.0), repeat=len(p_V))), dtype=torch.float64)
    return float((masks @ p_V + 1 - (masks @ q_V) ** k).min())


@pytest.mark.parametrize("swap", [
    {"residual": lambda p_V, given_V: p_V},
    {"spread": lambda p_V, q_V, k: 1.0},
    {"success": lambda beta, k: beta},
], ids=["rejected: drawn from p", "rho left at one", "what one trial gave taken for what k gave"])  # fmt: skip
def test_a_planted_bug_is_caught(swap, monkeypatch):
    for name, wrong in swap.items():
        monkeypatch.setattr(accept, name, wrong)
    assert worst(KSEQ, partial(propose, "iid"), widths=(2,), seeds=range(6), branches=1)[0] > CLEAR


def test_the_residual_of_plain_speculation_bends_the_law(monkeypatch):
    """(p - q)+ in place of what the k trials left: faint on average, clear at its worst."""
    wrong = lambda p_V, shared_V, right=accept.residual: right(p_V, CURRENT[-1])
    monkeypatch.setattr(accept, "residual", wrong)
    errors = []
    for p_V, q_V in PAIRS:
        CURRENT.append(accept.drafted(p_V, q_V))
        errors.append(law_error(KSEQ, everywhere(p_V), everywhere(q_V), partial(propose, "iid", width=2, depth=1), 1))
    assert max(errors) > CLEAR > sum(errors) / len(errors)


CURRENT: list = []


def test_it_is_kept_as_often_as_its_formula_says_and_nearly_as_often_as_any_rule_could_be():
    shares = []
    for p_V, q_V in PAIRS:
        rho = accept.spread(p_V, q_V, 2)
        beta = torch.minimum(q_V, p_V / rho).sum().item()
        found, best = kept(accept.k_seq, p_V, q_V, 2), optimum(p_V, q_V, 2)
        assert found == pytest.approx(1 - (1 - beta) ** 2, abs=1e-12) and 1 <= rho <= 2
        assert (1 - 1 / e) * best - 1e-12 <= found <= best + 1e-12
        assert kept(accept.with_replacement, p_V, q_V, 2) <= best + 1e-12
        shares += [found / best] if best > 0 else []
    assert sum(shares) / len(shares) > 0.9


def test_one_draft_is_plain_speculation_and_its_known_weakness_stands():
    p_V, q_V = pair((0.1, 0.2, 0.7), (0.5, 0.3, 0.2))
    assert accept.spread(p_V, q_V, 1) == 1.0
    assert kept(accept.k_seq, p_V, q_V, 1) == pytest.approx(torch.minimum(p_V, q_V).sum().item(), abs=1e-12)
    assert kept(accept.k_seq, *pair((1, 0), (0.5, 0.5)), 2) == pytest.approx(0.75)  # where distinct drafts never fail


class Chains:
    """A policy of independent draws."""

    def __init__(self, *branches):
        self.branches = branches

    def grow(self, tree, chance, *, depth, greedy):
        return independent(tree, chance, self.branches[:depth])


@pytest.mark.parametrize("walk", [KSEQ, IID], ids=["k-SEQ", "in turn"])
@pytest.mark.parametrize("branches", [(2, 1), (2, 2), (3, 1)])
def test_merged_chains_keep_the_law(walk, branches):
    """A token drawn twice is one node, tested twice, with the continuations of both."""
    for p_V, q_V in (pair((0.7, 0.3), (0.4, 0.6)), *([pair((0, 0.6, 0.4), (0.65, 0.35, 0))] if branches == (2, 1) else [])):
        assert law_error(walk, everywhere(p_V), everywhere(q_V), partial(grown, Chains(*branches), "iid", depth=2), 2) < EXACT


def short(draft, dice, *, nodes, careless=False):
    """Merged draws cut to a number of nodes; carelessly, a repeated draw stays because it takes no place."""
    tree = grown(Chains(3, 1), "iid", draft, dice, depth=2)
    cut = tree.cut(depth=9, nodes=nodes)
    if careless:
        cut.draws = {0: [child for child in tree.draws[0] if child < len(cut)]}
    return cut


def test_a_tree_of_merged_draws_is_cut_by_places_not_by_what_was_drawn():
    p_V, q_V = pair((0, 0.6, 0.4), (0.65, 0.35, 0))
    errors = {(nodes, careless): law_error(IID, everywhere(p_V), everywhere(q_V),
                                           partial(short, nodes=nodes, careless=careless), 2)
              for nodes in (2, 3, 4) for careless in (False, True)}
    assert max(errors[nodes, False] for nodes in (2, 3, 4)) < EXACT
    assert max(errors[nodes, True] for nodes in (2, 3)) > 0.05
