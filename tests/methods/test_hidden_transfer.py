"""Hidden transfer: states of later places, made of one that is known, and the tree they fill."""

import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.sampling.sequence import Sequence
from tests.methods.bigrams import drafting, fitted, tokens_per_pass

ONE = (1,)  # one follower each: everything ahead is certain
SPEC = "hidden_transfer:rate=0.02"
method = registry.find("hidden_transfer").module


def test_it_learns_what_follows_and_the_chain_is_taken_whole():
    """Each matrix learns its own number of steps ahead; in another order they are worth nothing (the control)."""
    folder, rates = fitted(SPEC, *ONE)
    assert all(row[0] > 0.99 for row in rates)
    made = drafting(f"hidden_transfer:heads={folder},nodes=3", *ONE)
    assert tokens_per_pass(made, 0.0) > 3.5
    transfers = made.draft.net.transfers
    made.draft.net.transfers = torch.nn.ModuleList([*transfers[1:], transfers[0]])
    assert tokens_per_pass(made, 0.0) < 1.2


def test_matrices_begin_as_the_identity_and_join_where_they_are_told_to():
    model = small_model(layers=4)
    heads = method.Heads(method.Knobs(at=0.5), model)
    assert heads.enters == 2 and heads.signals == ("tap:1",)
    assert all(torch.equal(linear.weight, torch.eye(32)) for linear in heads.transfers)
    assert [method.Heads(method.Knobs(at=at), model).enters for at in (0.0, 0.8, 1.0)] == [0, 3, 3]


def test_what_it_says_in_a_run_is_what_it_said_in_its_lesson():
    """Logits of the ghosts behind the last token of a text, from the loop's pass and from the fit's."""
    model = small_model(layers=3)
    heads = method.Heads(method.Knobs(at=0.4), model).double().eval()
    for linear in heads.transfers:
        torch.nn.init.normal_(linear.weight, std=0.2)
    made = plan(model, draft="hidden_transfer:heads=fresh,at=0.4")
    made.draft.net, seen = heads, []
    observe = made.draft.observe
    made.draft.observe = lambda rounds: (seen.extend(rounds), observe(rounds))
    sequence = Sequence([1, 2, 3, 4], limit=12, context=64)
    list(run(made, [sequence]))
    first = seen[0]
    ids_BT = torch.tensor([sequence.ids[:24]])
    state = model(ids_BT[:, :4], taps=(heads.enters - 1,)).taps[heads.enters - 1]
    points = torch.tensor([3])
    text = method.beside.Text(model, state, heads.enters)
    pos_G, seen_GS = method.beside.reached(points, 3, 4)
    rows = torch.stack([linear(state[:, points]) for linear in heads.transfers], 2).flatten(1, 2)
    assert torch.allclose(first.ghosts_GV[:3], text.say(rows, pos_G, seen_GS)[0], atol=1e-9)


def test_places_that_are_seldom_reached_get_no_states():
    made = drafting("hidden_transfer:heads=fresh,nodes=10,floor=0.2", *ONE)
    tree = _grown(made)
    haunted = {ghost.node for ghost in tree.ghosts}
    assert 0 in haunted and 1 < len(haunted) < len(tree)
    made.draft.floor = 1.0
    assert {ghost.node for ghost in _grown(made).ghosts} == {0}


def _grown(made):
    sequence = Sequence([1, 2, 3], limit=20, context=64)
    made.draft.echo.held = {sequence.number: [list(range(10))] * 3}
    (tree,) = made.draft.propose([sequence], [9])
    return tree
