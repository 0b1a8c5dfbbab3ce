"""All substrings of a text: of one that stays, in the order of its suffixes; of one that grows, in a suffix automaton.

The automaton knows how often each occurs, in two states a token. A state stands for all strings that end at the same places;
`counts[state]` is the number of those places. `next` says to which state a token leads, and along `links` lie the states of
the suffixes of a state's strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


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
