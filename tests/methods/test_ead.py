"""Entropy-adaptive decoding: who writes, how long they stay, and that whoever takes over knows the text."""

from itertools import groupby

import pytest
import torch

from lithe.contracts.small import small_folder, small_model
from lithe.decode.loop import step
from lithe.decode.plan import plan
from lithe.errors import UnsupportedError
from lithe.model.load import load
from lithe.sampling.sequence import Sequence
from tests.methods import caches

PROMPTS = ([1], [3, 4, 5, 3, 4], list(range(12)))


def made(**knobs):
    model = small_model(layers=4)
    return plan(model, draft="ead:" + ",".join(f"{k}={v}" for k, v in (dict(model=small_folder()) | knobs).items()))


def written(plan_, limit=40):
    batch = [Sequence(p, limit=limit, context=64) for p in PROMPTS]
    with torch.inference_mode():
        while alive := [s for s in batch if not s.finished]:
            step(plan_, alive)
    return batch


def greedy(model, prompt, tokens):
    s = Sequence(prompt, limit=tokens, context=64)
    while not s.finished:
        step(plan(model), [s])
    return s.tokens


def test_a_high_threshold_is_the_small_model_and_a_low_one_the_large_after_it_has_stayed():
    small, large = load(small_folder(), dtype=torch.float64), small_model(layers=4)
    for s in written(made(tau=99)):
        assert s.tokens == greedy(small, s.ids[: s.prompt], 40) and set(s.sources) == {"small"}
    for s in written(made(tau=-1, stay=7)):
        assert s.tokens[:7] == greedy(small, s.ids[: s.prompt], 7)
        assert s.tokens[7:] == greedy(large, s.ids[: s.prompt + 7], 33) and s.sources == ["small"] * 7 + [""] * 33


def test_nobody_leaves_before_the_least_stay():
    turns = 0
    for s in written(made(tau=2.2, stay=3, window=2)):
        spells = [len(list(spell)) for _, spell in groupby(s.sources)]
        assert all(spell >= 3 for spell in spells[:-1])
        turns += len(spells) - 1
    assert turns > 3


def test_after_every_round_both_caches_hold_the_text_that_they_have_read():
    plan_ = made(tau=2.2, stay=2, window=2)
    batch = [Sequence(p, limit=25, context=64) for p in PROMPTS]
    with torch.inference_mode():
        while alive := [s for s in batch if not s.finished]:
            step(plan_, alive)
            for large, lanes in plan_.search.lanes.items():
                caches.fresh(lanes, [s.ids for s in alive])
                for s, n in zip(alive, lanes.cache.lengths, strict=True):
                    assert n == len(s.ids) - 1 or plan_.search.states[s.number].large != large


def test_the_large_models_share_falls_with_the_threshold():
    shares = [sum(s.sources.count("") for s in written(made(tau=tau, stay=2))) for tau in (0, 1.5, 2.5, 3.5, 9)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2] > shares[4] == 0


def test_the_control_switches_whatever_the_entropy():
    shares = [sum(s.sources.count("") for s in written(made(tau=99, stay=2, chance=chance))) for chance in (0, 0.5, 1)]
    assert shares[0] == 0 < shares[1] < shares[2]


def test_it_promises_nothing_and_takes_no_rule_and_no_smaller_context():
    assert made().promises == ()
    with pytest.raises(UnsupportedError, match="neither drafts nor verifies"):
        plan(small_model(layers=4), draft=f"ead:model={small_folder()}", accept="greedy")
    with pytest.raises(UnsupportedError, match="context of 32"):
        plan(small_model(layers=4), draft=f"ead:model={small_folder(context=32)}")
