"""All substrings of a text: of one that stays, in the order of its suffixes; of one that grows, in a suffix automaton; and
drafts by what followed them.

The automaton knows how often each occurs, in two states a token. A state stands for all strings that end at the same places;
`counts[state]` is the number of those places. `next` says to which state a token leads, and along `links` lie the states of
the suffixes of a state's strings.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from lithe.ops.tree import Tree

Node = tuple[float, int, int]  # probability, parent within the draft (-1 its root), token


def suffix_array(ids: np.ndarray, depth: int) -> np.ndarray:
    """Where the suffixes of ids [T] begin, sorted by their first `depth` tokens at least; shorter ones come first.

    Ranks by twice as many tokens in each round (Manber and Myers, 1993).
    """
    rank, known = np.unique(ids, return_inverse=True)[1].astype(np.int64) + 1, 1
    while known < depth:
        after = np.zeros_like(rank)
        after[:-known] = rank[known:]
        rank, known = np.unique(rank * (len(ids) + 1) + after, return_inverse=True)[1].astype(np.int64) + 1, 2 * known
    return np.argsort(rank, kind="stable").astype(np.int32)


class SuffixAutomaton:
    """Online construction after Blumer et al. (1985), with exact counts at any time. State 0 is the empty string."""

    def __init__(self, text: Iterable[int] = ()):
        self.next: list[dict[int, int]] = [{}]
        self.links: list[int] = [-1]
        self.lengths: list[int] = [0]  # of the longest string of a state
        self.counts: list[int] = [0]
        self.last = 0  # the state of the whole text
        for token in text:
            self.push(token)

    def push(self, token: int) -> None:
        """Append a token: amortised constant time, but for the counts, which take a step for each suffix seen before."""
        state, self.last = self.last, self._new({}, self.lengths[self.last] + 1, 0)
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = self.last
            state = self.links[state]
        self.links[self.last] = 0 if state < 0 else self._exact(state, token)
        state = self.last
        while state > 0:
            self.counts[state] += 1
            state = self.links[state]

    def match(self, text: Iterable[int], state: int = 0, length: int = 0) -> tuple[int, int]:
        """The state of the longest suffix of `text` that occurs, and its length. state, length: of a match it goes on from."""
        for token in text:
            while state and token not in self.next[state]:
                state = self.links[state]
                length = self.lengths[state]
            if token in self.next[state]:
                state, length = self.next[state][token], length + 1
        return state, length

    def suffixes(self, state: int) -> Iterator[int]:
        """The state and those of its shorter suffixes, longest first, the empty one left out."""
        while state > 0:
            yield state
            state = self.links[state]

    def _exact(self, state: int, token: int) -> int:
        """The state after `token` whose longest string is just one longer: split off where the present one's is longer."""
        after = self.next[state][token]
        if self.lengths[after] == self.lengths[state] + 1:
            return after
        split = self._new(dict(self.next[after]), self.lengths[state] + 1, self.counts[after])
        self.links[split], self.links[after] = self.links[after], split
        while state >= 0 and self.next[state].get(token) == after:
            self.next[state][token] = split
            state = self.links[state]
        return split

    def _new(self, after: dict[int, int], length: int, count: int) -> int:
        self.next.append(after)
        self.lengths.append(length)
        self.counts.append(count)
        self.links.append(-1)
        return len(self.next) - 1


class Suffixes:
    """Drafts by counts of what followed: one index a text, one of all finished outputs. `kernels.copying` has it compiled."""

    def __init__(self, *, depth: int, alpha: float, offset: float, floor: float, tree: bool, outputs: bool, limit: int,
                 most: int, costs: Sequence[float]) -> None:
        """depth: longest match. alpha, offset: guesses for each token matched, and beyond. floor: least probability of a path.

        tree: branches too. outputs: look into finished outputs, of which `limit` tokens are kept. most: guesses. costs: the
        time of a pass with 0, 1, ... of them, where only what pays is drafted.
        """
        self.depth, self.alpha, self.offset, self.floor, self.tree = depth, alpha, offset, floor, tree
        self.look, self.limit, self.most, self.costs = outputs, limit, most, costs
        self.texts: dict[int, tuple[int, SuffixAutomaton]] = {}  # by number: how far it was read, and its index
        self.outputs = SuffixAutomaton()
        self.ended = 0  # outputs in the index
        self.found: dict[int, tuple[int, ...]] = {}  # by number: outputs then, tokens read, the match's state and length

    @property
    def states(self) -> int:
        return len(self.outputs.next)

    def propose(self, number: int, ids: list[int], most: int) -> Tree:
        """The tree of a text, by its number, down to `most` tokens; it may only have grown since it was last asked for."""
        text = self._read(number, ids)
        before = text.links[text.last]  # the longest suffix that occurs earlier as well
        found = [("text", *self._best(text, before, text.lengths[before], most))]
        if self.look:
            found.append(("outputs", *self._best(self.outputs, *self._match(number, ids), most)))
        source, _, nodes = max(found, key=lambda one: one[1])
        if self.costs:  # the likeliest come first
            expected = list(accumulate((chance for chance, _, _ in nodes), initial=1.0))[: len(self.costs)]
            nodes = nodes[: max(range(len(expected)), key=lambda n: (expected[n] / self.costs[n], -n))]
        tree = Tree.root(ids[-1])
        for _, parent, token in nodes:
            tree.add(token, parent + 1, source)
        return tree

    def forget(self, number: int = -1) -> None:
        """Drop a text, or every one."""
        for held in (self.texts, self.found):
            held.clear() if number < 0 else held.pop(number, None)  # type: ignore[attr-defined]

    def keep(self, tokens: Sequence[int]) -> None:
        """Index a finished output; a token no model has keeps it apart from the next."""
        if self.states > 2 * self.limit:
            self.outputs = SuffixAutomaton()
        self.ended += 1
        for token in [*tokens, -self.ended]:
            self.outputs.push(token)

    def _read(self, number: int, ids: list[int]) -> SuffixAutomaton:
        read, text = self.texts.get(number) or (0, SuffixAutomaton())
        for token in ids[read:]:
            text.push(token)
        self.texts[number] = len(ids), text
        return text

    def _match(self, number: int, ids: list[int]) -> tuple[int, int]:
        """The state of the longest end of the text that outputs hold, and its length; only new tokens are read."""
        ended, read, state, length = self.found.get(number) or (-1, 0, 0, 0)
        if ended != self.ended:  # an index that has grown may have split the state
            read, state, length = max(0, len(ids) - self.depth), 0, 0
        state, length = self.outputs.match(ids[read:], state, length)
        while state and self.outputs.lengths[self.outputs.links[state]] >= self.depth:
            state = self.outputs.links[state]  # of the last `depth` tokens alone
        self.found[number] = self.ended, len(ids), state, length
        return state, length

    def _best(self, index: SuffixAutomaton, state: int, length: int, most: int) -> tuple[float, list[Node]]:
        """The expected accepted tokens and the nodes of the best draft, over a match of that length and its suffixes."""
        best: tuple[float, list[Node]] = (0.0, [])
        for suffix in index.suffixes(state):
            matched = min(index.lengths[suffix], length, self.depth)
            budget = min(int(self.alpha * matched + self.offset), self.most)
            if budget <= best[0]:
                break  # a shorter suffix has no larger budget, and no token counts for more than one
            nodes = self._expand(index, suffix, budget, most)
            expected = 0.0
            for chance, _, _ in nodes:  # one after another: some versions' sum() rounds otherwise
                expected += chance
            best = max(best, (expected, nodes), key=lambda one: one[0])
        return best

    def _expand(self, index: SuffixAutomaton, state: int, budget: int, most: int) -> list[Node]:
        """The likeliest continuations of a state, parents first."""
        nodes: list[Node] = []
        front = [(-1.0, 0, -1, -1, state)]  # minus the path's probability, depth, parent, token, state
        while front:
            minus, depth, parent, token, state = heapq.heappop(front)
            if depth:
                nodes.append((-minus, parent, token))
            if len(nodes) == budget:
                break
            after = index.next[state]
            total = sum(index.counts[s] for s in after.values())
            if depth == most or not total:
                continue
            heavy = after.items() if self.tree else [max(after.items(), key=lambda item: index.counts[item[1]])]
            for child, s in heavy:
                law = -minus * index.counts[s] / total
                if law >= self.floor and child >= 0:
                    heapq.heappush(front, (-law, depth + 1, len(nodes) - 1, child, s))
        return nodes
