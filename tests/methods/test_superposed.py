"""Superposed decoding: one row a pass for any number of drafts, the first tokens the likeliest, n-grams tell drafts apart."""

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.lanes import Lanes
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.sampling.sequence import Sequence

MODULE = registry.find("superposed").module


@pytest.fixture
def corpus(tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 32, 3000))
    return tmp_path / "ids.npy"


def drafts(spec, prompt=(3, 4, 5), limit=12, eos=()):
    made = plan(small_model(), draft=spec)
    s = Sequence(prompt, limit=limit, context=64, eos=eos)
    for _ in run(made, [s]):
        pass
    return s.tokens, made.search.drafts[s.number]


def test_the_text_is_the_best_of_distinct_drafts_that_begin_with_the_likeliest_tokens(corpus):
    text, found = drafts(f"superposed:drafts=4,corpus={corpus},mix=0,temperature=3", limit=1)
    with torch.inference_mode():
        likeliest = small_model()(torch.tensor([[3, 4, 5]])).logits[0, -1].topk(4).indices.tolist()
    assert [draft[0] for draft in found] == likeliest and text == found[0]
    text, found = drafts(f"superposed:drafts=4,corpus={corpus}")
    assert text == found[0] and len({tuple(draft) for draft in found}) == 4 and {len(draft) for draft in found} == {12}


@pytest.mark.parametrize("count", [2, 8])
def test_a_step_is_one_row_of_one_pass(corpus, monkeypatch, count):
    rows, real = [], Lanes.run
    monkeypatch.setattr(Lanes, "run", lambda self, ids, **given: rows.append(sum(map(len, ids))) or real(self, ids, **given))
    drafts(f"superposed:drafts={count},corpus={corpus}", prompt=[3], limit=9)
    assert rows == [1] * 9


def test_without_the_other_drafts_the_row_is_the_best_drafts_own(corpus):
    method = MODULE.Method(MODULE.Knobs(drafts=2, corpus=str(corpus)), small_model())
    alone = MODULE.Method(MODULE.Knobs(drafts=2, corpus=str(corpus), superpose=False), small_model())
    two = [MODULE.Draft((5,), np.log(0.75)), MODULE.Draft((9,), np.log(0.25))]
    e_NC = small_model().embed_tokens.weight
    s = Sequence([1], limit=9, context=64)
    assert torch.allclose(method._read(s, two)[0], 0.75 * e_NC[5] + 0.25 * e_NC[9])
    assert torch.allclose(alone._read(s, two)[0], e_NC[5])


def test_a_drafts_own_law_is_counted_in_the_corpus(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([1, 2, 3, 1, 2, 3, 1, 2, 4, 9, 2, 5]))
    method = MODULE.Method(MODULE.Knobs(corpus=str(tmp_path / "ids.npy")), small_model())
    assert method._own([7, 1, 2], [3, 4, 5, 6]) == pytest.approx(
        [0.01 * 2 / 4 + 0.04 * 2 / 3, 0.01 / 4 + 0.04 / 3, 0.01 / 4, 0])  # after 2: 3 3 4 5; after 1 2: 3 3 4


def test_candidates_never_seen_are_left_out_where_others_were(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([1, 2, 3, 1, 2, 3]))
    method = MODULE.Method(MODULE.Knobs(corpus=str(tmp_path / "ids.npy"), candidates=32), small_model())
    s, logits_V = Sequence([1], limit=9, context=64), torch.zeros(32)
    assert [d.tokens for d in method._grown(s, [MODULE.Draft((2,))], logits_V)] == [(2, 3)]
    lost = method._grown(s, [MODULE.Draft((8,))], logits_V)
    assert len(lost) == 32 and all(d.score < -199 for d in lost)


def test_a_draft_that_ends_is_set_aside_and_comes_first(corpus):
    plain = drafts(f"superposed:drafts=3,corpus={corpus},mix=0")[1][0]
    text, found = drafts(f"superposed:drafts=3,corpus={corpus},mix=0", eos={plain[4]})
    assert text[-1] == plain[4] and len(text) <= 5 and len(found) <= 3
