"""Which texts lie in which pages: a tree whose edges are pages of tokens, so that a prompt that begins alike is not read again.

The tree holds its pages as a table does. Those that nobody else holds are spare, and go, least recently used first, when
pages are wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from lithe.model.paged import Pages


class Node:
    """One page of tokens behind those of its parents."""

    __slots__ = ("above", "below", "page", "tokens", "used")

    def __init__(self, tokens: tuple[int, ...], page: int, above: Node | None):
        self.tokens, self.page, self.above = tokens, page, above
        self.below: dict[tuple[int, ...], Node] = {}
        self.used = 0


class PrefixTree:
    """Texts by what they were read with: keys and values of another adapter are other ones."""

    def __init__(self, store: Pages):
        self.store, self.size = store, store.size
        self.roots: dict[Hashable, Node] = {}
        self.nodes: set[Node] = set()
        self.evicted = 0
        self._clock = itertools.count(1)
        store.reclaim = self.evict

    def match(self, key: Hashable, ids: Sequence[int], start: int, limit: int) -> list[int]:
        """The pages that hold ids[start:limit] behind ids[:start], whole pages only. start: at the beginning of a page."""
        found, node, now = [], self.roots.get(key), next(self._clock)
        for at in range(0, limit - self.size + 1, self.size):
            node = node.below.get(tuple(ids[at : at + self.size])) if node is not None else None
            if node is None:
                break
            node.used = now
            found.append(node.page)
        return found[start // self.size :]

    def insert(self, key: Hashable, ids: Sequence[int], pages: list[int]) -> None:
        """Keep every whole page of a text. One that is there already takes the place of the table's own."""
        node, now = self.roots.setdefault(key, Node((), -1, None)), next(self._clock)
        for i in range(min(len(ids) // self.size, len(pages))):
            tokens = tuple(ids[i * self.size : (i + 1) * self.size])
            below = node.below.get(tokens)
            if below is None:
                below = node.below[tokens] = Node(tokens, pages[i], node)
                self.nodes.add(below)
                self.store.hold([pages[i]])
            elif below.page != pages[i]:
                self.store.hold([below.page])
                self.store.drop([pages[i]])
                pages[i] = below.page
            node, below.used = below, now

    @property
    def spare(self) -> int:
        """Pages that only the tree holds: whoever holds a page holds those before it, so that all of these can go."""
        return sum(self.store.holders[node.page] == 1 for node in self.nodes)

    def evict(self, wanted: int) -> int:
        """Give back up to so many pages, the least recently used ends first; returns how many."""
        gone = 0
        while gone < wanted:
            ends = sorted((node for node in self.nodes if not node.below and self.store.holders[node.page] == 1),
                          key=lambda node: node.used)
            if not ends:
                break
            for node in ends[: wanted - gone]:
                assert node.above is not None
                del node.above.below[node.tokens]
                self.nodes.discard(node)
                self.store.drop([node.page])
                gone += 1
        self.evicted += gone
        return gone

    def clear(self) -> None:
        """Forget every text."""
        self.store.drop([node.page for node in self.nodes])
        self.nodes.clear()
        self.roots.clear()
