"""Copy what followed the same words earlier in the text.

Prompt lookup (Saxena, 2023): the longest n-gram that ends the text is looked for in what came before, and the tokens that
followed its first earlier occurrence are the draft. No model, no training.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.grams import Grams
from lithe.kernels import copying
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
    tensors = False

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.grams = knobs, Grams(knobs.ngram)
        self.compiled = copying.lookup(knobs.ngram, knobs.tokens, knobs.last)

    def start(self, sequences):
        (self.compiled or self.grams).forget()

    def propose(self, sequences, room):
        if self.compiled is not None:
            return [self.compiled.propose(s.number, s.ids, most) for s, most in zip(sequences, room, strict=True)]
        return [Tree.chain(s.ids[-1], self._copy(s, most)) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            self.after(r.sequence)

    def after(self, sequence) -> None:
        """What is left to do where C has learnt of a round."""
        if sequence.finished:
            (self.compiled or self.grams).forget(sequence.number)

    def _copy(self, sequence, most: int) -> list[int]:
        if not (found := self.grams.places(sequence)):
            return []
        at = found[-1 if self.knobs.last else 0]
        return sequence.ids[at : at + min(most, self.knobs.tokens)]
