"""Copy what followed the same words earlier in the text.

Prompt lookup (Saxena, 2023): the longest n-gram that ends the text is looked for in what came before, and the tokens that
followed its first earlier occurrence are the draft. No model, no training.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(
    paper="Prompt Lookup Decoding (Saxena, 2023)",
    promises=("same_tokens", "same_law"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ngram: int = knob(3, "longest n-gram to look for; shorter ones are tried after it", low=1, high=32)
    tokens: int = knob(10, "most tokens to copy", low=1, high=256)
    last: bool = knob(False, "copy from the last earlier occurrence rather than the first")


class Method:
    learns_from_any_tree = True

    def __init__(self, knobs: Knobs, model):
        self.knobs = knobs
        self.seen: dict[int, tuple[int, dict]] = {}  # by sequence: how far it was read, and where each n-gram was followed

    def start(self, sequences):
        self.seen.clear()

    def propose(self, sequences, room):
        return [Tree.chain(s.ids[-1], self._copy(s, most)) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.seen.pop(r.sequence.number, None)

    def _copy(self, sequence, most: int) -> list[int]:
        ids, table = sequence.ids, self._table(sequence)
        for n in range(min(self.knobs.ngram, len(ids) - 1), 0, -1):
            at = table.get(tuple(ids[-n:]))
            if at is not None:
                return ids[at : at + min(most, self.knobs.tokens)]
        return []

    def _table(self, sequence) -> dict[tuple[int, ...], int]:
        """Where the token after each n-gram stands, for every n-gram that has one."""
        ids = sequence.ids
        read, table = self.seen.get(sequence.number, (0, {}))
        for at in range(max(read, 1), len(ids)):
            for n in range(1, min(self.knobs.ngram, at) + 1):
                gram = tuple(ids[at - n : at])
                if self.knobs.last or gram not in table:
                    table[gram] = at
        self.seen[sequence.number] = (len(ids), table)
        return table
