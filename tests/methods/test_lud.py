"""LUD: units, placeholders that no true row sees, and steps of several tokens, taken or verified."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lithe.contracts.small import small_model
from lithe.decode import lexical
from lithe.decode.lexical import Recipe, blocks, lesson, make, span, units, widened
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UsageError
from lithe.model.load import load
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.methods import caches
from tests.methods.bigrams import VOCAB, bigrams, table, text

MIX = (1, 1, 1, 6)  # of four tokens three have one follower only


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    recipe = Recipe(steps=200, most=2, points=12, rows=16, length=31, rate=0.04)
    folder = tmp_path_factory.mktemp("units") / "model"
    make(bigrams(*MIX), text(*MIX), recipe, folder, quiet=True)
    return load(folder, dtype=torch.float64)


def said(model, spec, law=None):
    """Tokens a step, and the texts."""
    batch = [Sequence([i, 2 * i], limit=30, context=96, law=law, seed=i) for i in range(12)]
    steps = sum(1 for _ in run(plan(model, draft=spec), batch))
    return sum(len(s.tokens) for s in batch) / steps, [s.tokens for s in batch]


def test_units_tile_a_text_and_only_followers_must_be_sure():
    sure = [False, True, True, True, True, False, False, True]
    assert units(sure, 3) == [(0, 3), (3, 2), (5, 1), (6, 2)]
    assert sum(size for _, size in units(sure, 3)) == len(sure)
    points, wanted = lesson(torch.arange(8)[None], torch.tensor([sure]), 3, 4)
    asked = {int(p): row for p, row in zip(points[0], wanted.view(4, 2).tolist(), strict=True) if row != [-1, -1]}
    assert asked == {2: [4, -1], 5: [7, -1]}  # what stands behind the text up to there: x_i itself is the last true row's


def test_placeholders_see_their_prefix_and_nothing_sees_them():
    """Rows that hold the text's own tokens instead say exactly what the text says; what they hold moves no true row."""
    model, ids = small_model(), torch.randint(32, (2, 20), generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[3, 9], [5, 16]])
    pos, seen = blocks(points, 3, 20)
    more = torch.stack([torch.cat([row[p + 1 : p + 4] for p in at]) for row, at in zip(ids, points, strict=True)])
    out = model(torch.cat((ids, more), 1), pos_BT=pos, mask=seen, logits="all").scores
    plain = model(ids, logits="all").scores
    torch.testing.assert_close(out[:, :20], plain)
    for b in range(2):
        for block, p in enumerate(points[b].tolist()):
            torch.testing.assert_close(out[b, 20 + 3 * block : 23 + 3 * block], plain[b, p + 1 : p + 4])


def test_a_span_ends_where_it_is_unsure_or_says_again_what_was_said():
    laws = torch.nn.functional.one_hot(torch.tensor([4, 5, 6]), 9) * 0.95
    assert span(laws, [3], 0.9) == [4, 5, 6] and span(laws, [3], 0.96) == []
    assert span(laws, [4], 0.9) == []  # the token just said
    again = torch.nn.functional.one_hot(torch.tensor([4, 3, 4, 7]), 9).double()
    assert span(again, [3], 0.9) == [4, 3]  # 3 4 was said in this step


def test_tuned_it_needs_a_fifth_fewer_steps_and_pays_with_its_text(tuned):
    """Control: the same placeholders without tuning. The more is asked of a token, the fewer are taken, the fewer are wrong.

    Where the first token of a step is open, what follows is not known, and no unit of the text teaches a placeholder to doubt.
    """
    found = [said(tuned, f"search=lud:most=2,alpha={alpha}") for alpha in (0.5, 0.9, 0.999, 1.01)]
    speeds, wrong = [speed for speed, _ in found], [impossible(texts) for _, texts in found]
    assert speeds == sorted(speeds, reverse=True) and wrong == sorted(wrong, reverse=True)
    assert speeds[1] > 1.25 and speeds[3] == 1.0
    assert wrong[1] > wrong[2] > 0 and found[3][1] == said(tuned, None)[1]
    untuned = widened(bigrams(*MIX)).double().eval()
    assert said(untuned, "search=lud:most=2,alpha=0.9")[0] < speeds[1] - 0.2


def impossible(texts):
    """The share of pairs of tokens that the table has not."""
    return np.mean([max(a, b) >= VOCAB or table(MIX)[a, b] == 0 for tokens in texts for a, b in pairwise(tokens)])


def test_verified_it_is_the_tuned_models_own_text(tuned):
    speed, texts = said(tuned, "draft=lud:most=2")
    assert texts == said(tuned, None)[1] and impossible(texts) == 0
    last, same = said(tuned, "draft=lud:most=2,behind=last")
    assert same == texts and 1 < last <= speed and speed > 1.15


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_placeholder_stays_in_the_cache(temperature):
    assert caches.rounds(plan(small_model(), draft="draft=lud:alpha=0"), Law.of(temperature=temperature), 12) > 4
    made = plan(small_model(), draft="search=lud:alpha=0.3")
    batch = [Sequence(p, limit=12, context=64, law=Law.of(temperature=temperature)) for p in caches.PROMPTS]
    for step in run(made, batch):
        if not step.sequence.finished:
            lanes = made.search.lanes
            place = next(i for i, s in enumerate(lanes.held) if s is step.sequence)
            assert lanes.cache.lengths[place] == len(step.sequence.ids) - len(step.tokens)
    caches.fresh(lanes, [s.ids for s in lanes.held])


@torch.no_grad()
def test_both_losses_weigh_the_same_and_units_in_one_pass_are_those_of_many():
    model, many = widened(bigrams(*MIX)).double(), 16
    ids = torch.from_numpy(text(*MIX)[:32]).view(2, 16)
    batch = {"ids_BT": ids, "logits": (logits := bigrams(*MIX)(ids, logits="all").scores)}
    alone, tokens = lexical.loss(model, batch, alpha=1.1, most=3, many=many)
    both, _ = lexical.loss(model, batch, alpha=0.9, most=3, many=many)
    nats = []
    for row, logits_TV in zip(ids, logits, strict=True):
        p_T = logits_TV[:-1].softmax(-1).gather(-1, row[1:, None])[:, 0]
        for at, size in units([False, *(p_T >= 0.9).tolist()], 3):
            if at and size > 1:
                read = torch.cat((row[:at], torch.full((size - 1,), VOCAB)))
                said = model(read[None], logits="all").scores[0, at:].log_softmax(-1)
                nats += (-said.gather(-1, row[at + 1 : at + size, None])).flatten().tolist()
    assert tokens == 30 and len(nats) > 8
    assert float(both) == pytest.approx(float(alone) + 30 * np.mean(nats), rel=1e-5)
    with pytest.raises(UsageError, match="alpha lies"):
        Recipe(alpha=2.0)
