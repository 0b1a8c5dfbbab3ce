"""Hydra: guesses that know the tokens before them, beside heads that do not."""

import pytest
import torch

from lithe import registry
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

TWO = (2,)  # two equally likely followers: what follows two steps on is one of four
method = registry.find("hydra").module
SPEC = "hydra:depth=3,rate=0.02"


def heads(**knobs):
    return method.Heads(method.Knobs(**knobs), bigrams(*TWO))


def batch(ids_BT):
    out = bigrams(*TWO)(ids_BT, taps=("final",), logits="all")
    return {"ids_BT": ids_BT, "tap:final": out.taps["final"].float(), "logits": out.logits.float()}


def test_head_i_reads_the_root_and_what_lies_between_and_nothing_later():
    ids_BT, i, row = torch.arange(12)[None], 2, 3
    made = heads(depth=3)
    for weight in made.heads[i - 1].join.parameters():
        torch.nn.init.normal_(weight)  # at the start it reads the state alone

    def logits(ids_BT):
        known = batch(torch.arange(12)[None]) | {"ids_BT": ids_BT}
        guess, targets = list(made.guesses(known))[i - 1]
        assert targets[0].tolist() == ids_BT[0, 1 + i :].tolist()
        return guess[0, row]

    before = logits(ids_BT)
    for place in range(12):
        other = ids_BT.clone()
        other[0, place] = 31
        changed = not torch.equal(logits(other), before)
        assert changed == (place in (row + 1, row + 2)), place  # x_{t+1} to x_{t+i}


def test_it_beats_heads_that_do_not_know_the_tokens_between():
    """Equal training, equal nodes. Medusa's guesses get worse with each place, Hydra's do not."""
    if "medusa" not in {e.name for e in registry.entries("decode", "draft")}:
        pytest.skip("there is nothing to compare with")
    (ours, rates), (theirs, other) = fitted(SPEC, *TWO), fitted("medusa:depth=3,rate=0.02", *TWO)
    gaps = [sum(a[:2]) - sum(b[:2]) for a, b in zip(rates, other, strict=True)]
    assert min(sum(row[:2]) for row in rates) > 0.95  # the two followers, whatever the depth
    assert gaps[0] > 0.2 and gaps == sorted(gaps)
    ours, theirs = (tokens_per_pass(drafting(f"{name}:heads={folder},nodes=8", *TWO))
                    for name, folder in (("hydra", ours), ("medusa", theirs)))
    assert ours > theirs + 0.5


def test_heads_that_read_other_tokens_lose_it_again():
    made = drafting(f"hydra:heads={fitted(SPEC, *TWO)[0]},nodes=8", *TWO)
    before = tokens_per_pass(made)
    embed = made.draft.net.heads[0].ends.embed
    for head in made.draft.net.heads:
        head.ends.embed = lambda ids, like: embed((ids + 1) % 32, like)
    assert tokens_per_pass(made) < before - 0.5


def test_the_plus_settings_learn_and_keep_their_state_in_step():
    """The state that attention over the prefix gives in a run is that of a pass over all committed states at once."""
    folder, rates = fitted(f"{SPEC},prefix=true,layers=4,teacher=true", *TWO)
    assert min(sum(row[:2]) for row in rates) > 0.9
    made = drafting(f"hydra:heads={folder},nodes=8", *TWO)
    assert tokens_per_pass(made) > 2
    follower = made.draft.follower
    for lane, sequence in enumerate(follower.trail.held):
        known = follower.trail.lengths[lane]
        states_TC = bigrams(*TWO)(torch.tensor([sequence.ids[:known]]), taps=("final",)).taps["final"]
        fresh = made.draft.net.prefix(embeds=states_TC, cache=(cache := type(follower.trail.cache).like(made.draft.net.prefix)))
        assert fresh is not None and torch.allclose(cache.k[0][0, :, :known], follower.trail.cache.k[0][lane, :, :known])


def test_the_teachers_law_is_that_of_the_row_before_the_guess():
    """A head that says the target's own law of the token it foretells has the least loss there can be."""
    known = batch(torch.arange(12)[None])
    made = heads(depth=2, teacher=True)
    exact = [(known["logits"][:, i:-1], known["ids_BT"][:, 1 + i :]) for i in (1, 2)]
    made.guesses = lambda batch: exact
    least = sum(-(z.softmax(-1) * z.log_softmax(-1)).sum() for z, _ in exact)
    assert made.loss(known)[0].item() == pytest.approx(float(least), rel=1e-4)
