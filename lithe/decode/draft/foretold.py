"""Guess that the text goes as its request foretold.

Predicted outputs: a request may bring what it expects, such as a file that is to be edited. The draft copies from it: from its
beginning, then behind the place where the last tokens stand in it, the next such place after the one copied from before. Where
the text leaves what was foretold, it is looked for again with every token; where nothing was foretold, nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(
    paper="Predicted outputs",
    promises=("same_tokens", "same_law"),
    needs=("prediction",),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ngram: int = knob(8, "most tokens to look for", low=1, high=64)
    tokens: int = knob(16, "most tokens to copy", low=1, high=256)


class Method:
    learns_from_any_tree = True

    def __init__(self, knobs: Knobs, model):
        self.knobs = knobs
        self.places: dict[int, tuple[int, int]] = {}  # by sequence: its length, and how much of what was foretold lay behind

    def start(self, sequences):
        self.places.clear()

    def propose(self, sequences, room):
        return [Tree.chain(s.ids[-1], self._copy(s, most)) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.places.pop(r.sequence.number, None)

    def _copy(self, sequence, most: int) -> list[int]:
        told = sequence.prediction
        if not told:
            return []
        seen, before = self.places.get(sequence.number, (sequence.prompt, 0))
        place = self._place(sequence.ids, sequence.prompt, told, seen, before)
        self.places[sequence.number] = len(sequence.ids), place
        return list(told[place : place + min(most, self.knobs.tokens)])

    def _place(self, ids, prompt, told, seen, before) -> int:
        """Where the text goes on: as it did, else behind its longest ending found, rather not before; else nowhere."""
        new = tuple(ids[seen:])
        if tuple(told[before : before + len(new)]) == new:
            return before + len(new)
        most = min(self.knobs.ngram, len(ids) - prompt)
        ends = [at for at in range(1, len(told) + 1) if told[at - 1] == ids[-1]]
        found = [(self._alike(ids, told, at, most), at >= before, -at) for at in ends]
        return -max(found)[2] if found else len(told)

    def _alike(self, ids, told, at, most) -> int:
        """How many of the last tokens stand in front of that place."""
        return next((n for n in range(min(most, at)) if told[at - 1 - n] != ids[-1 - n]), min(most, at))
