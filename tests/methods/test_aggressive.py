"""Aggressive decoding: the pointer, the way back, the marks; and the rule that is not lossless."""

import numpy as np
import pytest
import torch

import lithe
from lithe import registry
from lithe.contracts.accept import everywhere, propose, random_pair, scores
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UnsupportedError, UsageError
from lithe.ops.accept import Dice
from lithe.ops.tree import Tree
from tests.methods.measure import made, sequence, setting


def told(draft, s, *tokens) -> list[int]:
    """What is drafted after the model wrote these tokens."""
    for token in tokens:
        s.push(token)
    return draft.propose([s], [9])[0].tokens[1:]


def test_it_copies_from_the_beginning_and_goes_on_behind_what_was_copied():
    draft, s = made("draft/aggressive"), sequence(5, 6, 7, 8, 9)
    assert told(draft, s) == [5, 6, 7, 8, 9]
    assert told(draft, s, 5, 6) == [7, 8, 9]


def test_after_a_change_it_goes_on_where_the_last_tokens_stand_once():
    draft, s = made("draft/aggressive"), sequence(1, 2, 3, 1, 4, 5, 2, 6)
    told(draft, s)
    assert told(draft, s, 30) == []  # not in the source
    assert told(draft, s, 1) == []  # stands twice there: ambiguous, and 30 1 nowhere
    assert told(draft, s, 4) == [5, 2, 6]  # once
    assert told(draft, s, 2) == []  # instead of 5: stands twice, and neither does 4 2 help


def test_a_longer_ngram_settles_what_a_token_leaves_open():
    for ngram, expected in ((3, [5, 1, 3, 2, 6]), (1, []), (0, [])):
        draft, s = made("draft/aggressive", ngram=ngram), sequence(1, 2, 5, 1, 3, 2, 6)
        told(draft, s)
        assert told(draft, s, 31, 1) == [] and told(draft, s, 2) == expected


def test_an_ambiguous_token_does_not_lead_back_unless_asked():
    prompt = (5, 4, 7, 4, 8)
    for ambiguous, expected in ((False, []), (True, [7, 4, 8])):
        draft, s = made("draft/aggressive", ambiguous=ambiguous), sequence(*prompt)
        told(draft, s)
        assert told(draft, s, 31, 4) == expected


def test_marks_name_the_part_to_copy():
    model = lithe.load("zoo:tiny-draft")
    text = "Correct the text.\nText: He go to the märket.\nCorrected:"
    draft = plan(model, draft="aggressive:after=Text:,before=Corrected:").draft
    assert model.tokenizer.decode(draft.span(model.tokenizer.encode(text))) == " He go to the märket.\n"
    with pytest.raises(UsageError, match="does not say"):
        draft.span(model.tokenizer.encode("nothing of the kind"))
    with pytest.raises(UnsupportedError):
        made("draft/aggressive", after="Text:")


def test_tokens_per_pass_fall_with_the_share_of_edits(tmp_path):
    """A source that differs from what the model writes by more and more tokens; the last is the control: none in common."""
    model, prompts = setting(3)
    rates = []
    for edits in (0.0, 0.1, 0.5, 1.0):
        passes = tokens = 0
        for i, prompt in enumerate(prompts):
            plain = request(model, prompt, max_tokens=40)
            list(run(plan(model), [plain]))
            dice = np.random.default_rng(i)
            other = dice.integers(1, model.config.vocab, len(plain.tokens))
            source = np.where(dice.random(len(plain.tokens)) < edits, other, plain.tokens)
            np.save(tmp_path / "source.npy", source)
            again = request(model, prompt, max_tokens=40)
            passes += len(list(run(plan(model, draft=f"aggressive:file={tmp_path / 'source.npy'}"), [again])))
            tokens += len(again.tokens)
            assert again.tokens == plain.tokens
        rates.append(tokens / passes)
    assert rates == sorted(rates, reverse=True) and rates[0] > 20 and rates[-1] < 1.5


def test_a_file_of_another_vocabulary_is_refused(tmp_path):
    np.save(tmp_path / "far.npy", np.array([1, 99999]))
    with pytest.raises(UsageError, match="99999"):
        made("draft/aggressive", file=str(tmp_path / "far.npy"))


def rule(**knobs):
    entry = registry.find("aggressive", "accept")
    return entry.module.Method(entry.knobs(**knobs))


def test_relaxed_at_its_least_is_the_greedy_rule():
    greedy = registry.find("greedy").module.Method(None)
    for seed in range(60):
        p_V, q_V = random_pair(seed)
        target, draft = everywhere((p_V * 3).round() / 3 + 0.1), everywhere(q_V)  # many ties
        tree = propose("iid", draft, Dice(torch.Generator().manual_seed(seed)), width=3, depth=2)
        scores_NV = scores(tree, target)
        for knobs in ({"beta": 1}, {"tau": 0.0, "beta": 1}):
            assert rule(**knobs).walk(tree, scores_NV, None) == greedy.walk(tree, scores_NV, None)


def test_relaxed_keeps_what_is_good_enough_and_no_more():
    scores_NV = torch.tensor([[0.0, -0.5, -0.9, -2.0]] * 5)
    walk = lambda token, **knobs: rule(**knobs).walk(Tree.chain(0, [token]), scores_NV, None)
    assert walk(1).path == (1,) and walk(2).path == (1,)
    assert walk(3).path == () and walk(3).token == 0  # the fourth, and too far below
    assert walk(2, beta=2).path == () and walk(1, tau=0.4).path == ()
    assert rule().walk(Tree.trie(0, [[2], [1]]), scores_NV, None).path == (2,)  # the better of two


def test_relaxing_changes_the_output_and_a_plan_says_so():
    model, prompts = setting(2)
    loose = plan(model, draft="jacobi", accept="aggressive:beta=50,tau=9")
    assert "same_tokens" not in loose.promises
    texts = []
    for made_ in (plan(model), loose):
        batch = [request(model, prompt, max_tokens=24) for prompt in prompts]
        list(run(made_, batch))
        texts.append([s.tokens for s in batch])
    assert texts[0] != texts[1]
