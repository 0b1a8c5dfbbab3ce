"""Acceptance rules: whatever the draft's law, what is emitted has the target's. Axes: N tree nodes, V vocabulary.

A rule is judged together with the draft that it takes: the tree is drawn and walked along every branch of chance, and the joint
law of what comes out is compared with the target's. Monte Carlo would pass rules that are wrong by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lithe.contracts.branches import outcomes
from lithe.ops.accept import Chance, Dice, best_of, without
from lithe.ops.tree import Tree, Walk
from lithe.registry import Entry

ROOT = 0
EXACT = 1e-9
Text = tuple[int, ...]
Model = Callable[[Text], Tensor]  # the law [V] of the token after a text
Children = Callable[[Tensor, int, Chance], Iterable[int]]  # (q_V, width, dice): the tokens that follow a node, in order
Grow = Callable[..., Tree]  # (draft, dice, width=, depth=): the tree it proposes

# Laws (p, q) at which rules have been seen to fail: the target's, then the draft's.
HARD = (
    ((0, 0.2, 0.4, 0.4), (0.7, 0.1, 0.1, 0.1)),  # an urn not normalised is off by 0.13
    ((0, 0.038, 0.962), (0.98, 0.019, 0.001)),  # and here by 0.9
    ((0, 0.6, 0.4), (0.65, 0.35, 0)),  # repeated siblings struck out: off by 0.23
    ((0.3, 0.7), (0.3, 0.7)),
    ((1, 0), (0.5, 0.5)),
    ((1, 0, 0), (0, 1, 0)),
    ((0, 1, 0), (0, 1, 0)),
    ((0.5, 0.5, 0, 0), (0, 0, 0.5, 0.5)),
    ((0.5, 0, 0.5), (0, 0.5, 0.5)),
    ((0, 0.4, 0.6), (1, 0, 0)),
    ((0.25, 0.25, 0.25, 0.25), (1, 0, 0, 0)),
    ((0, 0, 1), (0.4, 0.6 - 1e-12, 1e-12)),
    ((1 - 1e-12, 1e-12, 0), (1e-12, 0, 1 - 1e-12)),
    ((0.2, 0.3, 0.5), (0.2, 0.3 + 1e-15, 0.5 - 1e-15)),
    ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)),
    ((0.6, 0.3, 0.1), (0.3, 0.7)),  # a draft with a smaller vocabulary
)


def check_same_law(entry: Entry) -> None:
    """The joint law of draft and walk, enumerated, is the target's: for every kind of tree that the card takes."""
    for kind in entry.card.takes:
        error, case = worst(method(entry).walk, partial(propose, kind), widths=(1,) if kind == "chain" else (1, 2, 3))
        assert error < EXACT, f"{kind} trees: the output's law is off by {error:.3g} at {case}"


def check_same_tokens(entry: Entry) -> None:
    """Every token is the lowest of the likeliest ids, and the draft is followed as far as it says so."""
    dice = torch.Generator().manual_seed(0)
    for kind, seed in product(entry.card.takes, range(50)):
        p_V, q_V = random_pair(seed)
        # Coarse laws have many ties.
        target, draft = everywhere((p_V * 3).round() / 3 + 0.1), everywhere(q_V)
        tree = propose(kind, draft, Dice(dice), width=3, depth=3)
        rule, scores_NV = method(entry), scores(tree, target)
        walk = rule.walk(tree, scores_NV, dice)
        if hasattr(rule, "walk_best"):
            assert rule.walk_best(tree, best_of(scores_NV)) == walk, f"{kind}, seed {seed}: told the best, it goes elsewhere"
        node = 0
        text: Text = ()
        for step in (*walk.path, None):
            law_V = target(text)
            best = law_V.tolist().index(law_V.max())  # the first: the lowest id
            assert step == tree.child(node, best), f"{kind}, seed {seed}: {best} is likeliest after {text}, but is not followed"
            assert step or walk.token == best, f"{kind}, seed {seed}: {best} is likeliest after {text}, not {walk.token}"
            node, text = step or 0, (*text, best)


def check_verbs(entry: Entry) -> None:
    """It takes some kind of tree, draws from the dice it is given and nowhere else, and changes neither tree nor scores."""
    assert entry.card.takes, "its card says of no kind of tree that it takes it"
    rule, target = method(entry), everywhere(random_pair(2)[0])
    assert isinstance(rule.greedy, bool), "greedy says which requests it is for: True or False"
    if entry.card.lossless:
        assert rule.greedy == ("same_tokens" in entry.card.promises), "tokens are kept where greedy, the law where sampled"
    for kind in entry.card.takes:
        tree = propose(kind, everywhere(random_pair(2)[1]), Dice(torch.Generator().manual_seed(1)), width=2, depth=2)
        before, scores_NV, state = deepcopy(tree), scores(tree, target), torch.get_rng_state()
        walks = {rule.walk(tree, scores_NV, torch.Generator().manual_seed(seed)) for seed in (1, 1, 1)}
        assert len(walks) == 1, "the same dice give different walks"
        assert torch.equal(state, torch.get_rng_state()), "it draws from torch's own generator"
        assert str(tree) == str(before) and torch.equal(scores_NV, scores(tree, target)), "it changes what it was given"


def worst(walk: Callable[..., Walk], grow: Grow, *, widths: tuple[int, ...] = (1, 2, 3), seeds: Iterable[int] = range(12),
          branches: int = 100) -> tuple[float, str]:
    """The largest error over hard and random laws, numbers of siblings, one step and two; and where it was found.

    branches: how many ways two steps may be drawn for them to be tried.
    """
    found = [(0.0, "no case")]
    for p_V, q_V in (*(pair(p, q) for p, q in HARD), *map(random_pair, seeds)):
        for width, depth in product(widths, (1, 2)):
            if depth == 1 or len(p_V) ** (width + width**2) <= branches:
                error = law_error(walk, everywhere(p_V), everywhere(q_V), partial(grow, width=width, depth=depth), depth)
                found.append((error, f"p={p_V.tolist()}, q={q_V.tolist()}, {width} siblings, {depth} steps"))
    return max(found)


def law_error(walk: Callable[..., Walk], target: Model, draft: Model, grow: Grow, depth: int) -> float:
    """Total variation between the target's law of depth + 1 tokens and that of one round followed by plain decoding."""

    def round_(dice: Chance) -> Text:
        tree = grow(draft, dice)
        done = walk(tree, scores(tree, target), dice)
        return (*(tree.tokens[node] for node in done.path), done.token)

    found, error = outcomes(round_), 0.0
    for text in product(range(len(target(()))), repeat=depth + 1):
        rest = [1.0]  # rest[-1 - n]: chance that plain decoding says what follows the first n tokens
        for n in reversed(range(depth + 1)):
            rest.append(rest[-1] * target(text[:n])[text[n]].item())
        emitted = sum(found.get(text[:n], 0.0) * rest[depth + 1 - n] for n in range(1, depth + 2))
        error += abs(emitted - rest[depth + 1]) / 2
    return error


def propose(kind: str, draft: Model, dice: Chance, width: int, depth: int, children: Children | None = None) -> Tree:
    """A full tree of that kind: `width` children a node, where the law has so many. children: another way to make them."""
    children = children or partial(siblings, kind)
    tree = Tree.root(ROOT, kind)
    front: list[tuple[int, Text]] = [(0, ())]
    for _ in range(depth):
        grown = []
        for node, text in front:
            q_V = draft(text)
            if kind != "det":
                tree.laws[node] = q_V
            grown += [(tree.add(token, node), (*text, token)) for token in children(q_V, width, dice)]
        front = grown
    return tree


def siblings(kind: str, q_V: Tensor, width: int, dice: Chance) -> Iterator[int]:
    """Children as each kind of draft makes them."""
    if kind == "det":
        yield from q_V.topk(min(width, len(q_V))).indices.tolist()
        return
    for _ in range(1 if kind == "chain" else width):
        if not q_V.sum() > 0:  # the urn is empty
            return
        token = dice.draw(q_V)
        yield token
        q_V = without(q_V, token) if kind == "wor" else q_V


def scores(tree: Tree, target: Model) -> Tensor:
    """Logits [N, V] of every node, -inf where the target gives no chance."""
    return torch.stack([target(text).log() for text in texts_of(tree)])


def texts_of(tree: Tree) -> list[Text]:
    """What each node says from the root down."""
    return [tuple(tree.tokens[i] for i in tree.path(node)) for node in range(len(tree))]


def everywhere(law_V: Tensor) -> Model:
    """A model with this law at the root and its shifts further down, so that every node meets other laws."""
    return lambda text: law_V.roll(sum(text) + len(text) * (len(law_V) - 1))


def random_pair(seed: int) -> tuple[Tensor, Tensor]:
    """Two laws of 2 to 4 tokens, from flat to nearly one-hot, often with zeros."""
    dice = torch.Generator().manual_seed(seed)
    vocab = 2 + seed % 3

    def law() -> Tensor:
        logits_V = 3 * torch.randn(vocab, generator=dice, dtype=torch.float64)
        cut_V = torch.rand(vocab, generator=dice) < 0.3
        cut_V[int(torch.randint(vocab, (), generator=dice))] = False
        return logits_V.masked_fill(cut_V, float("-inf")).softmax(-1)

    return law(), law()


def method(entry: Entry) -> Any:
    """The rule at its default knobs."""
    return entry.module.Method(entry.knobs())


def pair(p: tuple[float, ...], q: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
