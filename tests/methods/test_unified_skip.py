"""Unified layer skipping: which layers run, what they read, and what it costs."""

import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.cache import PlainCache
from lithe.sampling.sequence import Sequence
from tests.methods.measure import setting

kept = registry.find("unified_skip").module.kept


@pytest.mark.parametrize(("layers", "speedup", "count"), [(32, 2, 16), (32, 10, 3), (32, 3, 10), (32, 1, 32), (6, 2, 3),
                                                          (6, 5, 2), (1, 3, 1), (2, 9, 2), (40, 1.3, 30)])
def test_as_many_layers_run_as_the_speedup_asks_the_ends_among_them(layers, speedup, count):
    found = kept(layers, speedup)
    assert len(found) == count and found == sorted(set(found)) and found[0] == 0 and found[-1] == layers - 1


def test_the_layers_between_are_evenly_spread():
    assert kept(32, 10) == [0, 16, 31] and kept(32, 2) == [*range(0, 30, 2), 31]
    assert kept(32, 4, "first") == list(range(8)) and kept(32, 4, "last") == list(range(24, 32))


def test_every_token_after_the_prompt_runs_the_kept_layers_only():
    model, prompt = small_model(layers=6), [3, 4, 5, 6, 7]
    s = Sequence(prompt, limit=12, context=64)
    with torch.inference_mode():
        list(run(plan(model, draft="unified_skip:speedup=2"), [s]))
        cache, text = PlainCache.like(model), list(prompt)
        model(torch.tensor([prompt[:-1]]), cache=cache, logits="none")
        cache.commit([4])
        for _ in range(12):
            logits = model(torch.tensor([text[-1:]]), cache=cache, layers=[0, 3, 5]).scores[0, -1]
            cache.commit([1])
            text.append(int(logits.argmax()))
    assert s.ids == text


def test_it_changes_the_output_and_says_so():
    model, prompts = setting(2)
    made = plan(model, draft="unified_skip:speedup=3")
    assert made.promises == () and not registry.find("unified_skip").card.lossless
    texts = []
    for each in (plan(model), made):
        batch = [Sequence(model.tokenizer.encode(p), limit=16, context=200) for p in prompts]
        list(run(each, batch))
        texts.append([s.tokens for s in batch])
    assert texts[0] != texts[1]
