"""RAPID: what the draft reads, its own cache, and the shifted law, which is not the target's."""

import pytest
import torch

from lithe import registry
from lithe.contracts.accept import EXACT, everywhere, law_error, propose, random_pair, worst
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import LitheError
from lithe.ops.accept import law, shifted
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.methods import caches

SHORT = "rapid:budget=16,chunk=4,query=4,least=-1"
LONG = [list(range(3, 31)), [5, 6] * 12, [9, 8, 7]]


def rule(**knobs):
    entry = registry.find("rapid", "accept")
    return entry.module.Method(entry.knobs(**knobs))


def chains(draft, dice, width, depth):
    return propose("chain", draft, dice, width, depth)


def test_the_draft_reads_the_best_chunks_in_order_and_then_the_question():
    prompt = [1, 2, 1, 2, 20, 21, 22, 23, 9, 9, 9, 9, 20, 21, 22, 23, 5, 6, 7, 8, 20, 21, 22, 23]
    small = "rapid:budget=12,chunk=4,query=4"
    places = lambda choose, least=-1.0: plan(small_model(), draft=f"{small},choose={choose},least={least}").draft.chosen(prompt)
    assert places("cosine") == [*range(4, 8), *range(12, 16), *range(20, 24)]  # the two that say the same
    assert places("first") == [*range(8), *range(20, 24)]
    assert places("bm25") == places("cosine")
    assert places("random") == places("random") and places("random")[-4:] == [20, 21, 22, 23]
    assert places("cosine", 1.0)[-4:] == [20, 21, 22, 23] and len(places("cosine", 0.99)) == 12
    assert plan(small_model(), draft="rapid").draft.chosen(prompt) == list(range(24))


def test_rare_tokens_weigh_more_than_common_ones_and_long_chunks_less():
    bm25 = registry.find("rapid", "draft").module.bm25
    assert (told := bm25([[1, 2], [1, 3], [1, 4]], {1, 4}))[2] > told[0] == told[1] > 0
    assert bm25([[1, 2], [3, 4], [1, 2, 5, 6, 7, 8]], {1})[0] > bm25([[1, 2], [3, 4], [1, 2, 5, 6, 7, 8]], {1})[2]
    assert bm25([[1], [2]], {9}) == [0, 0]


@pytest.mark.parametrize("law_", [None, Law.of(temperature=0.9)], ids=["greedy", "sampled"])
def test_both_caches_hold_what_their_texts_say(law_):
    model = small_model(layers=2)
    made = plan(model, draft=SHORT)
    batch = [Sequence(p, limit=20, context=64, law=law_, seed=i) for i, p in enumerate(LONG)]
    with torch.inference_mode():
        for _ in run(made, batch):
            alive = [s for s in made.lanes.held if not s.finished]
            if len(alive) == len(made.lanes.held):
                caches.fresh(made.lanes, [s.ids for s in alive])
                caches.fresh(made.draft.lanes, made.draft.lanes.ids)
    shorts = [16, 16, 3]
    assert [s.prompt for s in batch] == [28, 24, 3] and all(len(s.tokens) == 20 for s in batch)
    assert [len(made.draft.chosen(p)) for p in LONG] == shorts


def test_output_stays_the_targets_whatever_the_draft_reads():
    model = small_model(layers=2)
    for choose in ("cosine", "bm25", "first", "random"):
        for prompt in LONG:
            plain, short = (Sequence(prompt, limit=20, context=64) for _ in range(2))
            list(run(plan(model), [plain]))
            list(run(plan(model, draft=f"{SHORT},choose={choose}"), [short]))
            assert plain.tokens == short.tokens


def test_with_the_whole_prompt_in_view_everything_is_accepted():
    steps = list(run(plan(small_model(), draft="rapid:tokens=5"), [Sequence([1, 2, 3], limit=24, context=64)]))
    assert [len(step.tokens) for step in steps] == [6] * 4


def test_without_a_step_the_rule_is_exact():
    assert worst(rule(eta=0).walk, chains, widths=(1,))[0] < EXACT


def test_with_a_step_the_law_is_off_and_more_so_the_larger_it_is():
    p_V, q_V = (torch.tensor(law_, dtype=torch.float64) for law_ in ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5]))
    errors = [law_error(rule(eta=eta).walk, everywhere(p_V), everywhere(q_V), lambda d, c: chains(d, c, 1, 1), 1)
              for eta in (0, 1, 3, 10)]
    assert errors[0] < EXACT and errors == sorted(errors) and errors[-1] > 0.05


def test_the_step_raises_the_law_where_the_draft_says_more():
    for seed in range(40):
        p_V, q_V = random_pair(seed)
        p_V = p_V.clamp_min(1e-3) / p_V.clamp_min(1e-3).sum()
        moved = shifted(p_V.log(), q_V, eta=1e-4, alpha=0.1) - p_V.log()
        inside = q_V >= 0.1 * q_V.max()
        assert torch.equal(moved > 0, inside & (q_V > p_V)) and torch.equal(moved != 0, inside & (q_V != p_V))
        toward = (law(shifted(p_V.log(), q_V, eta=1e-4, alpha=0.0)) - q_V).square().sum()
        assert toward <= (p_V - q_V).square().sum() + 1e-12


def test_the_greedy_form_needs_the_drafts_law_and_changes_the_output():
    model = small_model(layers=2)
    sharp = plan(model, draft=SHORT, accept="rapid:greedy=true,eta=50")
    exact = plan(model, draft=SHORT, accept="rapid:greedy=true,eta=0")
    assert sharp.promises == exact.promises == ("same_law",)  # of sampled requests, for which the rule is not
    texts = []
    for made in (plan(model), exact, sharp):
        batch = [Sequence(prompt, limit=20, context=64) for prompt in LONG]
        list(run(made, batch))
        texts.append([s.tokens for s in batch])
    assert texts[0] == texts[1] != texts[2]
    blind = plan(model, draft="draft_verify:threshold=0", accept="rapid:greedy=true")
    with pytest.raises(LitheError, match="without a law"):
        list(run(blind, [Sequence([1, 2], limit=9, context=64)]))
