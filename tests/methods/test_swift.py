"""SWIFT and drafting by a fixed set of layers: the sets, the search, the tree, and the cache they share with the target."""

import json

import pytest
import torch

from lithe.contracts.small import small_model
from lithe.decode import skips
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import FormatError, UsageError
from lithe.model.cache import PlainCache
from lithe.ops.process import posterior
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.methods import caches
from tests.methods.measure import setting, tokens_per_pass

SEARCHING = "swift:window=4,floor=0,depth=6,stop=1"


@pytest.mark.parametrize("law", [None, Law.of(temperature=0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("spec", [SEARCHING, "draft_verify:threshold=0,ratio=1"])
def test_the_cache_they_share_is_the_targets_after_every_round(spec, law):
    made = plan(small_model(layers=5), draft=spec)
    assert caches.rounds(made, law) > 3
    if spec == SEARCHING:
        assert made.draft.search.tried  # so the trial passes left the cache alone as well


def test_without_skipping_every_draft_is_accepted():
    made = plan(small_model(layers=4), draft="swift:ratio=0,floor=0,siblings=1,depth=5,proposals=0")
    steps = list(run(made, [Sequence([1, 2, 3], limit=25, context=64)]))
    assert all(len(step.tokens) == step.nodes for step in steps) and len(steps) < 6


def test_the_first_set_is_every_odd_layer_and_never_an_end():
    assert skips.even(6, 0.45) == ((1, "attn"), (1, "mlp"), (3, "attn"))
    assert len(skips.even(32, 0.45)) == int(2 * 30 * 0.45)
    assert skips.even(2, 0.9) == ()
    assert {layer for layer, _ in skips.even(9, 1.0)} == set(range(1, 8))


def test_matchness_is_the_share_the_smaller_model_agrees_with():
    model = small_model(layers=4)
    ids, skip = list(range(20)), ((1, "attn"), (2, "mlp"))
    with torch.inference_mode():
        cache = PlainCache.like(model)
        model(torch.tensor([ids[:-1]]), cache=cache)
        cache.commit([19])
        choice = model(torch.tensor([ids]), logits="all").scores[0].argmax(-1).tolist()
        truth = ids[:12] + [0] * 8
        for at in range(12, 20):
            truth[at] = choice[at - 1]
        assert skips.matchness(model, cache, 0, ids[:12] + truth[12:13], (), 1) in (0.0, 1.0)
        # What the window holds must be read anew: the copy is cut back before it.
        again = PlainCache.like(model)
        model(torch.tensor([truth[:-1]]), cache=again)
        again.commit([19])
        low = skips.matchness(model, again, 0, truth, skip, 8)
        kept = PlainCache.like(model)
        model(torch.tensor([truth[:11]]), cache=kept)
        kept.commit([11])
        out = model(torch.tensor([truth[11:-1]]), cache=kept, skip=skip, logits="all").scores[0].argmax(-1).tolist()
        assert low == sum(a == b for a, b in zip(out, truth[12:], strict=True)) / 8


def found(every: int, seed: int) -> int:
    """Proposals until the best of the sets of three is found, where each part has its own harm."""
    search = skips.Search(skips.even(10, 0.2), 10, every=every, stop=0.999, patience=10_000, most=400)
    search.dice.seed(seed)
    harm = {part: i / 15 for i, part in enumerate(search.parts)}
    while not search.done:
        skip = search.propose()
        search.tell(skip, 1 - (sum(harm[part] for part in skip) - 0.2) / 3)
        assert len(skip) == 3 and search.score == max(score for _, score in search.tried)
    return len(search.tried)


def test_the_search_finds_the_best_set_and_bayes_finds_it_sooner():
    mixed, random = [found(4, seed) for seed in range(3)], [found(10_000, seed) for seed in range(3)]
    assert max(mixed) < 400 and sum(mixed) < sum(random)


def test_it_stops_by_each_of_its_rules():
    rules = dict(every=25, stop=0.9, patience=5, most=9)
    for scores, tried in (([0.5, 0.95], 2), ([0.5] * 9, 6), ([n / 20 for n in range(20)], 9)):
        search = skips.Search(skips.even(6, 0.45), 6, **rules)
        for score in scores:
            if search.done:
                break
            search.tell(search.propose(), score)
        assert search.done and len(search.tried) == tried
    assert skips.Search(skips.even(6, 1.0), 6, **rules).done  # nothing to choose


def test_the_process_passes_through_what_was_seen_and_doubts_what_was_not():
    x_ND = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    mean, deviation = posterior(x_ND, torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64), torch.tensor([[1.0], [9.0]]).double(),
                                noise=1e-6)
    assert abs(mean[0] - 1) < 1e-2 and deviation[0] < 0.01 < deviation[1]


def test_widths_are_the_papers_and_unsure_drafts_stop():
    draft = plan(small_model(layers=4), draft="swift").draft
    assert [draft._width(sure, True) for sure in (0.96, 0.9, 0.6, 0.3)] == [3, 5, 8, 10]
    assert [draft._width(sure, False) for sure in (0.96, 0.9, 0.6, 0.3)] == [1, 3, 5, 10]
    made = plan(small_model(layers=4, scale=0.1), draft="swift")  # never sure: one level a round
    for step in run(made, [Sequence([1, 2], limit=12, context=64)]):
        assert step.nodes in (1, 11)


def test_a_set_is_kept_and_read_again(tmp_path):
    file = tmp_path / "set.json"
    model = small_model(layers=5)
    made = plan(model, draft=f"swift:window=4,proposals=3,stop=1,file={file}")
    list(run(made, [Sequence([1, 2], limit=40, context=64)]))
    best = made.draft.search.best
    assert json.loads(file.read_text())["skip"] == [list(part) for part in best]
    assert plan(model, draft=f"draft_verify:file={file}").draft.skip == best
    with pytest.raises(FormatError, match="of 4 layers"):
        plan(small_model(layers=4), draft=f"draft_verify:file={file}")
    for text in ('{"layers": 5, "skip": [[0, "attn"]]}', '{"layers": 5, "skip": [[1, "head"]]}', '{"layers": 5}', "[", "[1]"):
        file.write_text(text)
        with pytest.raises(FormatError):
            plan(model, draft=f"draft_verify:file={file}")
    with pytest.raises(UsageError):
        plan(model, draft=f"draft_verify:file={tmp_path / 'gone.json'}")


def test_the_threshold_rises_on_rejections_and_falls_on_success():
    draft = plan(small_model(layers=4), draft="draft_verify").draft
    draft._learn(0.0, False)
    assert draft.floor == pytest.approx(0.6 + 0.1 * 0.01)
    for _ in range(20):
        draft._learn(1.0, True)  # as long as it may be: no reason to lower it
    before = draft.floor
    draft._learn(1.0, False)
    assert draft.floor == pytest.approx(before - 0.1 * 0.01)


def test_the_fewer_layers_are_missed_the_more_is_accepted():
    """The control of both methods: nothing but the number of skipped parts changes."""
    model, prompts = setting(4)
    few, many = (tokens_per_pass(model, f"draft_verify:ratio={ratio},threshold=0,adaptive=false,tokens=4", prompts, 32)
                 for ratio in (0.3, 1.0))
    assert few > many


def test_it_drafts_for_requests_that_end_in_the_middle():
    model, _ = setting(1)
    made = plan(model, draft="swift:floor=0")
    sequence = request(model, "Once upon a time", max_tokens=3)
    assert sum(len(step.tokens) for step in run(made, [sequence])) == len(sequence.tokens) <= 3
