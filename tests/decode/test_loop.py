"""Ends, limits and stop strings are exact whatever is drafted; the loop counts right."""

from pathlib import Path

import pytest

import lithe
from lithe import registry
from lithe.contracts.draft import suited
from lithe.contracts.small import small_model
from lithe.decode.budget import costs
from lithe.decode.generate import request
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.model.runtime import cost_curve
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train.fitted import FRESH

ENTRIES = [e for e in registry.entries("decode", "draft") if "second_model" not in e.card.needs]
TEXT = Path(__file__).parents[2] / "docs" / "architecture.md"
DRAFTS = [f"{e.address}:corpus={TEXT}" if "corpus" in e.card.needs else
          f"{e.address}:heads={FRESH}" if e.card.trains else e.address for e in ENTRIES]
LOOPY = [3, 4, 5, 3, 4, 5, 3, 4]


@pytest.fixture(scope="module")
def zoo():
    return lithe.load("zoo:tiny-draft")


def texts(model, prompts, **settings):
    out = {}
    for done in lithe.generate(model, prompts, **settings):
        out.setdefault(done.sequence.number, []).append(done.text)
    return ["".join(pieces) for _, pieces in sorted(out.items())]


@pytest.mark.parametrize("draft", DRAFTS)
def test_stop_strings_cut_where_plain_decoding_cuts(zoo, draft):
    prompts = ["Once upon a time", "The old man said: the old man said:"]
    whole = texts(zoo, prompts, max_tokens=60)
    stop = [whole[0][len(whole[0]) // 2 :][:5], whole[1][20:23]]
    plain = texts(zoo, prompts, max_tokens=60, stop=stop)
    assert texts(zoo, prompts, max_tokens=60, stop=stop, draft=draft) == plain
    for full, cut in zip(whole, plain, strict=True):
        assert full.startswith(cut) and not any(s in cut for s in stop)


@pytest.mark.parametrize("draft", DRAFTS)
def test_text_is_the_same_alone_and_in_a_batch(zoo, draft):
    prompts = ["Once upon a time", "Question: What is 2 + 3?\nAnswer:", "A"]
    together = texts(zoo, prompts, max_tokens=40, draft=draft)
    assert together == [texts(zoo, p, max_tokens=40)[0] for p in prompts]


def test_a_seed_repeats_itself_and_batch_mates_do_not_matter(zoo):
    law = Law.of(temperature=1.0, top_p=0.9)

    def sampled(seeds):
        batch = [request(zoo, "Once upon a time", law=law, seed=s, max_tokens=20) for s in seeds]
        for _ in run(plan(zoo), batch):
            pass
        return [s.tokens for s in batch]

    assert sampled([5, 6]) == sampled([5, 6])
    assert sampled([5, 6])[1] == sampled([6])[0] != sampled([7])[0]


def test_the_loop_counts_tokens_and_passes():
    model = small_model()
    made = plan(model, draft="prompt_lookup")
    sequence = Sequence(LOOPY, limit=30, context=64)
    steps = list(run(made, [sequence]))
    assert sum(len(s.tokens) for s in steps) == 30 == len(sequence.tokens) == len(sequence.sources)
    assert [t for s in steps for t in s.tokens] == sequence.tokens
    for done in steps:
        assert 1 <= len(done.tokens) <= done.nodes
        assert set(done.seconds) == {"prefill", "draft", "verify", "walk", "observe"}
        assert all(source == "prompt_lookup" for source in done.sources[:-1])


def test_a_full_context_ends_the_sequence():
    model = small_model()
    for draft in (None, *(suited(entry, model) for entry in ENTRIES)):
        sequence = Sequence(LOOPY, limit=1000, context=64)
        for _ in run(plan(model, draft=draft), [sequence]):
            pass
        assert (len(sequence.ids), sequence.finished) == (64, "length")


def test_a_batch_may_shrink_and_grow_between_steps():
    model = small_model()
    for draft in (None, *(suited(entry, model) for entry in ENTRIES)):
        made = plan(model, draft=draft)
        early, late = Sequence([1, 2, 3, 1, 2], limit=12, context=64), Sequence(LOOPY, limit=12, context=64)
        step(made, [early])
        while not (early.finished and late.finished):
            step(made, [s for s in (late, early) if not s.finished])
        for sequence, prompt in ((early, [1, 2, 3, 1, 2]), (late, LOOPY)):
            alone = Sequence(prompt, limit=12, context=64)
            list(run(plan(model), [alone]))
            assert sequence.tokens == alone.tokens


def test_an_empty_or_too_long_prompt_is_refused():
    with pytest.raises(UsageError, match="empty"):
        Sequence([], limit=5, context=64)
    with pytest.raises(TooLargeError, match="context is 64"):
        Sequence(range(64), limit=5, context=64)
    with pytest.raises(UsageError, match="outside this model's vocabulary"):
        request(small_model(), [1, 99])


def test_rules_that_are_not_exact_for_a_tree_are_refused():
    with pytest.raises(UnsupportedError, match="not exact for det"):
        plan(small_model(), draft="prompt_lookup", accept="rejection")
    with pytest.raises(UsageError, match="did you mean prompt_lookup"):
        plan(small_model(), draft="promt_lookup")
    with pytest.raises(UsageError, match="above 256"):
        plan(small_model(), draft="prompt_lookup:tokens=9999")


def test_a_draft_with_another_vocabulary_is_refused(zoo):
    with pytest.raises(UnsupportedError, match="cannot draft"):
        plan(small_model(), draft="draft_model:model=zoo:tiny-draft")


def test_budgets_come_from_the_stored_curve_and_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path))
    model = small_model()
    assert costs(model, 2) == [1.0, 1.05, 1.1] and costs(model, 2, row=1.0) == [1.0, 2.0, 3.0]
    assert not list(tmp_path.iterdir())
    curve = cost_curve(model)
    assert costs(model, 3) == [curve.ratio(n) for n in (1, 2, 3, 4)]


class Entered:
    """Counts how often it is entered."""

    def __init__(self):
        self.times = 0

    def __enter__(self):
        self.times += 1

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(("draft", "enters"), [
    (None, False), ("suffix", False), ("token_recycling:nodes=7", False), ("blend", False), ("jacobi", True)])
@pytest.mark.parametrize("law", [{}, {"temperature": 0.7}], ids=["greedy", "sampled"])
def test_only_rounds_that_compute_with_tensors_enter_inference_mode(draft, enters, law):
    model = small_model()
    made, mode = plan(model, draft=draft), Entered()
    made.mode = mode
    asked = Sequence(LOOPY, limit=12, context=64, law=Law.of(**law))
    steps = list(run(made, [asked]))
    assert mode.times == (len(steps) if enters or law else 0)
    if not law:
        alone = Sequence(LOOPY, limit=12, context=64)
        list(run(plan(model), [alone]))
        assert asked.tokens == alone.tokens
