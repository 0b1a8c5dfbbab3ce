"""PPD: trees built for what is expected, and prompt tokens that make a real model foretell itself."""

import numpy as np
import pytest
import torch

import lithe
from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode import beside
from lithe.model.runtime import CostCurve, Runtime
from lithe.train.learn import Lesson, learn

method = registry.find("ppd").module
RATES = [[0.5, 0.2, 0.1], [0.3, 0.15, 0.1], [0.2, 0.1, 0.05]]


def simulated(states, rates, rounds=200_000):
    """Tokens a pass, drawn: at each depth the token of some rank is right, or none; the walk takes what the tree holds."""
    dice, n, tokens = np.random.default_rng(0), 0, 0
    sums = [np.cumsum(row) for row in rates]
    right = [np.searchsorted(row, dice.random(rounds)) for row in sums]
    for turn in range(rounds):
        path, held = (), set(states[n].paths)
        while len(path) < len(rates) and (*path, int(right[len(path)][turn])) in held:
            path = (*path, int(right[len(path)][turn]))
        tokens += len(path) + 1
        n = states[n].ghosts[path]
    return tokens / rounds


@pytest.mark.parametrize(("rows", "copies"), [(8, 1), (12, 1), (24, 2)])
def test_states_fit_their_rows_and_give_what_they_promise(rows, copies):
    states, expected, shares = method.best(RATES, copies, rows)
    assert [max((len(path) for path in state.paths), default=0) for state in states] == sorted(
        max((len(path) for path in state.paths), default=0) for state in states) and not states[0].paths
    for state in states:
        assert state.rows == 1 + len(state.paths) + copies * sum(state.ghosts.values()) <= rows
        assert all(path[:-1] in state.ghosts for path in state.paths)
    assert shares.sum() == pytest.approx(1) and simulated(states, RATES, 20_000) == pytest.approx(expected, rel=0.02)


def test_ghosts_stand_where_walks_end():
    """Balanced states beat the same number of rows with ghosts on the root and its first children alone."""
    guesses, rows = 3, 12
    states, expected, _ = method.balanced(RATES, 1, rows, guesses)
    even = [method.State(state.paths, {path: 3 if path in ((), (0,)) else 0 for path in state.ghosts}, 0) for state in states]
    assert expected > simulated(even, RATES, 20_000) + 0.02


def test_more_rows_promise_more_and_the_curve_says_how_many(monkeypatch):
    promised = [method.best(RATES, 1, rows)[1] for rows in (4, 8, 16, 32)]
    assert promised == sorted(promised) and promised[0] > 1.2
    model, sizes = small_model(), []
    for slope in (0.0, 0.05, 1.0):
        curve = CostCurve(rows=(1, 64), medians=(1.0, 1.0 + 63 * slope), spreads=(0.0, 0.0), context=64, threads=model.threads)
        known = Runtime(threads=1, tried={}, curves={model.threads: curve})
        monkeypatch.setattr(method, "stored", lambda model, known=known: known)
        sizes.append(max(state.rows for state in method.sized(RATES, 1, 0, model)[0]))
    assert sizes[0] == 64 and sizes[0] > sizes[1] > sizes[2]


def test_ghost_i_foretells_the_ith_token_after_the_nodes_own():
    """Ghosts that hold the embeddings of the text's own tokens say, step by step, what the target says of that text."""
    model, ids_BT = small_model(), torch.arange(1, 25)[None]
    points_P = beside.points(24, 4, 5, learning=False)
    text = beside.Text(model, model.embed(ids_BT), 0)
    pos_G, seen_GS = beside.reached(points_P, 3, 24)
    rows = torch.cat([model.embed(ids_BT[:, p + 1 : p + 4]) for p in points_P.tolist()], 1)
    for i, (logits, targets) in enumerate(beside.foretold(text.say(rows, pos_G, seen_GS), ids_BT, points_P, 3)):
        assert torch.allclose(logits.log_softmax(-1), text.law(points_P + 1 + i), atol=1e-10)
        assert targets[0].tolist() == [int(ids_BT[0, p + 2 + i]) for p in points_P]


def test_only_the_prompt_tokens_learn_and_each_copy_keeps_to_itself():
    model = small_model()
    heads = method.Heads(method.Knobs(depth=2, copies=3, points=4), model).double()
    assert [p.shape for p in heads.parameters()] == [(6, 32)]
    batch = {"ids_BT": torch.arange(20)[None]}
    heads.loss(batch)[0].backward()
    assert (heads.prompts.grad.abs().sum(1) > 0).all()
    heads.eval()
    before = [logits.detach() for logits, _ in heads.guesses(batch)]
    alone = method.Heads(method.Knobs(depth=2, points=4), model).double().eval()
    said = []
    for copy in range(3):
        alone.prompts.data = heads.prompts.data[2 * copy : 2 * copy + 2]
        said.append([logits.detach() for logits, _ in alone.guesses(batch)])
    for depth in range(2):
        assert torch.allclose(before[depth], torch.stack([one[depth] for one in said]).mean(0), atol=1e-10)


def test_a_short_lesson_brings_them_nearer_to_the_targets_law():
    """On a real model, at places that were not learned from; the further the place, the less there is to know."""
    model = lithe.load("zoo:tiny-draft", fast=False)
    text = "Once upon a time there was a little girl who loved to play in the park. One day she saw a big dog and ran home. "
    ids = np.array(model.tokenizer.encode(text * 24))
    entry = registry.find("ppd")
    lesson = Lesson(steps=12, rows=4, length=48, warmup=2)
    made = learn(entry, entry.knobs(rate=0.05, points=16), model, ids, lesson, quiet=True)
    fresh = method.Heads(entry.knobs(), model)
    other = model.tokenizer.encode("Tom and his mother went to the big park to play with the dog. " * 2)
    batch = {"ids_BT": torch.tensor(other)[None]}
    far = [heads.eval().loss(batch)[0].item() for heads in (made.module, fresh)]
    assert far[0] < 0.8 * far[1]
