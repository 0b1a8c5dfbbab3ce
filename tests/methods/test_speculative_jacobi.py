"""Speculative Jacobi: exact over several rounds, with guesses drawn anew; greedy it is Jacobi; what breaks it."""

from itertools import product

import pytest
import torch

from lithe import registry
from lithe.contracts.branches import outcomes
from lithe.contracts.small import small_model
from lithe.decode.loop import Round, run
from lithe.decode.plan import plan
from lithe.decode.told import Told
from lithe.ops import accept
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.methods.measure import made, seen, sequence, setting, tokens_per_pass

MODULE = registry.find("speculative_jacobi").module
LAW = Law.of(temperature=1.0)
# A model of two tokens: the law of the next one by the last two.
LOGITS = {pair: torch.randn(2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 2
          for i, pair in enumerate(product(range(2), repeat=2))}


def error(**knobs) -> float:
    """Largest error of the chance of a text of three tokens: every way that chance can fall, several rounds each."""
    method = MODULE.Method(MODULE.Knobs(**knobs), small_model(vocab=2, context=16))

    def text(dice):
        s = Sequence([0, 1], limit=9, context=16, law=LAW)
        s.dice = dice
        method.start([s])
        while len(s.ids) < 5:
            (tree,) = method.propose([s], [4 - len(s.ids)])
            tokens = s.ids + tree.tokens[1:]
            scores = torch.stack([LOGITS[tuple(tokens[i - 2 : i])] for i in range(len(s.ids), len(tokens) + 1)])
            walk = accept.walk(tree, scores, accept.rejection, dice)
            for token in [*(tree.tokens[node] for node in walk.path), walk.token]:
                s.push(token)
            method.observe([Round(s, tree, walk, Told(scores), {}, len(tree))])
        return tuple(s.ids[2:])

    found = outcomes(text)
    laws = {pair: torch.softmax(row, -1).tolist() for pair, row in LOGITS.items()}
    chance = lambda a, b, c: laws[0, 1][a] * laws[1, a][b] * laws[a, b][c]
    return max(abs(found.get(wanted, 0.0) - chance(*wanted)) for wanted in product(range(2), repeat=3))


@pytest.mark.parametrize("fill", ["random", "repeat", "left"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_three_tokens_have_the_models_law(tokens, fill):
    assert error(tokens=tokens, fill=fill) < 1e-12


def test_the_old_law_of_a_guess_drawn_anew_is_caught(monkeypatch):
    anew = MODULE.Method._drawn_anew

    def stale(self, r):
        first = len(r.walk.path) + 1
        return [MODULE.Slot(slot.token, r.tree.laws.get(first + i - 1, slot.law_V)) for i, slot in enumerate(anew(self, r))]

    monkeypatch.setattr(MODULE.Method, "_drawn_anew", stale)
    assert error(tokens=2) > 0.02


def test_a_token_from_p_after_a_failure_is_caught(monkeypatch):
    monkeypatch.setattr(accept, "residual", lambda p_V, q_V: p_V)
    assert error(tokens=2) > 0.02


def test_greedy_it_corrects_as_jacobi_does():
    draft, s = made("speculative_jacobi", tokens=6), sequence(1, 2, 3)
    (tree,) = draft.propose([s], [99])
    assert len(tree) == 7 and tree.kind == "chain" and not tree.laws
    seen(draft, s, tree, lambda token, node: 10 + node, path=[1, 2])
    (tree,) = draft.propose([s], [99])
    assert tree.tokens[:5] == [12, 13, 14, 15, 16] and len(tree) == 7


def test_every_sampled_guess_keeps_its_law():
    draft = made("speculative_jacobi", tokens=5, fill="repeat")
    s = Sequence([4, 9], limit=99, context=200, law=LAW)
    (tree,) = draft.propose([s], [3])
    assert tree.tokens == [9, 9, 9, 9] and [int(tree.laws[i].argmax()) for i in range(3)] == [9, 9, 9]
    seen(draft, s, tree, lambda token, node: 5)
    (tree,) = draft.propose([s], [99])
    assert len(tree) == 6 and all(float(tree.laws[i][tree.tokens[i + 1]]) > 0 for i in range(5))


def test_sampling_it_keeps_more_than_jacobi():
    model, prompts = setting(6)
    rounds = {}
    for name in ("jacobi", "speculative_jacobi"):
        made_, passes, tokens = plan(model, draft=f"{name}:tokens=8"), 0, 0
        for i, prompt in enumerate(prompts):
            ids = model.tokenizer.encode(prompt)
            for step in run(made_, [Sequence(ids, limit=40, context=1024, law=Law.of(temperature=1.0), seed=i)]):
                passes, tokens = passes + 1, tokens + len(step.tokens)
        rounds[name] = tokens / passes
    assert rounds["speculative_jacobi"] > rounds["jacobi"] > 0.99


def test_corrections_help(monkeypatch):
    model, prompts = setting(6)
    full = tokens_per_pass(model, "speculative_jacobi:tokens=8", prompts)
    monkeypatch.setattr(MODULE.Method, "observe", lambda self, rounds: None)
    assert 1 <= tokens_per_pass(model, "speculative_jacobi:tokens=8", prompts) < full
