"""PEARL: who works when, what is thrown away, and that rounds overlapped cost less than rounds in turn."""

from itertools import pairwise

import pytest
import torch

from lithe.contracts.draft import texts
from lithe.contracts.small import small_model
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.errors import LitheError
from lithe.model.checkpoint import save
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence
from tests.methods.caches import fresh, rounds

PROMPTS = ([1], [3, 4, 5, 3, 4], list(range(20)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Drafts: the target itself, one that is often right, and one that is not."""
    found = {}
    for name, noise in (("same", 0.0), ("near", 0.03), ("far", 1.0)):
        model, dice = small_model.__wrapped__(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * weight.std() * torch.randn(weight.shape, generator=dice, dtype=weight.dtype) if noise else 0.0
        found[name] = tmp_path_factory.mktemp(name) / "model"
        save(model, found[name], dtype=torch.float64)
    return found


def trace(spec, prompt, tokens=40):
    """Of each round: rows pending, tokens emitted, tokens drafted meanwhile."""
    made, found = plan(small_model(), draft=spec), []
    sequence = Sequence(prompt, limit=tokens, context=64)
    while not sequence.finished:
        done = step(made, [sequence])[0]
        held = made.draft.held.get(sequence.number)
        found.append((done.nodes - 1, len(done.tokens), 0 if held is None or held.new is None else len(held.new) - 1))
    return found


def test_with_a_draft_that_is_always_right_nothing_is_ever_thrown_away(folders):
    found = trace(f"pearl:model={folders['same']},tokens=4", [1, 2, 3])
    assert [round[:2] for round in found[:4]] == [(0, 1), (3, 4), (3, 4), (3, 4)]  # one tested alone, then three and the next
    assert all(drafted == 4 for _, _, drafted in found[:-2])  # the draft is never idle


def test_a_refused_guess_costs_what_was_guessed_ahead(folders):
    found = trace(f"pearl:model={folders['far']},tokens=4", [3, 4, 5, 3, 4])
    for (pending, emitted, _), (after, _, _) in pairwise(found):
        assert emitted <= pending + 1
        assert after in (0, 3) and (after == 0 or emitted == pending + 1)
    assert any(pending and emitted <= pending for pending, emitted, _ in found) or max(p for p, _, _ in found) == 0


def test_what_comes_out_is_the_targets(folders):
    plain = texts(plan(small_model()), PROMPTS, 40)
    for name, folder in folders.items():
        for tokens in (1, 3, 9):
            assert texts(plan(small_model(), draft=f"pearl:model={folder},tokens={tokens}"), PROMPTS, 40) == plain, name


def test_both_caches_hold_what_was_read(folders):
    made = plan(small_model(), draft=f"pearl:model={folders['near']},tokens=3")
    assert rounds(made) > 3
    made.draft.lanes.sync(made.draft.lanes.held)
    fresh(made.draft.lanes, made.draft.lanes.ids)


def modelled(spec, draft_s, target_s, gamma):
    """Seconds by the clock of a machine on which both run at once, and tokens."""
    made, seconds, tokens = plan(small_model(), draft=spec), 0.0, 0
    for prompt in PROMPTS:
        for done in run(made, [Sequence(prompt, limit=40, context=64)]):
            both = spec.startswith("pearl")
            seconds += max(gamma * draft_s, target_s) if both else (done.nodes - 1) * draft_s + target_s
            tokens += len(done.tokens)
    return seconds / tokens


def test_overlapped_rounds_cost_less_than_rounds_in_turn_and_carrying_on_is_what_pays(folders):
    """At a draft four times as fast. In turn: the best of several lengths. Without carrying on, every round tests one token."""
    near = folders["near"]
    ahead = modelled(f"pearl:model={near},tokens=4", 1.0, 4.0, 4)
    turns = min(modelled(f"draft_model:model={near},tokens={n}", 1.0, 4.0, n) for n in (1, 2, 3, 4, 6, 8))
    alone = modelled(f"pearl:model={near},tokens=4,post=false", 1.0, 4.0, 4)
    assert ahead < turns < alone == 4.0


def test_a_draft_may_add_one_leaf_and_nothing_else(folders):
    made = plan(small_model(), draft=f"pearl:model={folders['same']},tokens=2")
    for change in (lambda tree: [tree.add(1, 0), tree.add(2, 0)], lambda tree: tree.tokens.__setitem__(0, 9)):
        made.draft.late = lambda sequences, trees, change=change: change(trees[0])
        with pytest.raises(LitheError, match="one leaf"):
            step(made, [Sequence([1, 2], limit=9, context=64)])
    assert isinstance(made.draft.propose([Sequence([1], limit=4, context=64)], [3])[0], Tree)
