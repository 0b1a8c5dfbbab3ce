"""Several drafts at once, each trusted as far as it has lately been right.

Ours. Every source proposes its tree; the trees are merged, and each node gets the chance, learnt online, that it is accepted
once its parent is: by who proposes it, how deep, at which rank, and how far that source dared to go. After every round the
text itself tells which nodes would have been right, verified or not, so nothing need be explored. Nodes go in by the chance
of their whole path, as many as give the most tokens for the time a pass of so many rows takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lithe import registry
from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.runtime import stored
from lithe.ops.tree import Tree

CARD = Card(paper="lithe's own", promises=("same_tokens", "same_law"), needs=("tree", "gather"), emits=("det",))
DEEPEST, LAST_RANK, FARTHEST = 8, 3, 4  # beyond these, depths, ranks and reaches share what is known of them
MEMORY = 0.985  # what a past answer counts for after the next one with the same key
PRIOR = 3.0  # answers that the first guess of a chance counts as
ROW = 0.05  # cost of a further row in passes of one, where no cost curve is stored


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drafts: str = knob("", "sources as one+two(knob=value;knob=value); else all that need nothing and learn from any tree")
    nodes: int = knob(24, "most tokens to draft, and to take from any one source that can be told so", low=1, high=256)
    row: float = knob(0.0, "cost of a further row in plain passes; 0: by the stored cost curve, 0.05 without one", low=0.0)
    learn: bool = knob(True, "learn the chances; else they stay as first guessed")


@dataclass
class Source:
    """A draft, and how its name stands in what is learnt."""

    name: str
    draft: Any


@dataclass
class Chance:
    """A forgetful average of yes and no."""

    right: float
    asked: float = PRIOR

    @property
    def mean(self) -> float:
        return self.right / self.asked

    def learn(self, yes: bool) -> None:
        self.right, self.asked = MEMORY * self.right + yes, MEMORY * self.asked + 1


@dataclass
class Union:
    """The merged trees of one sequence. Nodes as in Tree; who proposes each, at which rank at best, and from how far."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    voices: list[list[str]] = field(default_factory=lambda: [[]])
    ranks: list[int] = field(default_factory=lambda: [0])
    reaches: list[int] = field(default_factory=lambda: [0])
    children: list[dict[int, int]] = field(default_factory=lambda: [{}])

    def add(self, tree: Tree, name: str, most: int) -> None:
        """Merge a source's tree down to `most` tokens deep."""
        place, seen, depths = [0] * len(tree), [0] * len(tree), tree.depths
        reach = min(max(depths).bit_length(), FARTHEST)
        for node in range(1, len(tree)):
            parent = tree.parents[node]
            rank, seen[parent] = seen[parent], seen[parent] + 1
            if depths[node] > most:
                continue
            here = place[node] = self._node(place[parent], tree.tokens[node])
            voice = tree.sources.get(node, name)
            if voice not in self.voices[here]:
                self.voices[here].append(voice)
            self.ranks[here] = min(self.ranks[here], rank)
            self.reaches[here] = max(self.reaches[here], reach)

    def _node(self, parent: int, token: int) -> int:
        found = self.children[parent].get(token)
        if found is not None:
            return found
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.voices.append([])
        self.ranks.append(LAST_RANK)
        self.reaches.append(0)
        self.children.append({})
        node = self.children[parent][token] = len(self.tokens) - 1
        return node

    def key(self, node: int) -> tuple:
        """What nodes that are alike have in common."""
        depth, rank = min(self.depths[node], DEEPEST), min(self.ranks[node], LAST_RANK)
        return (*sorted(self.voices[node]), depth, rank, self.reaches[node])


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs = knobs
        self.sources = [Source(spec.entry.name, spec.entry.module.Method(spec.knobs, model)) for spec in _specs(knobs)]
        self.chances: dict[tuple, Chance] = {}
        self.proposed: dict[int, Union] = {}  # by sequence, from one proposal to what came of it
        known = None if knobs.row else stored(model)
        curve = known.curves.get(model.threads) if known else None
        self.cost = curve.ratio if curve else lambda rows: 1 + (knobs.row or ROW) * (rows - 1)  # in passes of one row

    def start(self, sequences):
        for source in self.sources:
            if hasattr(source.draft, "start"):
                source.draft.start(sequences)

    def propose(self, sequences, room):
        unions = [Union([s.ids[-1]]) for s in sequences]
        for source in self.sources:
            for union, tree, most in zip(unions, source.draft.propose(sequences, room), room, strict=True):
                union.add(tree, source.name, most)
        self.proposed = {s.number: union for s, union in zip(sequences, unions, strict=True)}
        return [self._best(union) for union in unions]

    def observe(self, rounds):
        for r in rounds:
            if self.knobs.learn:
                self._learn(self.proposed[r.sequence.number], [r.tree.tokens[node] for node in r.walk.path] + [r.walk.token])
        for source in self.sources:
            source.draft.observe(rounds)

    def _best(self, union: Union) -> Tree:
        """The likeliest nodes, as many as give the most tokens for their time."""
        chosen, expected, best, size = [], 1.0, 1.0, 0
        for chance, node in self._likeliest(union):
            chosen.append(node)
            expected += chance
            pays = expected / self.cost(len(chosen) + 1)
            if pays > best:
                best, size = pays, len(chosen)
        tree, place = Tree.root(union.tokens[0]), {0: 0}
        for node in chosen[:size]:
            place[node] = tree.add(union.tokens[node], place[union.parents[node]], "+".join(sorted(union.voices[node])))
        return tree

    def _likeliest(self, union: Union) -> Iterator[tuple[float, int]]:
        """Nodes and the chances of their paths, falling, so that parents come first."""
        front = [(-1.0, 0)]
        for taken in range(self.knobs.nodes + 1):
            if not front:
                return
            minus, node = heapq.heappop(front)
            if taken:
                yield -minus, node
            for child in union.children[node].values():
                heapq.heappush(front, (minus * self._chance(union, child).mean, child))

    def _chance(self, union: Union, node: int) -> Chance:
        key = union.key(node)
        if key not in self.chances:
            first = 1 - 0.5 ** len(union.voices[node])  # each voice alone is as often right as not, and half as often a rank on
            self.chances[key] = Chance(PRIOR * first * 0.5 ** min(union.ranks[node], LAST_RANK))
        return self.chances[key]

    def _learn(self, union: Union, truth: Iterable[int]) -> None:
        """Down the text as it came to be: the children of every node on it were right or wrong."""
        node = 0
        for token in truth:
            for child in union.children[node].values():
                self._chance(union, child).learn(union.tokens[child] == token)
            if token not in union.children[node]:
                return
            node = union.children[node][token]


def _specs(knobs: Knobs) -> list[registry.Spec]:
    """The sources asked for. Raises UsageError for one that cannot be blended."""
    if knobs.drafts:
        texts = [part.strip().replace("(", ":").replace(";", ",").removesuffix(")") for part in knobs.drafts.split("+")]
        specs = [registry.parse(text, "draft") for text in texts]
    else:
        specs = [registry.Spec(e, {}) for e in registry.entries("decode", "draft")
                 if set(e.card.needs) <= {"tree", "gather"} and _blends(e)]
    for spec in specs:
        if not _blends(spec.entry):
            raise UsageError(f"{spec.entry.name} cannot be blended: it is no draft of chosen trees that learns from any tree")
        if hasattr(spec.knobs, "nodes") and "nodes" not in spec.values:
            spec.values["nodes"] = knobs.nodes
    if not specs:
        raise UsageError("there is no draft here that can be blended: name some, as drafts=one+two")
    return specs


def _blends(entry: registry.Entry) -> bool:
    return entry.card.emits == ("det",) and getattr(entry.module.Method, "learns_from_any_tree", False)
