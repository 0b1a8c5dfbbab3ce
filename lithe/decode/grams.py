"""Where the endings of growing texts stood before: a table of n-grams for each sequence under way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lithe.sampling.sequence import Sequence

Table = dict[tuple[int, ...], list[int]]


class Grams:
    """Of each sequence the places of the tokens after every n-gram, read on as the text grows."""

    def __init__(self, longest: int):
        """longest: n of the longest n-grams; 0 for none."""
        self.longest = longest
        self.seen: dict[int, tuple[int, Table]] = {}  # by the sequence's number: how far it was read, and its table

    def clear(self) -> None:
        self.seen.clear()

    def forget(self, number: int = -1) -> None:
        """Drop a text, or every one."""
        self.clear() if number < 0 else self.seen.pop(number, None)

    def observe(self, rounds: Iterable[Any]) -> None:
        """Forget what has finished."""
        for r in rounds:
            if r.sequence.finished:
                self.forget(r.sequence.number)

    def places(self, sequence: Sequence) -> list[int]:
        """Of the tokens that followed the longest ending that stood before, first to last; none where none did."""
        ids, table = sequence.ids, self._table(sequence)
        for n in range(min(self.longest, len(ids) - 1), 0, -1):
            if found := table.get(tuple(ids[-n:])):
                return found
        return []

    def _table(self, sequence: Sequence) -> Table:
        ids = sequence.ids
        read, table = self.seen.get(sequence.number, (0, {}))
        for at in range(max(read, 1), len(ids)):
            for n in range(1, min(self.longest, at) + 1):
                table.setdefault(tuple(ids[at - n : at]), []).append(at)
        self.seen[sequence.number] = (len(ids), table)
        return table
