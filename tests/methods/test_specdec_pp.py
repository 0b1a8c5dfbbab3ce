"""SpecDec++: a head that says when a draft should stop, and drafts that are stopped."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts import draft as contract
from lithe.contracts.small import small_folder, small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UnsupportedError, UsageError
from lithe.model.checkpoint import save
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train import fitted
from lithe.train.learn import Lesson, learn
from lithe.train.teacher import Teacher, Windows
from tests.methods.bigrams import bigrams, text

SPEC = f"specdec_pp:model={small_folder(32, 64, 7, 3.0)},heads=fresh"
LESSON = Lesson(steps=120, rows=16, length=31, warmup=5)
entry = registry.find("specdec_pp")


@cache
def pair() -> Path:
    """A draft that never says less than two followers are possible, of a target which often is certain."""
    folder = Path(mkdtemp(prefix="lithe-")) / "model"
    save(bigrams(2), folder, dtype=torch.float64)
    return folder


def sizes(spec, prompt=(1, 2, 3), model=None, **law):
    sequence = Sequence(prompt, limit=60, context=64, law=Law.of(**law))
    return [step.nodes - 1 for step in run(plan(model or small_model(), draft=spec), [sequence])]


def test_the_threshold_runs_from_the_shortest_chain_to_the_longest():
    assert set(sizes(f"{SPEC},threshold=0,most=9")[:-3]) == {2}
    assert set(sizes(f"{SPEC},threshold=1,most=9")[:-9]) == {9}
    assert any(2 < size < 9 for size in sizes(f"{SPEC},threshold=0.9,most=9")[:-9])


def test_drafting_stops_on_the_product_of_chances_and_keeps_the_token_that_stops_it():
    made = plan(small_model(), draft=f"{SPEC},threshold=0.5,most=9").draft
    told = iter([0.9, 0.8, 0.6, 0.9])
    made.head = lambda state: torch.tensor([0.0, next(told)]).log()
    batch = [Sequence([1, 2, 3], limit=30, context=64)]
    with torch.inference_mode():
        assert len(made.propose(batch, [20])[0]) == 1 + 3  # 0.9 * 0.8 * 0.6 is below a half


def test_to_drop_the_token_that_stops_it_would_bend_the_law(monkeypatch):
    """The contract's counting, with drafting that stops at a token for what it is: kept it is exact, dropped it is not."""
    target = small_model(vocab=5, context=16, scale=1.0)
    spec = f"specdec_pp:model={small_folder(5, 16, 7, 1.0)},heads=fresh,least=1"
    monkeypatch.setattr(contract, "suited", lambda entry, target: spec)
    monkeypatch.setattr(entry.module.Method, "stop", lambda self, s, tree, state: tree.tokens[-1] in (1, 3))
    contract.check_same_law(entry, 2000)
    propose = entry.module.Method.propose

    def dropping(self, sequences, room):
        trees = propose(self, sequences, room)
        return [tree.cut(depth=9, nodes=len(tree) - (tree.tokens[-1] in (1, 3) and len(tree) > 1)) for tree in trees]

    monkeypatch.setattr(entry.module.Method, "propose", dropping)
    with pytest.raises(AssertionError, match="off the target's law"):
        contract.check_same_law(entry, 2000)
    assert target.config.vocab == 5


def test_the_head_learns_which_tokens_are_accepted(tmp_path):
    """On text kept apart it tells accepted from rejected better than their mean does, and its chances are what comes true."""
    knobs = entry.knobs(model=str(pair()), rate=0.02, reject=1.0)
    made = learn(entry, knobs, bigrams(1, 6), text(1, 6), LESSON, folder=tmp_path / "head", quiet=True).module
    windows = Windows(ids=text(1, 6), rows=16, length=31)
    torch.manual_seed(0)
    with torch.no_grad():
        states, accepted, own = made.lesson(Teacher(bigrams(1, 6), windows, made.signals).batch(windows.held[:16]))
        chance = made(states)[..., 1].exp()[own].double()
    truth = accepted[own].double()
    nats = lambda p: float(-(truth * p.log() + (1 - truth) * (1 - p).log()).mean())
    assert nats(chance) < nats(truth.mean()) - 0.02
    for low in np.arange(0, 1, 0.1):
        met = (chance >= low) & (chance < low + 0.1)
        assert met.sum() < 30 or abs(chance[met].mean() - truth[met].mean()) < 0.1
    loaded = fitted.load("specdec_pp", entry.knobs(heads=str(tmp_path / "head")), bigrams(1, 6), entry.module.Head).module
    assert loaded.knobs.model == str(pair())  # the draft it was fitted to comes with it
    with pytest.raises(UnsupportedError, match="was fitted with model="):
        fitted.load("specdec_pp", entry.knobs(heads=str(tmp_path / "head"), model="other"), bigrams(1, 6), entry.module.Head)


def test_rejected_tokens_weigh_more_and_the_texts_own_do_not_count():
    made = entry.module.Head(entry.knobs(model=str(pair())), bigrams(1, 6))
    states = torch.zeros(1, 4, 32)
    made.lesson = lambda batch: (states, torch.tensor([[1.0, 0.0, 0.25, 0.0]]), torch.tensor([[True, True, True, False]]))
    with torch.no_grad():
        reject, accept = (float(-x) for x in made(states)[0, 0])
    total, count = made.loss({})
    assert count == 3 and total.item() == pytest.approx(accept + 6 * reject + 0.25 * accept + 0.75 * 6 * reject, rel=1e-5)


def test_it_stops_any_draft_of_chains_that_can_be_stopped():
    model = small_model(layers=3)
    spec = "specdec_pp:heads=fresh,threshold=1,most=5,draft=kangaroo(heads=fresh;exit=0)"
    if "kangaroo" in {e.name for e in registry.entries("decode", "draft")}:
        assert set(sizes(spec, model=model)[1:-5]) == {5}
        assert set(sizes(spec.replace("threshold=1", "threshold=0"), model=model)[1:-3]) == {2}
        greedy = contract.texts(plan(model), contract.PROMPTS, 30)
        assert contract.texts(plan(model, draft=spec.replace("=1,", "=0.8,")), contract.PROMPTS, 30) == greedy
    with pytest.raises(UsageError, match="drafts no chain that can be stopped"):
        plan(model, draft="specdec_pp:heads=fresh,draft=prompt_lookup")
