"""Tree policies: whatever shape they choose, the output is the target's own. Axes: V vocabulary.

A policy is judged with the rule that takes its trees: growth and walk are enumerated together on tables of laws, and run
within the loop over a small draft model.
"""

from __future__ import annotations

from functools import partial

import torch

from lithe.contracts import draft
from lithe.contracts.accept import EXACT, HARD, ROOT, Model, everywhere, law_error, pair, random_pair, texts_of
from lithe.contracts.branches import Continuous
from lithe.decode.grow import Likeliest, send
from lithe.decode.plan import exact_rule
from lithe.ops.accept import Chance, Dice
from lithe.ops.tree import Tree
from lithe.registry import Entry

NODES = 8  # a budget at which a policy shows its mind and a check takes a second


def check_same_tokens(entry: Entry) -> None:
    """Greedy output equals plain decoding, as for any draft."""
    draft.check_same_tokens(entry)


def check_same_law(entry: Entry) -> None:
    """Growth and walk, enumerated, have the target's joint law; two tokens sampled in the loop, counted, have it too.

    What needs noise that has no branches to take one by one is held by counting alone.
    """
    try:
        error, case = worst(entry)
    except Continuous:
        error, case = 0.0, ""
    assert error < EXACT, f"the output's law is off by {error:.3g} at {case}"
    draft.check_same_law(entry)


def check_verbs(entry: Entry) -> None:
    """It grows trees of one kind, within the depth given, by the dice given; for a greedy sequence siblings differ."""
    assert len(entry.card.emits) == 1, "its card must say of one kind of tree that it grows it"
    law_V = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    for depth in (1, 3):
        for greedy in (False, True):
            state, trees = torch.get_rng_state(), []
            for _ in range(2):
                chance = Likeliest() if greedy else Dice(torch.Generator().manual_seed(depth))
                trees.append(grown(entry, everywhere(law_V), chance, depth=depth, greedy=greedy))
            tree = trees[0]
            assert str(tree) == str(trees[1]), "the same dice grow different trees"
            assert torch.equal(state, torch.get_rng_state()), "it draws from torch's own generator"
            assert 1 < len(tree) and max(tree.depths) <= depth, "it grows nothing, or deeper than it was told"
            places = [(parent, token) for parent, token in zip(tree.parents, tree.tokens, strict=True)]
            assert not greedy or len(set(places)) == len(tree), "siblings of a greedy sequence hold the same token"


def worst(entry: Entry, **knobs: int | float | str) -> tuple[float, str]:
    """The largest error over hard and random laws: one step of up to four tokens, two of two and, for one pair, three."""
    found = [(0.0, "no case")]
    walk = exact_rule(entry.card.emits, "same_law").entry.module.Method(None).walk
    for number, (p_V, q_V) in enumerate((*(pair(p, q) for p, q in HARD), *map(random_pair, range(6)))):
        for depth in (1, 2) if len(p_V) == 2 or number == 0 and len(p_V) == 3 else (1,):
            grow = lambda law, dice, depth=depth: grown(entry, law, dice, depth=depth, **knobs)
            error = law_error(walk, everywhere(p_V), everywhere(q_V), partial(grow), depth)
            found.append((error, f"p={p_V.tolist()}, q={q_V.tolist()}, {depth} steps"))
    return max(found)


def grown(entry: Entry, model: Model, chance: Chance, *, depth: int, greedy: bool = False, **knobs: int | float | str) -> Tree:
    """The tree that the policy grows where the draft has this law."""
    tree = Tree.root(ROOT, entry.card.emits[0])
    growth = entry.module.Method(entry.knobs(**(draft.modest(entry, NODES) | knobs))).grow(tree, chance, depth=depth, greedy=greedy)
    wanted = next(growth, [])
    while wanted:
        texts = texts_of(tree)
        wanted = send(tree, growth, wanted, [model(texts[node]) for node in wanted])
    return tree
