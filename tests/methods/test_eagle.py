"""EAGLE: states carried on, true ones in the place of guessed ones, trees that go where it looks likely."""

import torch

from lithe import registry
from lithe.decode.loop import run
from lithe.model.cache import PlainCache
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

TWO, MIXED = (2,), (1, 6)  # MIXED: half of the tokens have one follower, half have six
SPEC = "eagle:rate=0.03,noise=0"
method = registry.find("eagle").module


def test_a_row_joins_a_state_with_the_next_token_and_foretells_the_one_after():
    made = method.Heads(method.Knobs(), bigrams(*TWO))
    ids_BT, seen = torch.arange(10)[None], []
    made.rows = lambda states, ids: seen.append((states[0, :, 0].tolist(), ids[0].tolist())) or torch.zeros(*ids.shape, 32)
    states = torch.arange(10.0)[None, :, None].expand(1, 10, 32)
    targets = [ids[0].tolist() for _, ids in made.guesses({"ids_BT": ids_BT, "tap:final": states})]
    assert seen[0] == (list(map(float, range(9))), list(range(1, 10)))
    assert targets[0] == list(range(2, 10)) and targets[1] == list(range(3, 10))
    assert seen[1][1] == list(range(2, 10))  # one place on: the row at t reads the guess of f_t


def test_it_learns_to_carry_the_state_on():
    """Whatever the depth, the two followers are guessed; without the next token's embedding they cannot be."""
    folder, rates = fitted(SPEC, *TWO)
    assert min(sum(row[:2]) for row in rates[:3]) > 0.9
    made = drafting(f"eagle:heads={folder},nodes=14,depth=3", *TWO)
    assert (whole := tokens_per_pass(made)) > 3.2
    with torch.no_grad():
        made.draft.net.join.linear.weight[:, 32:] = 0
    assert tokens_per_pass(made) < whole - 1


def test_true_states_take_the_place_of_guessed_ones():
    """After any number of rounds its cache is that of a pass over the target's true states."""
    made = drafting(f"eagle:heads={fitted(SPEC, *TWO)[0]},nodes=6", *TWO)
    tokens_per_pass(made)
    trail, net = made.draft.follower.trail, made.draft.net
    for lane, sequence in enumerate(trail.held):
        known = trail.lengths[lane]
        ids_BT = torch.tensor([sequence.ids[: known + 1]])
        states_BTC = bigrams(*TWO)(ids_BT[:, :-1], taps=("final",)).taps["final"]
        net.body(embeds=net.rows(states_BTC, ids_BT[:, 1:]), cache=(cache := PlainCache.like(net.body)))
        assert known > 20 and torch.allclose(cache.k[0][0, :, :known], trail.cache.k[0][lane, :, :known])


def test_a_tree_made_level_by_level_is_what_one_pass_over_it_gives():
    made = drafting("eagle:heads=fresh,nodes=12,depth=3", *TWO)
    draft, f_BC = made.draft, torch.randn(1, 32, dtype=torch.float64)
    draft.follower.trail.sync([object()])
    tree = Tree([0, 3, 4, 5, 6, 7], [-1, 0, 0, 1, 1, 2])
    sprout = draft._sprout([tree], f_BC)
    for level in ([1, 2], [3, 4, 5]):
        sprout([(0, node) for node in level])
    rows = torch.stack([sprout.rows[0, node] for node in range(1, 6)])
    whole_BTC = draft.follower.trail.look([rows], [[-1, -1, 0, 0, 1]])
    assert all(torch.allclose(whole_BTC[0, node - 1], sprout.said[0, node]) for node in range(1, 6))


def test_a_dynamic_tree_goes_where_it_looks_likely():
    """EAGLE-2 against EAGLE-1: the same weights, the same number of nodes."""
    folder, _ = fitted(SPEC, *MIXED, steps=150)
    fixed, dynamic = (tokens_per_pass(drafting(f"eagle:heads={folder},nodes=6,tree={tree}", *MIXED))
                      for tree in ("fixed", "dynamic"))
    assert dynamic > fixed + 0.1
    made = drafting(f"eagle:heads={folder},nodes=6,tree=dynamic", *MIXED)
    assert max(step.nodes for step in run(made, [Sequence([1, 2], limit=20, context=96)])) == 7
