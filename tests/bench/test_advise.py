"""Advice adds up, ranks by what it says it ranks by, and never recommends what does not pay."""

import json

import pytest

from lithe import recipe
from lithe.bench.advise import Advice, Advised, _Trial, advise, candidates, reason
from lithe.bench.ledger import Ledger
from lithe.bench.runner import Contestant
from lithe.cli import run
from lithe.cli.advise import recipe as written
from lithe.contracts.small import small_model
from lithe.decode.loop import run as run_plan
from lithe.model.cache import PlainCache
from lithe.model.curve import CostCurve
from tests.bench.folder import small_text_folder
from tests.bench.methods import FOLLOWS, LOSSY, NEEDY, write

pytestmark = pytest.mark.usefixtures("silence", "one_cache")
PROMPTS = [[1, 2, 3, 1, 2], [4, 5], [9, 8, 9, 8], [6], [1, 2], [7, 7]]

# Drafts only what is never accepted, and takes its time.
SLOW = FOLLOWS.replace("def propose", "def guess_badly") + '''
    def propose(self, sequences, room):
        import time
        time.sleep(0.01)
        return [Tree.chain(s.ids[-1], [(s.ids[-1] + 13) % 20] * min(most, 1)) for s, most in zip(sequences, room)]
'''


@pytest.fixture
def one_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path, follows=FOLLOWS, slow=SLOW, lossy=LOSSY, needy=NEEDY,
                 frank=FOLLOWS.replace('promises=("same_tokens", "same_law"), ', ""))


def test_a_prediction_is_the_sum_of_its_parts(mine):
    found = advise(small_model(), PROMPTS, [mine["follows"], mine["slow"]], max_tokens=24, confirm=0)
    assert {way.method.partition(":")[0] for way in found.ways} == {"follows", "slow"}
    for way in [found.plain, *found.ways]:
        assert way.tokens_per_s == pytest.approx(way.tokens_per_pass / (way.draft_s + way.verify_s + way.walk_s))
        assert way.speedup == pytest.approx(way.tokens_per_s / found.plain.tokens_per_s)
    follows, slow = sorted(found.ways, key=lambda way: way.method)
    assert follows.tokens_per_pass > 1.5 and follows.rows_per_pass > 2 and follows.measured is None
    assert slow.draft_s >= 0.01 and slow.speedup < 1 and "drafting costs" in slow.reason
    assert found.ways[-1] is slow


def test_what_came_out_is_kept(mine, tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl")
    found = advise(small_model(), PROMPTS, [mine["follows"], mine["slow"]], max_tokens=12, trials=2, ledger=book)
    (kept,) = book.read()
    assert kept.suite == "advise" and kept.measured["close"] == found.close and kept.settings["trials"] == 2
    assert kept.measured["errors"].keys() == {mine["follows"], mine["slow"]}


def test_what_never_pays_is_not_recommended_and_what_is_confirmed_was_run(mine):
    found = advise(small_model(), PROMPTS, [mine["slow"]], max_tokens=16, trials=2, confirm=1)
    assert found.best is None and found.ways[0].measured < 1 and found.ways[0].interval[0] < 1
    assert found.ways[0].measured_tokens_per_pass >= 1


def test_lossy_ways_are_considered_only_when_asked(mine):
    assert advise(small_model(), PROMPTS, [mine["frank"]], max_tokens=12, confirm=0).ways == []
    ways = advise(small_model(), PROMPTS, [mine["frank"]], max_tokens=12, confirm=0, lossy=True).ways
    assert not ways[0].lossless and ways[0].passes


def test_what_cannot_run_here_or_breaks_its_promise_says_so_and_comes_last(mine, monkeypatch):
    monkeypatch.setattr(PlainCache, "can", PlainCache.can - {"gather"})
    found = advise(small_model(), PROMPTS, [mine["needy"], mine["lossy"], mine["slow"]], max_tokens=12, trials=2)
    assert found.best is None
    needy, lossy = found.ways[-1], found.ways[-2]
    assert "needs gather" in needy.reason and "against its promise" in lossy.reason


def test_reasons_name_what_decides():
    def way(rows, verify, speedup, tokens=1.2, draft=0.0):
        return Advice(method="m", spec="m", lossless=True, rows_per_pass=rows, verify_s=verify, speedup=speedup,
                      tokens_per_pass=tokens, draft_s=draft)

    assert "drafting costs 50%" in reason(way(2, 1.0, 0.6, draft=1.0), 1.0)
    assert "8 rows costs 2.00" in reason(way(8, 2.0, 0.6), 1.0)
    assert "hardly anything" in reason(way(8, 2.0, 0.5, tokens=1.01), 1.0)
    assert "3.00 tokens a pass" in reason(way(8, 2.0, 1.5, tokens=3.0), 1.0)


def test_a_prediction_knows_nothing_of_held_out_prompts(mine, monkeypatch):
    def clocked(made, sequences):  # a trial whose seconds are always the same
        for step in run_plan(made, sequences):
            step.seconds = dict(prefill=1.0, draft=1e-4, verify=1e-3 * step.nodes, walk=1e-5 * len(step.tokens), observe=2e-5)
            yield step

    monkeypatch.setattr("lithe.bench.advise.run", clocked)
    curve = CostCurve(rows=(1, 8), medians=(1.0, 2.0), spreads=(0.0, 0.0), context=8, threads=1)
    monkeypatch.setattr("lithe.bench.advise.cost_curve", lambda model: curve)
    told, order = [], []
    for held, confirm in ((PROMPTS[2:], 2), ([[3, 3, 3], [4]], 2), (PROMPTS[2:3], 1), ([[8, 9]], 0)):
        def ran(self, course, i, curve, decode=_Trial.decode):
            order.append(f"trial {i}")
            decode(self, course, i, curve)

        with monkeypatch.context() as inside:
            inside.setattr(_Trial, "decode", ran)
            inside.setattr("lithe.bench.runner.Contestant.decode", noted(Contestant.decode, order))
            found = advise(small_model(), PROMPTS[:2] + held, [mine["follows"], mine["slow"]], max_tokens=12, trials=2,
                           confirm=confirm)
        ways = [found.plain, *sorted(found.ways, key=lambda way: way.method)]
        told.append([(way.tokens_per_pass, way.draft_s, way.verify_s, way.walk_s, way.speedup) for way in ways])
    assert told[0] == told[1] == told[2] == told[3]
    assert order[:12] == [*["trial 0"] * 3, *["held 0"] * 3, *["trial 1"] * 3, *["held 1"] * 3]  # in the same minutes


def noted(decode, order):
    def held(self, course, group):
        order.append(f"held {group.start}")
        decode(self, course=course, group=group)

    return held


def test_every_candidate_is_a_spec_in_one_of_several_sizes():
    assert len(set(candidates())) == len(candidates()) > 4
    assert any("model=elsewhere" in text for text in candidates("elsewhere")) or not any("model" in c for c in candidates())


def test_the_verb_writes_a_recipe_that_can_be_read(mine, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox saw a fox.\nthe dog\none and one\n")
    words = [str(small_text_folder()), "--prompts", str(prompts), "--method", mine["follows"], "--max-tokens", "12"]
    assert run(["advise", *words, "--json", "--trials", "1", "--write", str(tmp_path / "plan.toml")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [way["method"].partition(":")[0] for way in told["ways"]] == ["plain", "follows"]
    assert (told["best"] is not None) == ("draft" in recipe.read(str(tmp_path / "plan.toml"), "draft"))
    assert run(["advise", *words, "--write", str(tmp_path / "plan.toml")]) == 2
    assert "there already" in capsys.readouterr().err
    assert run(["advise", *words]) == 0
    assert "advice: " in capsys.readouterr().out


def test_predictions_are_held_against_what_was_measured():
    way = lambda speedup, measured, problem=None: Advice(method="m", spec=f"{speedup}", lossless=True, speedup=speedup,
                                                         measured=measured, problem=problem)
    curve = CostCurve(rows=(1,), medians=(0.001,), spreads=(0.0,), context=4, threads=1)
    found = Advised(curve=curve, plain=way(1.0, None), best=None,
                    ways=[way(1.1, 1.0), way(0.8, 1.0), way(2.0, None), way(5.0, 1.0, "broken")])
    assert {spec: round(error, 3) for spec, error in found.errors.items()} == {"1.1": 0.1, "0.8": -0.2} and found.close == 1
    assert found.json()["close"] == 1


def test_a_plan_of_several_slots_is_written_as_a_recipe_that_says_the_same(tmp_path):
    joined = "dyspec:nodes=4 + draft_model:tokens=4"
    best = Advice(method="both", spec=joined, lossless=True, speedup=2.0)
    curve = CostCurve(rows=(1,), medians=(0.001,), spreads=(0.0,), context=4, threads=1)
    (tmp_path / "plan.toml").write_text(written(Advised(curve=curve, plain=best, best=best, ways=[best]), "zoo:tiny"))
    assert recipe.read(str(tmp_path / "plan.toml"), "draft")["draft"] == joined
    assert any(" + " in text for text in candidates())  # such plans are among what is tried
