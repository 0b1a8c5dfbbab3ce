"""Guess a whole block, let the model correct every place at once, and keep what stands.

Greedy Jacobi decoding (Santilli et al., 2023) with a block that moves on with the text: each pass replaces every
guess by what the model says after the guesses before it. What the pass confirms is accepted; the corrected rest is the next
block's beginning, filled up with random tokens of the text. The control for methods that do better with the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(
    paper="Accelerating Transformer Inference for Translation via Parallel Decoding (Santilli et al., 2023)",
    promises=("same_tokens", "same_law"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    tokens: int = knob(16, "guesses of a block", low=1, high=256)


class Method:
    def __init__(self, knobs: Knobs, model):
        self.tokens = knobs.tokens
        self.blocks: dict[int, list[int]] = {}  # by sequence: the corrected guesses
        self.dice = Random(0)

    def start(self, sequences):
        self.blocks.clear()
        self.dice = Random(0)

    def propose(self, sequences, room):
        return [Tree.chain(s.ids[-1], self._block(s)[: max(most, 0)]) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            told = r.logits_NV.argmax(-1).tolist()
            self.blocks[r.sequence.number] = told[len(r.walk.path) + 1 :]  # what follows the token the walk ended with
            if r.sequence.finished:
                del self.blocks[r.sequence.number]

    def _block(self, sequence) -> list[int]:
        known = self.blocks.get(sequence.number, [])[: self.tokens]
        return known + self.dice.choices(sequence.ids, k=self.tokens - len(known))
