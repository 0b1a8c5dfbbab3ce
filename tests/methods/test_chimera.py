"""Chimera: what a fit sees at once is what drafting sees level by level."""

import pytest
import torch

from lithe import registry
from lithe.decode.sprout import Sprout
from lithe.decode.trail import Trail
from lithe.model.cache import PlainCache
from lithe.ops.tree import Tree
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

TWO = (2,)
SPEC = "chimera:own=false,depth=3,roll=2,rate=0.01"
method = registry.find("chimera").module


def heads(**knobs):
    made = method.Heads(method.Knobs(own=False, **knobs), bigrams(*TWO)).double()
    for weight in made.parameters():
        if weight.requires_grad and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return made


@pytest.mark.parametrize("context", [True, False])
def test_stand_ins_of_a_fit_are_those_of_drafting(context):
    """Step s at place t + s: states up to h_t, then s tokens drafted in a row, each on the stand-ins before it."""
    made, t = heads(context=context), 4
    dice = torch.Generator().manual_seed(0)
    ids, states = torch.randint(32, (12,), generator=dice), torch.randn(1, 12, 32, generator=dice, dtype=torch.float64)
    trail, tree = Trail(made.body), Tree.chain(int(ids[t + 1]), ids[t + 2 : t + 4].tolist())
    trail.sync([object()])
    if context:
        trail.advance([states[0, : t + 1]])

    def enter(places):
        return torch.stack([made.encode(ids[t - 1 + node : t + 2 + node], states) for _, node in places])

    sprout = Sprout(trail, [tree], enter, back=True)
    for node, stand_in_BTC in enumerate(made.roll(states, ids[None], 3)):
        assert torch.allclose(sprout([(0, node)])[0], stand_in_BTC[0, t]), node  # its row t is of place t + s


def test_a_guess_reads_the_last_verified_state_and_three_tokens():
    made, ids_BT = heads(), torch.arange(12)[None]
    states = torch.randn(1, 12, 32, dtype=torch.float64)

    def logits(ids_BT, states, level=2, row=5):
        guess, targets = list(made.guesses({"ids_BT": ids_BT, "tap:final": states}))[level - 1]
        assert targets[0].tolist() == ids_BT[0, 1 + level :].tolist() and guess.shape[:2] == targets.shape
        return guess[0, row]

    before = logits(ids_BT, states)
    for place in range(12):  # level 2 from h_5: x_6 is the root, x_7 the token drafted, and g reaches two tokens back
        other, moved = ids_BT.clone(), states.clone()
        other[0, place] = 31
        moved[0, place] += 1
        assert (not torch.allclose(logits(other, states), before)) == (place in (4, 5, 6, 7)), place
        assert (not torch.allclose(logits(ids_BT, moved), before)) == (place <= 5), place


def test_it_learns_what_follows_a_drafted_token():
    """Whatever the depth; without the tokens drafted it cannot."""
    folder, rates = fitted(SPEC, *TWO)
    assert min(sum(row[:2]) for row in rates[:2]) > 0.9
    made = drafting(f"chimera:heads={folder},nodes=8", *TWO)
    assert (whole := tokens_per_pass(made)) > 2.2
    embed = made.draft.net.ends.embed
    made.draft.net.ends.embed = lambda ids, like: embed((ids + 1) % 32, like)
    assert tokens_per_pass(made) < whole - 0.5


def test_its_context_is_the_targets_states_of_all_that_was_verified():
    made = drafting(f"chimera:heads={fitted(SPEC, *TWO)[0]},nodes=6", *TWO)
    tokens_per_pass(made)
    trail, net = made.draft.follower.trail, made.draft.net
    for lane, sequence in enumerate(trail.held):
        known = trail.lengths[lane]
        states_BTC = bigrams(*TWO)(torch.tensor([sequence.ids[:known]]), taps=("final",)).taps["final"]
        net.body(embeds=states_BTC, cache=(cache := PlainCache.like(net.body)))
        assert known > 20 and torch.allclose(cache.k[0][0, :, :known], trail.cache.k[0][lane, :, :known])
