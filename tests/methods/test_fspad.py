"""FSPAD: EAGLE's layer with a sampled state and columns of its own for confidence."""

import pytest
import torch

from lithe import registry
from lithe.model.cache import PlainCache
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

TWO = (2,)
SPEC = "fspad:rate=0.03,noise=0"
method = registry.find("fspad").module


def heads(**knobs):
    return method.Heads(method.Knobs(**knobs), bigrams(*TWO))


def batch():
    ids_BT = torch.arange(12)[None]
    out = bigrams(*TWO)(ids_BT, taps=("final",), logits="all")
    return {"ids_BT": ids_BT, "tap:final": out.taps["final"].float(), "logits": out.logits.float()}


def test_without_its_two_parts_it_is_the_host():
    if "eagle" not in {e.name for e in registry.entries("decode", "draft")}:
        pytest.skip("the host is not there")
    host = registry.find("eagle").module
    theirs = host.Heads(host.Knobs(), bigrams(*TWO))
    ours = heads(gate=0, extra=0.0)
    ours.load_state_dict(theirs.state_dict())
    for (mine, _), (other, _) in zip(ours.guesses(batch()), theirs.guesses(batch()), strict=True):
        assert torch.equal(mine, other)


def test_at_the_start_the_sampled_state_is_the_state_and_the_guess_its_aligned_part():
    made, states = heads(), torch.randn(1, 5, 32)
    with_gate = made.rows(states, torch.arange(5)[None])
    made.sampling = None
    assert torch.equal(with_gate, made.rows(states, torch.arange(5)[None]))
    out = torch.randn(1, 5, 40)
    assert torch.allclose(made.logits(out), made.ends.logits(made.state(out)), atol=1e-5)


@pytest.mark.parametrize(("law", "feature", "beyond"), [(0.0, 1.0, False), (1.0, 0.0, True)])
def test_only_the_aligned_part_is_held_against_the_state(law, feature, beyond):
    """The distance to the state moves nothing beyond it; the law moves both parts."""
    made, out = heads(noise=0.0, law=law, feature=feature), torch.randn(1, 11, 40, requires_grad=True)
    torch.nn.init.normal_(made.out.weight)
    made.roll = lambda states, ids, steps: iter([out])
    made.loss(batch())[0].backward()
    assert out.grad[..., :32].any() and bool(out.grad[..., 32:].any()) == beyond


def test_it_learns_to_carry_the_state_on_and_not_from_other_tokens():
    folder, rates = fitted(SPEC, *TWO)
    assert min(sum(row[:2]) for row in rates[:3]) > 0.9
    made = drafting(f"fspad:heads={folder},nodes=14,depth=3", *TWO)
    assert (whole := tokens_per_pass(made)) > 3.2
    embed = made.draft.net.ends.embed
    made.draft.net.ends.embed = lambda ids, like: embed((ids + 1) % 32, like)
    assert tokens_per_pass(made) < whole - 1


def test_true_states_take_the_place_of_guessed_ones():
    made = drafting(f"fspad:heads={fitted(SPEC, *TWO)[0]},nodes=6", *TWO)
    tokens_per_pass(made)
    trail, net = made.draft.follower.trail, made.draft.net
    for lane, sequence in enumerate(trail.held):
        known = trail.lengths[lane]
        ids_BT = torch.tensor([sequence.ids[: known + 1]])
        states_BTC = bigrams(*TWO)(ids_BT[:, :-1], taps=("final",)).taps["final"]
        net.body(embeds=net.rows(states_BTC, ids_BT[:, 1:]), cache=(cache := PlainCache.like(net.body)))
        assert known > 20 and torch.allclose(cache.k[0][0, :, :known], trail.cache.k[0][lane, :, :known])
