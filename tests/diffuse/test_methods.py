"""Methods against what their papers say, by exact rules and planted laws."""

import pytest
import torch

from lithe.contracts.diffuse import PROMPTS, small_model, texts
from lithe.diffuse.canvas import Canvas, Guess
from lithe.diffuse.loop import run
from lithe.diffuse.plan import plan
from lithe.diffuse.revise.s2d2 import one_by_one
from lithe.errors import UnsupportedError, UsageError
from lithe.model.mask import FULL
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

FULL_MODEL, BLOCKS = ("full", 0), ("blocks", 4)


def canvas(places=12, prompt=2, eos=()):
    return Canvas.of(Sequence(range(1, 1 + prompt), limit=places, context=64, eos=eos), 31)


def guess(sure, tokens=None, start=2):
    """A guess that is sure of each place's token by so much, the rest spread over the others."""
    sure_P = torch.tensor(sure, dtype=torch.float64)
    tokens_P = torch.tensor(tokens or [5] * len(sure))
    law_PV = ((1 - sure_P) / 30)[:, None].repeat(1, 31)
    law_PV.scatter_(1, tokens_P[:, None], sure_P[:, None])
    return Guess(torch.arange(start, start + len(sure)), law_PV.log(), tokens_P)


def chosen(method, made, where=None, block=(2, 14)):
    kit = plan(small_model(*FULL_MODEL), method).kit()
    return kit.unmask.select(where or canvas(), made, block).nonzero().flatten().tolist()


def test_localleap_relaxes_around_anchors_only():
    made = guess([0.8, 0.5, 0.95, 0.76, 0.7, 0.6, 0.76, 0.76])
    assert chosen("localleap:radius=2", made) == [0, 2, 3]
    assert chosen("localleap:radius=0", made) == chosen("confident", made) == [2]
    assert chosen("localleap", guess([0.8, 0.5, 0.85])) == [2]  # no anchor: the surest alone


def test_localleap_without_relaxation_is_the_threshold():
    model = small_model(*FULL_MODEL)
    for spec in ("localleap:radius=0", "localleap:relaxed=0.9"):
        made, plain = plan(model, spec), plan(model, "confident")
        assert texts(made) == texts(plain)
        assert [r.spent.rounds for r in made.runs] == [r.spent.rounds for r in plain.runs]


def test_factored_and_entropy_budget_stop_where_doubt_is_spent():
    # 3 * 0.1 < 1 but 4 * 0.3 > 1
    assert chosen("factored", guess([0.95, 0.9, 0.7, 0.2])) == [0, 1]
    made = guess([0.999, 0.99, 0.6, 0.3])
    few, more = chosen("entropy_budget:budget=0.05", made), chosen("entropy_budget:budget=0.5", made)
    assert few == [0, 1] and set(few) < set(more)


def test_cad_bars_early_ends_and_caps_steps():
    made = guess([0.99, 0.96, 0.97], tokens=[7, 5, 5])
    where = canvas(eos=[7])
    assert chosen("cad", made, where) == [1, 2]  # the end is barred until 40 % is committed
    assert chosen("cad:early=0", made, where) == [0, 1, 2]
    assert chosen("cad:most=1,early=0", made, where) == [0]
    assert chosen("cad:floor=1.01,steps=1", made, where) == [0, 1, 2]


def test_ends_are_held_back_early_and_steps_double():
    made, where = guess([0.9, 0.5], tokens=[7, 5]), canvas(eos=[7])
    assert chosen("eoser:low=0.4", made, where) == [1]
    assert chosen("eoser:low=1", made, where) == [0]
    model = small_model(*FULL_MODEL)
    for length, passes in ((16, 4), (32, 5)):
        made = plan(model, "eoser:ascending=true")
        batch = [Sequence([1, 2], limit=length, context=64)]
        list(run(made, batch))
        assert made.runs[0].spent.passes == passes and made.runs[0].spent.rounds[:3] == [1, 2, 4]


def test_agreement_of_steps_widens():
    kit = plan(small_model(*FULL_MODEL), "ccd:warm=0").kit()
    where, made = canvas(), guess([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    first = kit.unmask.select(where, made, (2, 14))
    assert int(first.sum()) == 1  # nothing to agree with yet
    where.commit(made.places_P[first], made.tokens_P[first])
    again = made.at(~first)
    assert int(kit.unmask.select(where, again, (2, 14)).sum()) > 1
    moved = Guess(again.places_P, again.logits_PV, again.tokens_P + 1)
    other = plan(small_model(*FULL_MODEL), "ccd:warm=0").kit()
    other.unmask.select(canvas(), made, (2, 14))
    assert int(other.unmask.select(where, moved, (2, 14)).sum()) == 1  # tokens that moved do not agree


def test_exploring_reaches_ahead_and_decides_what_stalls():
    kit = plan(small_model(*FULL_MODEL), "ete").kit()
    assert kit.unmask.reach(canvas(), (2, 6)) == (2, 10)
    made = guess([0.91, 0.3, 0.5, 0.4, 0.93, 0.91])
    assert kit.unmask.select(canvas(), made, (2, 6)).nonzero().flatten().tolist() == [0, 4]  # 0.91 is too little one block on
    stalled = guess([0.6, 0.2, 0.5, 0.4, 0.3, 0.3])
    assert kit.unmask.select(canvas(), stalled, (2, 6)).nonzero().flatten().tolist() == [0, 1]


def test_a_policy_that_reaches_nowhere_ahead_is_the_threshold():
    model = small_model(*FULL_MODEL)
    made, plain = plan(model, "ete:ahead=0,stall=0 + equal_blocks:size=5"), plan(model, "confident + equal_blocks:size=5")
    assert texts(made) == texts(plain) and [r.spent.rounds for r in made.runs] == [r.spent.rounds for r in plain.runs]


def test_end_of_text_shortens_the_canvas():
    where, stop = canvas(eos=[7]), plan(small_model(*FULL_MODEL), "end_of_text").kit().stop
    assert stop.cut(where) is None
    where.commit(torch.tensor([9, 6]), torch.tensor([7, 7]))
    assert stop.cut(where) == 7
    rows, passes = 0, 0
    for seed in range(4):
        model = small_model(*FULL_MODEL, seed=seed)
        made = plan(model, "end_of_text")
        list(run(made, [Sequence(PROMPTS[0], limit=24, context=64, eos={texts(plan(model), 24)[0][5]})]))
        rows, passes = rows + made.runs[0].spent.rows, passes + made.runs[0].spent.passes
        assert int(made.runs[0].canvas.ids_T[-1]) in made.runs[0].canvas.sequence.eos or made.runs[0].canvas.end == 27
    assert rows < 27 * passes  # later passes are shorter


@pytest.mark.parametrize("drafts", [2, 4, 8])
def test_nested_drafts_save_passes_and_change_nothing(drafts):
    fewer = 0
    for seed in range(6):
        model = small_model(*FULL_MODEL, seed=seed)
        for spec in (f"freedave:drafts={drafts}", f"freedave:drafts={drafts} + equal_blocks:size=5"):
            made, plain = plan(model, spec), plan(model, *spec.split(" + ")[1:])
            assert texts(made, 20) == texts(plain, 20)
            fewer += sum(b.spent.passes - a.spent.passes for a, b in zip(made.runs, plain.runs, strict=True))
    assert fewer > 0


def one_place_a_pass(model, prompt, limit):
    """A block model read with blocks of one place: each from all that lies before it."""
    ids, size = list(prompt), model.config.block
    while len(ids) < len(prompt) + limit:
        start = len(ids) - len(ids) % size
        query = one_by_one(torch.tensor([*ids, 31]), 31, (start, len(ids) + 1), size)
        logits = model(query.variants_RT, pos_BT=query.places_T[None], mask=query.mask, logits="all").scores[0, -1]
        logits[31] = float("-inf")
        ids.append(int(logits.argmax()))
    return ids[len(prompt):]


def test_verified_blocks_are_what_one_place_a_pass_gives():
    for seed in range(4):
        model = small_model(*BLOCKS, seed=seed)
        made = plan(model, "s2d2:route=always")
        assert texts(made, 14) == [one_place_a_pass(model, prompt, 14) for prompt in PROMPTS]


def test_sampled_blocks_have_the_law_of_one_place_a_pass():
    model = small_model(*BLOCKS, sharp=1.5)
    query = one_by_one(torch.tensor([1, 2, 3, 4, 31]), 31, (4, 5), 4)
    logits = model(query.variants_RT, pos_BT=query.places_T[None], mask=query.mask, logits="all").scores[0, -1]
    logits[31] = float("-inf")
    law = logits.softmax(-1)
    made = plan(model, "s2d2:route=always")
    batch = [Sequence([1, 2, 3, 4], limit=2, context=64, law=Law.of(temperature=1.0), seed=seed) for seed in range(1500)]
    list(run(made, batch))
    counts = torch.bincount(torch.tensor([s.tokens[0] for s in batch]), minlength=32)
    common = law * 1500 >= 5
    chi = ((counts - law * 1500)[common] ** 2 / (law * 1500)[common]).sum()
    assert chi < 2 * int(common.sum())


def test_what_does_not_go_together_is_refused():
    full, blocks = small_model(*FULL_MODEL), small_model(*BLOCKS)
    for model, spec, why in ((full, "s2d2", "blocks"), (blocks, "dual_cache", "full"), 
                             (full, "freedave + confident", "no unmask"), (blocks, "s2d2 + prefix_cache", "no refresh")):
        with pytest.raises(UnsupportedError, match=why):
            plan(model, spec)
    with pytest.raises(UsageError, match="filled twice"):
        plan(full, "confident", "steady")
    with pytest.raises(UsageError, match="no slot"):
        plan(full, "prompt_lookup")


@pytest.mark.parametrize("spec", ["prefix_cache", "dual_cache", "window_diffusion:active=4,window=8,every=4"])
def test_caches_run_fewer_rows_and_compose(spec):
    model = small_model(*FULL_MODEL)
    plain, made = plan(model, "confident + equal_blocks:size=6"), plan(model, f"{spec} + confident + equal_blocks:size=6")
    assert len(texts(made, 24)[0]) == len(texts(plain, 24)[0]) == 24
    assert sum(r.spent.rows for r in made.runs) < sum(r.spent.rows for r in plain.runs)
    assert sum(r.spent.keys for r in made.runs) > 0


@pytest.mark.parametrize("spec", ["prefix_cache", "dual_cache"])
@pytest.mark.parametrize("blocks", ["equal_blocks:size=6", "adablock:size=6,floor=2"])
def test_a_block_of_one_pass_leaves_nothing_stale_to_the_next(spec, blocks):
    """Each pass is its block's first, which sees all as it is: so a cache changes no text."""
    for seed in range(4):
        model = small_model(*FULL_MODEL, seed=seed)
        plain, made = (plan(model, f"{more}steady:tokens=6 + {blocks}") for more in ("", f"{spec} + "))
        assert texts(plain, 24) == texts(made, 24)
        assert [r.spent.rows for r in made.runs] == [r.spent.rows for r in plain.runs]


def test_a_cache_that_recomputes_prompt_and_canvas_is_none():
    model = small_model(*FULL_MODEL)
    plain, whole, block = (plan(model, "steady:tokens=2", *more) for more in ([], ["dual_cache:prompt=true"], ["dual_cache"]))
    assert texts(whole, 12) == texts(plain, 12) != texts(block, 12)  # one block: nothing is left to be stale


def test_a_cached_block_model_says_what_an_uncached_one_does():
    for seed in range(3):
        model = small_model(*BLOCKS, seed=seed)
        for unmask in ("steady:tokens=2", "confident:floor=0.5"):
            kept, plain = plan(model, f"prefix_cache + {unmask}"), plan(model, unmask)
            assert texts(kept, 21) == texts(plain, 21)
            assert sum(r.spent.rows for r in kept.runs) < sum(r.spent.rows for r in plain.runs)


def test_every_pass_sees_the_whole_canvas_as_the_model_was_trained_to():
    model = small_model(*FULL_MODEL)
    made = plan(model, "steady:tokens=24")  # one step: the likeliest token of each place
    found = texts(made, 9, prompts=PROMPTS[:1])[0]
    ids = torch.tensor([[*PROMPTS[0], *[31] * 9]])
    logits = model(ids, mask=FULL, logits="all").scores[0, 3:]
    logits[:, 31] = float("-inf")
    assert found == logits.argmax(-1).tolist()
