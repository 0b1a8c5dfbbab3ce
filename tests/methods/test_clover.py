"""Clover: heads that share one attention over the token before theirs."""

import pytest
import torch

from lithe import registry
from lithe.decode.loop import run
from lithe.model.cache import PlainCache
from lithe.sampling.sequence import Sequence
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

TWO = (2,)
SPEC = "clover:depth=3,rate=0.03,feature=1"
method = registry.find("clover").module


def heads(**knobs):
    made = method.Heads(method.Knobs(**knobs), bigrams(*TWO))
    for weight in made.parameters():
        if weight.requires_grad and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)  # at the start the tokens between count for nothing
    return made


@pytest.mark.parametrize("regress", [True, False])
def test_head_i_reads_the_tokens_between_unless_it_does_not_regress(regress):
    ids_BT, i, row = torch.arange(12)[None], 2, 3
    made, states = heads(depth=3, regress=regress), torch.randn(1, 12, 32)

    def logits(ids_BT):
        guess, targets = list(made.guesses({"ids_BT": ids_BT, "tap:final": states}))[i - 1]
        assert targets[0].tolist() == ids_BT[0, 1 + i :].tolist() and guess.shape[:2] == targets.shape
        return guess[0, row]

    for place in range(12):
        other = ids_BT.clone()
        other[0, place] = 31
        changed = not torch.equal(logits(other), logits(ids_BT))
        assert changed == (regress and place in (row + 1, row + 2)), place  # x_{t+1} to x_{t+i}


def test_a_guess_is_held_against_the_state_and_law_of_the_row_before_the_token():
    ids_BT = torch.arange(12)[None]
    out = bigrams(*TWO)(ids_BT, taps=("final",), logits="all")
    batch = {"ids_BT": ids_BT, "tap:final": out.taps["final"].float(), "logits": out.logits.float()}
    made = heads(depth=2, law=0.0)
    made.foretold = lambda batch: [batch["tap:final"][:, i:-1] for i in (1, 2)]
    assert made.loss(batch)[0] == 0
    made.foretold = lambda batch: [batch["tap:final"][:, i - 1 : -2] for i in (1, 2)]
    assert made.loss(batch)[0] > 1


def test_it_beats_heads_that_do_not_know_the_tokens_between():
    """Equal training, equal nodes: against Medusa where it is there, and against itself without the regressive connection."""
    (ours, rates), (blind, other) = fitted(SPEC, *TWO), fitted(f"{SPEC},regress=false", *TWO)
    gaps = [sum(a[:2]) - sum(b[:2]) for a, b in zip(rates, other, strict=True)]
    assert min(sum(row[:2]) for row in rates) > 0.9 and gaps == sorted(gaps) and gaps[0] > 0.2
    ours, blind = (tokens_per_pass(drafting(f"clover:heads={folder},nodes=8", *TWO)) for folder in (ours, blind))
    assert ours > blind + 0.5
    if "medusa" in {e.name for e in registry.entries("decode", "draft")}:
        theirs, _ = fitted("medusa:depth=3,rate=0.02", *TWO)
        assert ours > tokens_per_pass(drafting(f"medusa:heads={theirs},nodes=8", *TWO)) + 0.5


def test_the_block_before_the_heads_is_in_step_with_what_was_committed():
    made = drafting(f"clover:heads={fitted(SPEC, *TWO)[0]},nodes=6", *TWO)
    tokens_per_pass(made)
    trail, net = made.draft.follower.trail, made.draft.net
    for lane, sequence in enumerate(trail.held):
        known = trail.lengths[lane]
        states_BTC = bigrams(*TWO)(torch.tensor([sequence.ids[:known]]), taps=("final",)).taps["final"]
        net.augment(embeds=states_BTC, cache=(cache := PlainCache.like(net.augment)))
        assert known > 20 and torch.allclose(cache.k[0][0, :, :known], trail.cache.k[0][lane, :, :known])


def test_the_tree_keeps_what_is_likely_enough_and_no_more():
    """Children that reach the wanted probability, none far behind the best; a level's best paths; so many nodes in all."""
    laws_NV = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
    made = drafting("clover:heads=fresh,width=3", *TWO).draft
    trees, scores = {0: method.Tree([9, 8, 7], [-1, 0, 0])}, {0: [0.0, -0.5, -1.0]}
    below, before = made._level(trees, scores, [(0, 1), (0, 2)], laws_NV)
    assert [(trees[0].tokens[node], trees[0].parents[node]) for _, node in below] == [(0, 2), (0, 1), (1, 1)]
    assert before == [1, 0, 0]  # 0.1 is less than a quarter of 0.5, and 0.97 is enough alone
    for nodes in (5, 99):
        steps = list(run(drafting(f"clover:heads=fresh,width=3,nodes={nodes}", *TWO), [Sequence([1, 2], limit=30, context=96)]))
        assert 2 < max(step.nodes for step in steps) <= 1 + min(nodes, 3 * 5)
