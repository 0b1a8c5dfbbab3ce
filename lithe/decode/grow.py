"""Trees of any shape from any draft that can tell its law at a node: a policy says where to draw, the room asks the draft.

A policy grows one tree as a generator: it yields the nodes whose laws it wants and is sent the laws, in the same order. What it
draws it adds to the tree. The trees of a batch grow side by side, so that what all of them want is one pass of the draft.

Whether a place is filled may depend on all that was drawn before; a drawn token may never be dropped, moved or merged for
being what it is, else the output's law would bend. Axes: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from itertools import accumulate
from operator import mul
from typing import Any

from torch import Tensor

from lithe.errors import UsageError
from lithe.ops.accept import Chance, without
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence

MOST = 1024  # nodes of a tree
Growth = Generator[list[int], list[Tensor], None]


class Likeliest:
    """Chance for a greedy sequence, where any tree is right: always the likeliest turn."""

    def toss(self, chance: float) -> bool:
        return chance > 0.5

    def draw(self, p_V: Tensor) -> int:
        return int(p_V.argmax())


class Grown:
    """A draft whose trees a policy shapes: both together fill a plan's slot for drafts."""

    def __init__(self, draft: Any, policy: Any, kind: str):
        self.draft, self.policy, self.kind = draft, policy, kind
        if hasattr(draft, "read"):
            self.read = draft.read

    def start(self, sequences):
        for part in (self.draft, self.policy):
            if hasattr(part, "start"):
                part.start(sequences)

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], self.kind) for s in sequences]
        depths = [min(most, self.draft.reach(s)) for s, most in zip(sequences, room, strict=True)]
        growths = [self.policy.grow(tree, Likeliest() if s.law.greedy else s.dice, depth=depth, greedy=s.law.greedy)
                   for s, tree, depth in zip(sequences, trees, depths, strict=True)]
        wanted: list[list[int]] = [next(growth, []) if depth > 0 else [] for growth, depth in zip(growths, depths, strict=True)]
        while any(wanted):
            laws = self.draft.laws(sequences, trees, wanted)
            wanted = [send(*each) if each[2] else [] for each in zip(trees, growths, wanted, laws, strict=True)]
        return trees

    def observe(self, rounds):
        for part in (self.draft, self.policy):
            if hasattr(part, "observe"):
                part.observe(rounds)


def scores(sequence: Sequence, tree: Tree, nodes: list[int], logits_NV: Tensor) -> Tensor:
    """A draft's logits after these nodes, warped as the sequence asks, given the path to each node."""
    paths = [[tree.tokens[i] for i in tree.path(node)] for node in nodes] if sequence.law.reads_context else ()
    return sequence.law(logits_NV, [sequence.ids + path for path in paths] or None)


def send(tree: Tree, growth: Growth, wanted: list[int], laws: list[Tensor]) -> list[int]:
    """Put the laws on record and hand them over; returns what is wanted next."""
    tree.laws.update(zip(wanted, laws, strict=True))
    try:
        return growth.send(laws)
    except StopIteration:
        return []


def distinct(tree: Tree, chance: Chance, many: Callable[[tuple[int, ...]], int], depth: int) -> Growth:
    """Level by level, children drawn without replacement. many: how many a node gets, by the ranks on the way to it."""
    front: dict[int, tuple[int, ...]] = {0: ()}
    for _ in range(depth):
        front = {node: path for node, path in front.items() if many(path)}
        if not front:
            return
        laws, below = (yield list(front)), {}
        for (node, path), urn_V in zip(front.items(), laws, strict=True):
            for rank in range(min(many(path), int((urn_V > 0).sum()))):
                token = chance.draw(urn_V)
                urn_V = without(urn_V, token)
                below[tree.add(token, node)] = (*path, rank)
        front = below


def independent(tree: Tree, chance: Chance, branches: Iterable[int]) -> Growth:
    """Level by level, children drawn independently. A token drawn m times is one node, which draws m times as many children."""
    front = Counter({0: 1})
    for many in branches:
        laws = yield list(front)
        below: Counter[int] = Counter()
        for (node, copies), law_V in zip(front.items(), laws, strict=True):
            for _ in range(copies * many):
                below[tree.draw(chance.draw(law_V), node)] += 1
        front = below


def branches(text: str) -> tuple[int, ...]:
    """Children a node gets on each level, as in "3-2-1". Raises UsageError for anything else.

    >>> branches("3-2-1")
    (3, 2, 1)
    """
    parts = text.split("-")
    if not all(part.isdecimal() and 1 <= int(part) <= 64 for part in parts) or len(parts) > 64:
        raise UsageError(f"branches={text!r} is not numbers from 1 to 64 joined by hyphens, one a level, as in 3-2-1")
    made = tuple(map(int, parts))
    if (size := sum(accumulate(made, mul))) > MOST:
        raise UsageError(f"branches={text!r} makes {size} nodes a round; at most {MOST} are allowed")
    return made
