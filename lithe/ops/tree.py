"""Draft trees as flat arrays. Node 0 is the root: the last committed token, whose logits are not known yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Ghost(NamedTuple):
    """A row of the pass that is no guess: it sees a node, all that this sees, and the ghosts above it. Nobody else sees it,
    nothing keeps it, and its logits go to the draft that asked for it."""

    node: int
    above: int  # the ghost it hangs on, -1 where that is the node itself
    which: int  # of the draft's rows


@dataclass
class Tree:
    """Tokens guessed to follow the root. Parents precede children; siblings stand in the order they were drawn.

    kind: how children came to be. "det": chosen, whatever the target thinks (lists, tables, lookups). "chain": one child
    a node, drawn from `laws`. "iid" and "wor": several, drawn with or without replacement.
    laws[i] is the law [V] that the children of node i were drawn from (none for "det"); sources[i] is where token i came from.
    draws[i] lists the children of node i as they were drawn, where a token may have been drawn again ("iid" only).
    ghosts are rows behind those of the nodes.
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    kind: str = "det"
    laws: dict[int, Tensor] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    draws: dict[int, list[int]] = field(default_factory=dict)
    ghosts: list[Ghost] = field(default_factory=list)

    @classmethod
    def root(cls, token: int, kind: str = "det") -> Tree:
        """A tree that guesses nothing."""
        return cls([token], [-1], kind)

    @classmethod
    def chain(cls, root: int, tokens: Iterable[int]) -> Tree:
        """One guess after another."""
        tokens = [root, *tokens]
        return cls(tokens, list(range(-1, len(tokens) - 1)))

    @classmethod
    def trie(cls, root: int, paths: Iterable[Sequence[int]]) -> Tree:
        """Merge guessed continuations that share a beginning."""
        tree = cls.root(root)
        for path in paths:
            tree.grow(path)
        return tree

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, token: int, parent: int, source: str | None = None) -> int:
        """Append a node and return its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        node = len(self.tokens) - 1
        if source is not None:
            self.sources[node] = source
        return node

    def draw(self, token: int, parent: int) -> int:
        """The node of an independent draw: a new one, or that which holds the token already, to be tested once more."""
        node = self.child(parent, token)
        node = self.add(token, parent) if node is None else node
        self.draws.setdefault(parent, []).append(node)
        return node

    def haunt(self, node: int, rows: Iterable[int]) -> None:
        """Hang a chain of ghosts on a node."""
        above = -1
        for which in rows:
            self.ghosts.append(Ghost(node, above, which))
            above = len(self.ghosts) - 1

    def grow(self, path: Iterable[int], node: int = 0, source: str | None = None) -> int:
        """Add what is new of a path that goes on from `node`, and return the node it ends at."""
        for token in path:
            child = self.child(node, token)
            node = self.add(token, node, source) if child is None else child
        return node

    def children(self, node: int) -> list[int]:
        """Children in the order they were drawn; one that was drawn twice stands there twice."""
        if node in self.draws:
            return self.draws[node]
        return [i for i, parent in enumerate(self.parents) if parent == node]

    def child(self, node: int, token: int) -> int | None:
        """The first child holding that token."""
        for i in range(node + 1, len(self.tokens)):  # parents precede their children
            if self.tokens[i] == token and self.parents[i] == node:
                return i
        return None

    def path(self, node: int) -> list[int]:
        """Nodes from the first below the root down to `node`."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    @property
    def depths(self) -> list[int]:
        """Steps from the root, for every node."""
        depths = [0] * len(self.parents)
        for i, parent in enumerate(self.parents):
            depths[i] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    def rows(self) -> tuple[list[int], list[int]]:
        """Parents and depths of all rows of the pass: the nodes, then the ghosts."""
        parents, depths = list(self.parents), self.depths
        for ghost in self.ghosts:
            parents.append(ghost.node if ghost.above < 0 else len(self) + ghost.above)
            depths.append(depths[parents[-1]] + 1)
        return parents, depths

    def cut(self, *, depth: int, nodes: int) -> Tree:
        """The tree without what lies deeper than `depth` or past its first `nodes` rows.

        Neither looks at tokens, so sampled trees keep their law. Once the last node has its place no draw is kept either: one
        that repeated a token needs no place, and to keep it for that would bend the law.
        """
        if len(self) <= depth + 1 and not self.ghosts and (len(self) < nodes or (len(self) == nodes and not self.draws)):
            return self  # too few to be too deep
        depths = self.depths
        kept = [i for i in range(min(len(self), nodes)) if depths[i] <= depth]
        if len(kept) == len(self) and (len(self) < nodes or not self.draws) and not self.ghosts:
            return self
        number = {old: new for new, old in enumerate(kept)}
        draws = {number[i]: [number[child] for child in _until(nodes - 1, drawn) if child in number]
                 for i, drawn in self.draws.items() if i in number}
        return Tree([self.tokens[i] for i in kept], [number[self.parents[i]] if i else -1 for i in kept], self.kind,
                    {number[i]: law for i, law in self.laws.items() if i in number},
                    {number[i]: source for i, source in self.sources.items() if i in number}, draws,
                    self._ghosts(number, depth, nodes - len(kept)))

    def _ghosts(self, number: dict[int, int], depth: int, room: int) -> list[Ghost]:
        """Those that still have their place: their node, renumbered, the ghosts above them, and so deep."""
        kept: dict[int, Ghost] = {}
        place, depths = {-1: -1}, self.rows()[1][len(self) :] if self.ghosts else []
        for i, (node, above, which) in enumerate(self.ghosts):
            if node in number and above in place and depths[i] <= depth and len(kept) < room:
                place[i] = len(kept)
                kept[i] = Ghost(number[node], place[above], which)
        return list(kept.values())


def _until(last: int, drawn: list[int]) -> Iterator[int]:
    """Children up to the one that took the last place; all of them where it went to another parent."""
    for child in drawn:
        if child > last:
            return
        yield child
        if child == last:
            return


@dataclass(frozen=True)
class Walk:
    """What an acceptance rule decided: the accepted nodes from the root down, and the token that follows them."""

    path: tuple[int, ...]
    token: int
