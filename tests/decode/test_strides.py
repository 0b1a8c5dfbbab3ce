"""Several rounds by one call, plain or drafted: the text, its pieces and its counts are those of rounds taken one by one."""

import pytest
import torch

import lithe
from lithe import registry
from lithe.decode import loop, stride
from lithe.decode.generate import request
from lithe.decode.lanes import Lanes
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.kernels.express import Goal
from lithe.kernels.rounds import MOST
from lithe.model.config import Config
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.kernels.test_express import fused
from tests.kernels.variants import compiled

PROMPTS = [[1, 2, 3, 9, 9], [4, 5, 6], [7], [3, 4, 5, 3, 4, 5, 3]]
TEXTS = ["Once upon a time", "Question: What is 2 + 3?\nAnswer:", "A", "The old man said: the old man said:"]
GREEDY = Law()


@pytest.fixture(scope="module")
def model():
    return fused(layers=3)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Calls that went ahead so far."""
    made, ahead = [], Lanes.ahead
    monkeypatch.setattr(Lanes, "ahead", lambda *given, **how: made.append(given) or ahead(*given, **how))
    return made


def told(made, sequences):
    """What a run tells of texts and of rounds."""
    steps = list(run(made, sequences))
    assert all(set(done.seconds) == {"prefill", "draft", "verify", "walk", "observe"} for done in steps)
    ends = [(s.ids, s.sources, s.finished) for s in sequences]
    return ends, [(done.tokens, done.pieces, done.nodes) for done in steps]


def same_singly(monkeypatch, model, ask, draft=None):
    """Compare all that is told with single passes; returns the rounds."""
    found = told(plan(model, draft=draft), ask())
    with monkeypatch.context() as patch:
        patch.setattr(Lanes, "ahead", lambda *_, **__: None)
        patch.setattr(Lanes, "drafted", lambda *_: [])
        assert found == told(plan(model, draft=draft), ask())
    return found[1]


@compiled
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_texts_pieces_and_counts_are_those_of_single_passes_in_every_precision(dtype, monkeypatch, calls):
    tiny = lithe.load("zoo:tiny", dtype=dtype)
    for limits in ((21,), (21, 9, 14, 30)):
        ask = lambda limits=limits: [request(tiny, text, max_tokens=most) for text, most in zip(TEXTS, limits, strict=False)]
        calls.clear()
        steps = same_singly(monkeypatch, tiny, ask)
        assert 0 < len(calls) < len(steps) / 2 and all(len(tokens) == nodes == 1 for tokens, _, nodes in steps)


@compiled
def test_ends_limits_and_the_context_cut_where_single_passes_do(model, monkeypatch):
    whole = Sequence(PROMPTS[0], limit=100, context=64)
    list(run(plan(model), [whole]))
    assert (len(whole.ids), whole.finished) == (64, "length")
    for end in [*sorted(set(whole.tokens)), 63]:
        ask = lambda end=end: [Sequence(ids, limit=100, context=64, eos=[end]) for ids in PROMPTS]
        same_singly(monkeypatch, model, ask)
    for limit in range(1, 19, 3):
        ask = lambda limit=limit: [Sequence(ids, limit=limit + n, context=64) for n, ids in enumerate(PROMPTS)]
        same_singly(monkeypatch, model, ask)


def passes_are_steps(made, ask):
    """Whether the model read what was committed, and not one token more."""
    for sequence in ask():
        list(run(made, [sequence]))
        if made.lanes.ids != [sequence.ids[:-1]]:
            return False
    return True


@compiled
def test_no_pass_is_made_that_is_not_counted_and_a_run_past_the_end_would_be(model, monkeypatch):
    text = Sequence(PROMPTS[0], limit=40, context=64)
    list(run(plan(model), [text]))
    ends = sorted(set(text.tokens))
    ask = lambda: [Sequence(PROMPTS[0], limit=limit, context=64, eos=[end]) for end in ends for limit in (40, 3)]
    assert passes_are_steps(plan(model), ask)
    with monkeypatch.context() as patch:
        goal = stride.Goal
        patch.setattr(stride, "Goal", lambda most, ends, **more: goal(most, (), **more))
        assert not passes_are_steps(plan(model), ask)
        same_singly(monkeypatch, model, ask)  # the text is cut all the same


@compiled
def test_stop_strings_go_singly_and_cut_where_they_did(monkeypatch, calls):
    tiny = lithe.load("zoo:tiny-draft")
    whole = "".join(done.text for done in lithe.generate(tiny, TEXTS[0], max_tokens=40))
    ask = lambda: [request(tiny, TEXTS[0], max_tokens=40, stop=[whole[len(whole) // 2 :][:4]])]
    calls.clear()
    assert 1 < len(same_singly(monkeypatch, tiny, ask)) < 40 and not calls


@compiled
def test_what_is_sampled_warped_or_named_a_rule_for_goes_singly(model, monkeypatch, calls):
    for law in (Law.of(temperature=1.0), Law.of("repetition_penalty:repetition_penalty=1.3")):
        ask = lambda law=law: [Sequence(ids, limit=12, context=64, law=law, seed=n) for n, ids in enumerate(PROMPTS)]
        same_singly(monkeypatch, model, ask)
    mixed = lambda: [Sequence(ids, limit=12, context=64, law=law) for ids, law in zip(PROMPTS, (GREEDY, law), strict=False)]
    same_singly(monkeypatch, model, mixed)
    assert len(told(plan(model, accept="greedy"), [Sequence(PROMPTS[0], limit=12, context=64)])[1]) == 12
    assert not calls


@compiled
def test_a_step_of_serving_is_one_token(model):
    sequence = Sequence(PROMPTS[0], limit=12, context=64)
    assert [len(step(plan(model), [sequence])[0].tokens) for _ in range(3)] == [1, 1, 1] and len(sequence.tokens) == 3


@compiled
def test_who_stops_listening_ends_a_text_or_changes_it_is_heard_between_tokens(model):
    whole = Sequence(PROMPTS[0], limit=20, context=64)
    list(run(plan(model), [whole]))
    made, left = plan(model), Sequence(PROMPTS[0], limit=20, context=64)
    for _, _ in zip(range(3), steps := run(made, [left]), strict=False):
        pass
    steps.close()
    assert left.tokens == whole.tokens[:3]
    list(run(made, [left]))
    assert left.tokens == whole.tokens
    ended, other = (Sequence(ids, limit=20, context=64) for ids in PROMPTS[:2])
    for done in run(made, [ended, other]):
        if done.sequence is ended and len(ended.tokens) == 5:
            ended.finished = "stop"
    alone = Sequence(PROMPTS[1], limit=20, context=64)
    list(run(plan(model), [alone]))
    assert (ended.tokens, other.tokens) == (whole.tokens[:5], alone.tokens)
    changed, anew = Sequence(PROMPTS[0], limit=20, context=64), Sequence([*whole.ids[:8], 1], limit=16, context=64)
    for _ in run(made, [changed]):
        if len(changed.tokens) == 3:
            changed.push(1, "somebody")
    list(run(plan(model), [anew]))
    assert changed.ids == anew.ids and len(changed.tokens) == 20


@compiled
def test_a_text_that_takes_long_comes_token_by_token(model, monkeypatch):
    for smooth, most in ((0.0, 1), (3600.0, MOST)):
        monkeypatch.setattr(stride, "SMOOTH", smooth)
        sizes = [len(found) for found in strides(plan(model), Sequence(PROMPTS[0], limit=17, context=64))]
        assert max(sizes) == most and sum(sizes) == 17


def strides(made, sequence):
    while not sequence.finished:
        yield list(loop.rounds(made, [sequence]))


@compiled
@pytest.mark.parametrize("draft", ["draft_verify:threshold=0", "draft_verify:threshold=0.5"])
def test_what_a_model_drafts_by_one_call_is_what_it_drafts_token_by_token(model, draft, monkeypatch, calls):
    for prompt in PROMPTS:
        ask = lambda prompt=prompt: [Sequence(prompt, limit=30, context=64)]
        steps = same_singly(monkeypatch, model, ask, draft)
    assert calls and max(nodes for *_, nodes in steps) > 1


@compiled
@pytest.mark.parametrize("draft", ["draft_model:tokens=4", "draft_model:tokens=9,stop_below=0.5", "draft_model:adaptive=true",
                                   "easyspec", "cascade", "pearl:tokens=3", "specdec_pp:most=9"])
def test_what_a_small_model_drafts_by_one_call_is_what_it_drafts_token_by_token(draft, monkeypatch, calls):
    monkeypatch.setattr(Lanes, "drafted", lambda *_: [])
    for dtype in ("fp32", "int8"):
        tiny = lithe.load("zoo:tiny", dtype=dtype)
        for text in TEXTS[::3]:
            calls.clear()
            steps = same_singly(monkeypatch, tiny, lambda tiny=tiny, text=text: [request(tiny, text, max_tokens=24)], draft)
            assert calls and max(nodes for *_, nodes in steps) > 2


COPIES = ["prompt_lookup", "suffix", "suffix:nodes=0", "token_recycling:nodes=7", "token_recycling:update=accepted,k=3",
          "blend", "blend:learn=false", "blend:drafts=suffix+prompt_lookup(last=true)"]
SMALL = ["draft_model:tokens=4", "draft_model:tokens=9,stop_below=0.5", "blend:drafts=suffix+draft_model",
         "blend:drafts=draft_model(tokens=6;stop_below=0.2)+prompt_lookup+token_recycling"]


@pytest.fixture
def drafted(monkeypatch):
    """Rounds of each call that took some, so far."""
    counts, call = [], Lanes.drafted

    def counted(*given):
        found = call(*given)
        counts.extend([len(found)] if found else [])
        return found

    monkeypatch.setattr(Lanes, "drafted", counted)
    return counts


@compiled
@pytest.mark.parametrize("draft", COPIES + SMALL)
def test_drafted_rounds_are_those_taken_one_by_one(draft, monkeypatch, drafted):
    for dtype in ("fp32", "bf16", "int8", "int4")[:: 3 if draft in SMALL else 1]:
        tiny = lithe.load("zoo:tiny", dtype=dtype)
        for texts, most in ((TEXTS[:1], 40), (TEXTS[2:], 21)):  # a draft learns from the first for the second
            ask = lambda tiny=tiny, texts=texts, most=most: [request(tiny, text, max_tokens=most) for text in texts]
            made, alone = plan(tiny, draft=draft), plan(tiny, draft=draft)
            drafted.clear()
            found = [told(made, [sequence]) for sequence in ask()]
            assert sum(drafted) > len(found) and max(drafted) > 2
            with monkeypatch.context() as patch:
                patch.setattr(Lanes, "drafted", lambda *_: [])
                assert [told(alone, [sequence]) for sequence in ask()] == found


@compiled
@pytest.mark.parametrize("draft", ["suffix:alpha=4", "blend"])
def test_drafted_rounds_end_where_others_do(model, draft, monkeypatch, drafted):
    whole = Sequence(PROMPTS[3], limit=100, context=64)
    list(run(plan(model), [whole]))
    for end in [*sorted(set(whole.tokens)), 63]:
        same_singly(monkeypatch, model, lambda end=end: [Sequence(PROMPTS[3], limit=100, context=64, eos=[end])], draft)
    for limit in range(1, 14, 3):
        same_singly(monkeypatch, model, lambda limit=limit: [Sequence(PROMPTS[3], limit=limit, context=64)], draft)
    assert drafted


@compiled
def test_rounds_that_are_not_heard_are_forgotten(model):
    whole = Sequence(PROMPTS[3], limit=40, context=64)
    list(run(plan(model), [whole]))
    made, left = plan(model, draft="suffix"), Sequence(PROMPTS[3], limit=40, context=64)
    for _ in (steps := run(made, [left])):
        if len(left.tokens) > 20:
            break
    steps.close()
    assert len(made.lanes.ids[0]) > len(left.ids) - 1  # so far it had gone
    assert left.number not in made.draft.compiled.reader.read
    list(run(made, [left]))
    assert left.tokens == whole.tokens


@compiled
def test_a_tree_too_large_for_a_call_is_left_to_the_loop(monkeypatch, drafted):
    tiny = lithe.load("zoo:tiny-draft")
    ask = lambda: [request(tiny, TEXTS[3], max_tokens=140)]
    draft = "suffix:nodes=200,alpha=16,offset=60,floor=0"
    assert max(nodes for *_, nodes in same_singly(monkeypatch, tiny, ask, draft)) > 64 and drafted


@compiled
@pytest.mark.parametrize("draft", ["draft_model:adaptive=true", "suffix + typical_acceptance", "specdec_pp:most=9", "rasd"])
def test_what_looks_at_tokens_or_passes_goes_round_by_round(draft, drafted):
    tiny = lithe.load("zoo:tiny")
    law = Law.of(temperature=1.0) if "typical" in draft else GREEDY
    for _ in run(plan(tiny, draft=draft), [Sequence([5, 6, 7, 5, 6, 7], limit=12, context=64, law=law)]):
        pass
    assert not drafted


@compiled
def test_layers_side_by_side_are_passes_of_their_own():
    sides = [registry.find("easyspec").module.Side(fused(layers=4), size=size, ffn="serial") for size in (2, 1)]
    for side, alone in zip(sides, (False, True), strict=True):
        side.sync([Sequence(PROMPTS[0], limit=9, context=64)])
        side.prefill()
        assert bool(side.ahead([[7]], Goal(3))) is alone


@compiled
def test_a_model_without_compiled_layers_goes_singly():
    shape = Config(vocab=64, width=32, layers=2, heads=4, kv_heads=2, ffn=64, context=64)
    sequence = Sequence(PROMPTS[0], limit=12, context=64)
    assert len(told(plan(lithe.model.decoder.Decoder(shape)), [sequence])[1]) == 12 and torch.is_grad_enabled()
