"""Trees of several sources made one, each node trusted as far as its like has lately been right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from lithe.ops.tree import Tree

DEEPEST, LAST_RANK, FARTHEST = 4, 3, 5  # beyond these, depths, ranks and reaches share what is known of them
VOICES = 6  # names told apart; further ones share the last one's bit
FAMILY = 3  # of a kind's parts, those by which it has kin
MEMORY = 0.985  # what a past answer counts for after the next one with the same key
PRIOR = 3.0  # answers that the first guess of a chance counts as

Named = Iterable[tuple[str, Tree]]


class Merger:
    """Merges trees, keeps the nodes that pay, and learns online how often nodes of a kind come true.

    costs: the time of a pass over a root and 0, 1, ... guesses: most of the nodes to keep follow from how many there are. A
    kind is who proposes a node, at which rank, how far that source dared to go, and how deep; it begins where its family, the
    kind without its depth, stands. Averages are forgetful.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self.costs = list(costs)
        self.names: dict[str, int] = {}  # the bit of each name that a node's source was told by
        self.kinds: dict[tuple, list[float]] = {}  # of each kind and family: right, asked
        self._said: dict[int, str] = {}

    def merge(self, root: int, trees: Named, most: int) -> tuple[Tree, Any]:
        """The best tree down to `most` tokens, and what `learn` wants to know of all that was proposed."""
        union = Union(root)
        for name, tree in trees:
            union.add(tree, self.voices(name, tree), most)
        paths = [1.0]
        for node in range(1, len(union.tokens)):
            paths.append(paths[union.parents[node]] * self.chance(union.kind(node)))
        order = sorted(range(1, len(paths)), key=lambda node: -paths[node])[: len(self.costs) - 1]  # stable: parents first
        expected = list(accumulate((paths[node] for node in order), initial=1.0))
        size = max(range(len(expected)), key=lambda n: (expected[n] / self.costs[n], -n))
        return self.tree(root, [(n, union.tokens[n], union.parents[n], union.voices[n]) for n in order[:size]]), union

    def learn(self, union: Any, truth: Sequence[int]) -> None:
        """Down the text as it came to be: the children of every node on it were right or wrong."""
        on = {0: 0}  # nodes that came true, and how much of the text they have seen
        for node in range(1, len(union.tokens)):
            seen = on.get(union.parents[node])
            if seen is not None and seen < len(truth):
                right = union.tokens[node] == truth[seen]
                kind = union.kind(node)
                for known in (kind, kind[:FAMILY]):
                    entry = self.kinds.setdefault(known, [0.0, 0.0])
                    entry[0], entry[1] = MEMORY * entry[0] + right, MEMORY * entry[1] + 1
                if right:
                    on[node] = seen + 1

    def chance(self, kind: tuple) -> float:
        """That a node of this kind comes true once the one above it does."""
        first = (1 - 0.5 ** kind[0].bit_count()) * 0.5 ** kind[1]
        right, asked = self.kinds.get(kind) or (0.0, 0.0)
        kin, many = self.kinds.get(kind[:FAMILY]) or (0.0, 0.0)
        return (right + PRIOR * (kin + first) / (many + 1)) / (asked + PRIOR)

    def voices(self, name: str, tree: Tree) -> list[int]:
        """The bit of every node's source."""
        if not tree.sources:
            return [self.bit(name)] * len(tree)
        return [self.bit(tree.sources.get(node, name)) for node in range(len(tree))]

    def bit(self, name: str) -> int:
        """The bit of a name."""
        bit = self.names.get(name)
        if bit is None:
            bit = self.names[name] = 1 << min(len(self.names), VOICES - 1)
            self._said.clear()
        return bit

    def tree(self, root: int, nodes: Iterable[tuple[int, int, int, int]]) -> Tree:
        """A tree of numbers, tokens, parents' numbers and voices, parents first."""
        tree, place = Tree.root(root), {0: 0}
        for node, token, parent, voices in nodes:
            place[node] = tree.add(token, place[parent], self._said.get(voices) or self._say(voices))
        return tree

    def _say(self, voices: int) -> str:
        self._said[voices] = "+".join(sorted(name for name, bit in self.names.items() if bit & voices))
        return self._said[voices]


class Union:
    """The merged trees of one sequence. Nodes as in Tree; of each the bits of who proposes it, and what it is like."""

    def __init__(self, root: int):
        self.tokens, self.parents, self.depths, self.voices = [root], [-1], [0], [0]
        self.ranks, self.reaches = [0], [0]
        self.places: dict[tuple[int, int], int] = {}  # by parent and token

    def add(self, tree: Tree, voices: Sequence[int], most: int) -> None:
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
            self.voices[here] |= voices[node]
            self.ranks[here] = min(self.ranks[here], rank)
        kept = [here for here in place if here > 0]
        reach = min(max((self.depths[here] for here in kept), default=0).bit_length(), FARTHEST)
        for here in kept:
            self.reaches[here] = max(self.reaches[here], reach)

    def kind(self, node: int) -> tuple:
        """What nodes that are alike have in common, the family first."""
        return self.voices[node], self.ranks[node], self.reaches[node], min(self.depths[node], DEEPEST)

    def _new(self, token: int, parent: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.voices.append(0)
        self.ranks.append(LAST_RANK)
        self.reaches.append(0)
        return len(self.tokens) - 1
