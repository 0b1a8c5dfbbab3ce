"""Several drafts at once, each trusted as far as it has lately been right.

Ours. Every source proposes its tree; the trees are merged, and each node gets the chance, learnt online, that it is accepted
once its parent is: by who proposes it, how deep, at which rank, and how far that source dared to go. After every round the
text itself tells which nodes would have been right, verified or not, so nothing need be explored. Nodes go in by the chance
of their whole path, as many as give the most tokens for the time a pass of so many rows takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lithe import registry
from lithe.card import Card, knob
from lithe.decode.budget import costs, pays
from lithe.errors import UsageError
from lithe.ops.tree import Tree

CARD = Card(paper="lithe's own", promises=("same_tokens", "same_law"), needs=("tree", "gather"), emits=("det",))
DEEPEST, LAST_RANK, FARTHEST = 4, 3, 5  # beyond these, depths, ranks and reaches share what is known of them
DEAR = 2.5  # no source is asked for more tokens than a pass of so many plain ones can verify
FAMILY = 3  # of a kind's parts, those by which it has kin
MEMORY = 0.985  # what a past answer counts for after the next one with the same key
PRIOR = 3.0  # answers that the first guess of a chance counts as


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


class Chances:
    """How often nodes of a kind came true, learnt online: forgetful averages. A kind begins where its family stands."""

    def __init__(self) -> None:
        self.kinds: dict[tuple, list[float]] = {}  # of each kind and family: right, asked

    def mean(self, kind: tuple, first: float) -> float:
        """The chance of a kind; `first` where neither it nor its family was ever met."""
        right, asked = self.kinds.get(kind) or (0.0, 0.0)
        kin, many = self.kinds.get(kind[:FAMILY]) or (0.0, 0.0)
        return (right + PRIOR * (kin + first) / (many + 1)) / (asked + PRIOR)

    def learn(self, kind: tuple, yes: bool) -> None:
        for known in (kind, kind[:FAMILY]):
            entry = self.kinds.setdefault(known, [0.0, 0.0])
            entry[0], entry[1] = MEMORY * entry[0] + yes, MEMORY * entry[1] + 1


class Union:
    """The merged trees of one sequence. Nodes as in Tree; of each the bits of who proposes it, and what it is like."""

    def __init__(self, root: int):
        self.tokens, self.parents, self.depths, self.voices = [root], [-1], [0], [0]
        self.ranks, self.reaches = [0], [0]
        self.places: dict[tuple[int, int], int] = {}  # by parent and token

    def add(self, tree: Tree, voice: Callable[[str], int], name: str, most: int) -> None:
        """Merge a source's tree down to `most` tokens deep."""
        place, seen = [0] * len(tree), [0] * len(tree)
        for node in range(1, len(tree)):
            above = tree.parents[node]
            rank, seen[above] = seen[above], seen[above] + 1
            parent, token = place[above], tree.tokens[node]
            if parent < 0 or self.depths[parent] >= most:
                place[node] = -1
                continue
            here = self.places.get((parent, token))
            if here is None:
                here = self.places[parent, token] = self._new(token, parent)
            place[node] = here
            self.voices[here] |= voice(tree.sources.get(node, name))
            self.ranks[here] = min(self.ranks[here], rank)
        kept = [here for here in place if here > 0]
        reach = min(max((self.depths[here] for here in kept), default=0).bit_length(), FARTHEST)
        for here in kept:
            self.reaches[here] = max(self.reaches[here], reach)

    def _new(self, token: int, parent: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.voices.append(0)
        self.ranks.append(LAST_RANK)
        self.reaches.append(0)
        return len(self.tokens) - 1

    def kind(self, node: int) -> tuple:
        """What nodes that are alike have in common, the family first."""
        return self.voices[node], self.ranks[node], self.reaches[node], min(self.depths[node], DEEPEST)


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.costs = knobs, costs(model, knobs.nodes, knobs.row)
        most = max(1, sum(cost <= DEAR for cost in self.costs) - 1)
        self.sources = [Source(spec.entry.name, spec.entry.module.Method(spec.knobs, model)) for spec in _specs(knobs, most)]
        self.chances = Chances()
        self.voices: dict[str, int] = {}  # the bit of each name that a node's source was told by
        self.proposed: dict[int, Union] = {}  # by sequence, from one proposal to what came of it

    def start(self, sequences):
        for source in self.sources:
            if hasattr(source.draft, "start"):
                source.draft.start(sequences)

    def propose(self, sequences, room):
        unions = [Union(s.ids[-1]) for s in sequences]
        for source in self.sources:
            for union, tree, most in zip(unions, source.draft.propose(sequences, room), room, strict=True):
                union.add(tree, self._voice, source.name, most)
        self.proposed = {s.number: union for s, union in zip(sequences, unions, strict=True)}
        return [self._best(union) for union in unions]

    def observe(self, rounds):
        for r in rounds:
            if self.knobs.learn:
                self._learn(self.proposed[r.sequence.number], [r.tree.tokens[node] for node in r.walk.path] + [r.walk.token])
        for source in self.sources:
            source.draft.observe(rounds)

    def _voice(self, name: str) -> int:
        return self.voices.setdefault(name, 1 << len(self.voices))

    def _best(self, union: Union) -> Tree:
        """The likeliest nodes, as many as give the most tokens for their time."""
        paths = [1.0]
        for node in range(1, len(union.tokens)):
            first = (1 - 0.5 ** union.voices[node].bit_count()) * 0.5 ** union.ranks[node]
            paths.append(paths[union.parents[node]] * self.chances.mean(union.kind(node), first))
        order = sorted(range(1, len(paths)), key=lambda node: -paths[node])[: self.knobs.nodes]  # stable: parents come first
        size = pays([paths[node] for node in order], self.costs)
        names = {bit: name for name, bit in self.voices.items()}
        tree, place = Tree.root(union.tokens[0]), {0: 0}
        for node in order[:size]:
            said = "+".join(sorted(name for bit, name in names.items() if bit & union.voices[node]))
            place[node] = tree.add(union.tokens[node], place[union.parents[node]], said)
        return tree

    def _learn(self, union: Union, truth: Sequence[int]) -> None:
        """Down the text as it came to be: the children of every node on it were right or wrong."""
        on = {0: 0}  # nodes that came true, and how much of the text they have seen
        for node in range(1, len(union.tokens)):
            seen = on.get(union.parents[node])
            if seen is not None and seen < len(truth):
                right = union.tokens[node] == truth[seen]
                self.chances.learn(union.kind(node), right)
                if right:
                    on[node] = seen + 1


def _specs(knobs: Knobs, most: int) -> list[registry.Spec]:
    """The sources asked for, each to draft `most` tokens where it can be told so. Raises UsageError for one that cannot."""
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
            spec.values["nodes"] = most
    if not specs:
        raise UsageError("there is no draft here that can be blended: name some, as drafts=one+two")
    return specs


def _blends(entry: registry.Entry) -> bool:
    return entry.card.emits == ("det",) and getattr(entry.module.Method, "learns_from_any_tree", False)
