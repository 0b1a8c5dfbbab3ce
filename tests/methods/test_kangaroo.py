"""Kangaroo: the first layers run once, two exits, an adapter in step."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UsageError
from lithe.model.cache import PlainCache
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train.learn import Lesson, learn
from tests.methods import caches

method = registry.find("kangaroo").module
LAYERS = 3


def target():
    return small_model(layers=LAYERS)


@cache
def fitted(**knobs) -> Path:
    """An adapter to a random model, learned on random tokens."""
    entry, folder = registry.find("kangaroo"), Path(mkdtemp(prefix="lithe-")) / "fitted"
    ids = np.random.default_rng(0).integers(0, 32, 6000)
    learn(entry, entry.knobs(rate=0.03, **knobs), target(), ids, Lesson(steps=30, rows=16, length=24, warmup=5), folder=folder,
          quiet=True)
    return folder


def tokens_per_pass(spec, limit=40):
    batch = [Sequence([i, i + 3], limit=limit, context=64, seed=i) for i in range(12)]
    passes = sum(1 for _ in run(plan(target(), draft=spec), batch))
    return sum(len(s.tokens) for s in batch) / passes


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_layer_reads_a_row_twice(temperature):
    """Every drafted row and every root goes through each layer once: shallow ones while drafting, the others to verify."""
    model, rows = target(), [0] * LAYERS
    hooks = [layer.register_forward_hook(lambda module, given, out, i=i: rows.__setitem__(i, rows[i] + out.shape[1]))
             for i, layer in enumerate(model.layers)]
    try:
        sequence = Sequence([1, 2, 3, 4], limit=30, context=64, law=Law.of(temperature=temperature))
        steps = list(run(plan(model, draft="kangaroo:heads=fresh,exit=0,tokens=3"), [sequence]))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(steps) > 5 and any(step.nodes == 4 for step in steps)
    assert rows == [3 + sum(step.nodes for step in steps)] * LAYERS  # 3: the prompt but for its last token


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_caches_are_those_of_a_fresh_pass(temperature):
    made = plan(target(), draft="kangaroo:heads=fresh,exit=0.1,tokens=3")
    assert caches.rounds(made, Law.of(temperature=temperature)) > 5
    draft = made.draft
    for lane, sequence in enumerate(draft.trail.held):
        known = draft.trail.lengths[lane]
        shallow_BTC = target()(torch.tensor([sequence.ids[:known]]), layers=range(1), logits="none").hidden
        draft.net.body(embeds=shallow_BTC, cache=(cache := PlainCache.like(draft.net.body)))
        assert known > 3 and torch.allclose(cache.k[0][0, :, :known], draft.trail.cache.k[0][lane, :, :known])


def test_the_second_exit_ends_a_chain_after_the_token_it_doubts():
    def sizes(exit):
        made = plan(target(), draft=f"kangaroo:heads=fresh,tokens=5,exit={exit}")
        return [step.nodes for step in run(made, [Sequence([1, 2], limit=30, context=64)])]

    assert set(sizes(0.0)[1:-5]) == {6}  # the first round knows no state, the last ones have little room
    assert max(sizes(1.0)) == 2
    between = sizes(0.5)
    assert min(between[1:-5]) < max(between) and max(between) > 2


def test_a_fitted_adapter_beats_the_bare_exit_and_one_that_cannot_attend():
    """Adapter with attention, one that is only a norm, none at all: tokens per pass of a chain of three."""
    whole, norm = (tokens_per_pass(f"kangaroo:heads={fitted(**knobs)},tokens=3,exit=0") for knobs in ({}, {"attend": False}))
    assert whole > tokens_per_pass("kangaroo:heads=fresh,tokens=3,exit=0") + 0.1
    assert whole > norm


def test_it_is_small_and_says_where_it_cannot_be():
    net = method.Adapter(method.Knobs(), target())
    assert net.tap == 0 and sum(w.numel() for w in net.parameters() if w.requires_grad) == 3 * 32 * 32 + 3 * 32
    with pytest.raises(UsageError, match="leaves nothing to verify with"):
        plan(target(), draft="kangaroo:heads=fresh,layers=3")
