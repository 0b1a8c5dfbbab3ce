"""Tree policies: whatever shape they choose, the output is the target's own. Axes: V vocabulary.

A policy is judged with the rule that takes its trees: growth and walk are enumerated together on tables of laws, and run
within the loop over a small draft model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lithe.contracts import draft
from lithe.contracts.accept import EXACT, HARD, ROOT, Model, everywhere, law_error, pair, random_pair, texts_of
from lithe.contracts.branches import Continuous
from lithe.contracts.small import small_model
from lithe.decode.grow import Likeliest, send
from lithe.decode.plan import exact_rule, plan
from lithe.ops.accept import Chance, Dice
from lithe.ops.tree import Tree
from lithe.registry import Entry


def check_same_tokens(entry: Entry) -> None:
    """Greedy output equals plain decoding in ragged batches, with ends inside a tree, up to the full context."""
    target = small_model()
    made = plan(target, draft=draft.suited(entry, target))
    for limit in (1, 17, 1000):
        expected = draft.texts(plan(target), draft.PROMPTS, limit)
        assert draft.texts(made, draft.PROMPTS, limit) == expected, f"a batch differs from plain decoding at limit {limit}"
    ends = {text[len(text) // 2] for text in expected}
    alone = [draft.texts(made, [prompt], 17, ends)[0] for prompt in draft.PROMPTS[:2]]
    assert alone == draft.texts(plan(target), draft.PROMPTS[:2], 17, ends), "alone, or with an end in a tree"


def check_same_law(entry: Entry) -> None:
    """Growth and walk, enumerated, have the target's joint law; two tokens sampled in the loop, counted, have it too.

    What needs noise that has no branches to take one by one is held by counting alone.
    """
    try:
        error, case = worst(entry, **draft.modest(entry))  # type: ignore[arg-type]
    except Continuous:
        draft.check_same_law(entry)
        return
    assert error < EXACT, f"the output's law is off by {error:.3g} at {case}"
    draft.check_same_law(entry, samples=1000)


def check_verbs(entry: Entry) -> None:
    """It grows trees of one kind, within the depth given, by the dice given; for a greedy sequence siblings differ."""
    assert len(entry.card.emits) == 1, "its card must say of one kind of tree that it grows it"
    policy = entry.module.Method(entry.knobs(**draft.modest(entry)))
    law_V = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    for depth in (1, 3):
        for greedy in (False, True):
            state, trees = torch.get_rng_state(), []
            for _ in range(2):
                chance = Likeliest() if greedy else Dice(torch.Generator().manual_seed(depth))
                trees.append(grown(policy, entry.card.emits[0], everywhere(law_V), chance, depth=depth, greedy=greedy))
            tree = trees[0]
            assert str(tree) == str(trees[1]), "the same dice grow different trees"
            assert torch.equal(state, torch.get_rng_state()), "it draws from torch's own generator"
            assert len(tree) > 1 and max(tree.depths) <= depth, "it grows nothing, or deeper than it was told"
            places = [(parent, token) for parent, token in zip(tree.parents, tree.tokens, strict=True)]
            assert not greedy or len(set(places)) == len(tree), "siblings of a greedy sequence hold the same token"


def worst(entry: Entry, *, depths: tuple[int, ...] = (1, 2), vocab: int = 2, **knobs: int | float | str) -> tuple[float, str]:
    """The largest error over hard and random laws, one step and more where there are at most `vocab` tokens."""
    found, kind = [(0.0, "no case")], entry.card.emits[0]
    policy = entry.module.Method(entry.knobs(**knobs))
    walk = exact_rule((kind,), "same_law").entry.module.Method(None).walk
    for p_V, q_V in (*(pair(p, q) for p, q in HARD), *map(random_pair, range(6))):
        for depth in depths if len(p_V) <= vocab else (1,):
            error = law_error(walk, everywhere(p_V), everywhere(q_V), partial(grown, policy, kind, depth=depth), depth)
            found.append((error, f"p={p_V.tolist()}, q={q_V.tolist()}, {depth} steps"))
    return max(found)


def grown(policy: Any, kind: str, model: Model, chance: Chance, *, depth: int, greedy: bool = False) -> Tree:
    """The tree that the policy grows where the draft has this law."""
    tree = Tree.root(ROOT, kind)
    growth = policy.grow(tree, chance, depth=depth, greedy=greedy)
    wanted: list[int] = next(growth, [])
    while wanted:
        texts = texts_of(tree)
        wanted = send(tree, growth, wanted, [model(texts[node]) for node in wanted])
    return tree
