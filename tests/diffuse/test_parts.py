"""Shared experts, looking ahead, and the trace, on small random models."""

import json

import pytest
import torch

from lithe import registry
from lithe.cli.trace import page
from lithe.contracts.diffuse import MIXED, PROMPTS, small_model, texts
from lithe.diffuse.loop import run
from lithe.diffuse.plan import plan
from lithe.diffuse.trace import Trace
from lithe.errors import UnsupportedError
from lithe.sampling.sequence import Sequence

FULL_MODEL = ("full", 0)


@pytest.mark.parametrize(("spec", "most"), [("des:share=0.5", 4), ("des:share=0.25", 2), ("des:share=1", 8)])
def test_no_more_experts_run_than_were_chosen(spec, most):
    model = small_model(*MIXED)
    made = plan(model, spec)
    texts(made, 8)
    for each in made.runs:
        assert 0 < each.spent.experts <= most * model.config.layers * each.spent.passes
    free = plan(model)
    texts(free, 8)
    assert most == 8 or sum(r.spent.experts for r in made.runs) < sum(r.spent.experts for r in free.runs)
    assert all(module.among is None for module in made.reader.mixed)  # nothing is left behind on the model


def test_votes_keep_more_of_what_tokens_wanted_than_names_do():
    dice = torch.Generator().manual_seed(0)
    vote, names = (registry.parse(f"des:by={by},share=0.5,each=1") for by in ("vote", "seq"))
    recall = {"vote": 0.0, "names": 0.0}
    for _ in range(50):
        p_BTE = (3 * torch.randn(1, 12, 16, generator=dice)).softmax(-1)
        wanted = torch.zeros_like(p_BTE).scatter(2, p_BTE.topk(2, -1).indices, 1.0).bool()
        few = names.entry.module.Method(names.knobs, small_model(*MIXED)).among(p_BTE)
        knobs = vote.entry.knobs(by="vote", share=float(few.sum()) / 16)
        most = vote.entry.module.Method(knobs, small_model(*MIXED)).among(p_BTE)
        assert int(few.sum()) == int(most.sum())
        recall["vote"] += float((wanted & most).sum() / wanted.sum())
        recall["names"] += float((wanted & few).sum() / wanted.sum())
    assert recall["vote"] >= recall["names"]


def test_sharing_needs_experts():
    with pytest.raises(UnsupportedError, match="experts"):
        plan(small_model(*FULL_MODEL), "des")


def test_looking_ahead_takes_the_value_whose_canvas_is_best():
    model = small_model(*FULL_MODEL)
    made, greedy = plan(model, "look_ahead:floor=0.9999"), plan(model, "look_ahead:floor=0.9999,values=1")
    assert len(texts(made, 12)[0]) == 12
    texts(greedy, 12)
    for each in (*made.runs, *greedy.runs):
        assert each.spent.passes < 12  # two tokens at least where it stalls
    assert sum(r.spent.rows for r in made.runs) > sum(r.spent.rows for r in greedy.runs)
    assert texts(plan(model, "look_ahead:floor=0.9999,stall=0"), 12) == texts(plan(model, "confident:floor=0.9999"), 12)


def test_bits_of_a_round_are_bounded():
    """Rounds hold at least all bits over the most of a round: what confident decoding commits is almost free."""
    model = small_model(*FULL_MODEL)
    for spec in ("confident:floor=0.5", "ete:floor=0.5", "look_ahead:floor=0.5"):
        made = plan(model, spec)
        texts(made, 14)
        for each in made.runs:
            canvas = each.canvas
            bits = -canvas.sure_T[canvas.prompt :].log()
            when = canvas.when_T[canvas.prompt :]
            rounds = torch.zeros(int(when.max()) + 1, dtype=torch.float64).index_add_(0, when, bits)
            assert int(when.max()) >= float(bits.sum() / rounds.max()) - 1e-9


def test_a_trace_tells_every_place_once_and_what_changed():
    model, seen = small_model(*FULL_MODEL), Trace()
    made = plan(model, "steady:tokens=3")
    made.watch = seen.see
    list(run(made, [Sequence(PROMPTS[0], limit=10, context=64)]))
    found = seen.end().json(lambda token: f"<{token}></script>")
    assert sorted(place for each in found["passes"] for place in each["committed"]) == list(range(3, 13))
    assert [len(each["committed"]) for each in found["passes"]] == [3, 3, 3, 1]
    canvas = made.runs[0].canvas
    first = found["passes"][0]["guessed"]
    assert len(first) == 10 and all(0 < sure <= 1 for _, sure in first.values())
    moved = [place for place, (word, _) in found["passes"][1]["guessed"].items() if first[place][0] != word]
    assert found["passes"][1]["revised"] == moved
    assert found["words"][3] == f"<{int(canvas.ids_T[3])}></script>"
    text = page(found | {"model": "<m>", "method": "x"})
    assert text.count("</script>") == 1 and "<m>" not in text  # no word ends the script
    data = text.split("const data = ")[1].split(", turn = document")[0]
    assert json.loads(data)["prompt"] == 3
