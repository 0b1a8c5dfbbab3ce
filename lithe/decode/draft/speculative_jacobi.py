"""Guess a block, keep what chance allows, and draw the rest of the block anew from what this pass said of it.

Speculative Jacobi Decoding (Teng et al., 2024), made for images, exact for any model. Every guess keeps the law it was drawn
from, so the acceptance rule of speculative sampling holds without a draft model: where Jacobi only keeps guesses that are the
likeliest, this keeps them with min(1, p/q). Guesses right of the first failure are drawn from the model's new laws there,
which were made under the old guesses. Greedy, it is Jacobi decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(
    paper="Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
    row=52,
    promises=("same_tokens", "same_law"),
    emits=("chain",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    tokens: int = knob(16, "guesses of a block; on a CPU 4 cost less", low=1, high=256)
    fill: str = knob("random", "how its new end begins: random tokens, the last token, or a draw from the law left of it",
                     choices=("random", "repeat", "left"))


@dataclass
class Slot:
    """A guess, and the law [V] it was drawn from; None where it was not drawn."""

    token: int
    law_V: Tensor | None = None


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.vocab = knobs, model.config.vocab
        self.blocks: dict[int, list[Slot]] = {}  # by sequence

    def start(self, sequences):
        self.blocks.clear()

    def propose(self, sequences, room):
        return [self._tree(s, self._block(s, min(self.knobs.tokens, most))) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.blocks.pop(r.sequence.number, None)
            else:
                self.blocks[r.sequence.number] = self._drawn_anew(r)

    def _tree(self, sequence, block: list[Slot]) -> Tree:
        tree = Tree.root(sequence.ids[-1], "chain")
        for slot in block:
            node = tree.add(slot.token, len(tree) - 1)
            if slot.law_V is not None:
                tree.laws[node - 1] = slot.law_V
        return tree

    def _drawn_anew(self, r) -> list[Slot]:
        """Nodes past the one that gave the walk's token foretell the next block: the first of them says what follows it."""
        first = len(r.walk.path) + 1
        if first >= len(r.tree):
            return []
        if r.sequence.law.greedy:
            return [Slot(token) for token in r.logits_NV[first:].argmax(-1).tolist()]
        law, contexts = r.sequence.law, None
        if law.reads_context:
            before = r.sequence.ids[:-first]  # the text as the pass saw it, up to the root
            contexts = [before + r.tree.tokens[1 : node + 1] for node in range(first, len(r.tree))]
        laws_NV = torch.softmax(law(r.logits_NV[first:], contexts).double(), dim=-1)
        return [Slot(r.sequence.dice.draw(law_V), law_V) for law_V in laws_NV]

    def _block(self, sequence, tokens: int) -> list[Slot]:
        """What is known of the next tokens, filled up to so many."""
        block = self.blocks.get(sequence.number, [])[:tokens]
        while len(block) < tokens:
            block.append(self._new(sequence, block))
        return block

    def _new(self, sequence, block: list[Slot]) -> Slot:
        dice, left = sequence.dice, block[-1] if block else Slot(sequence.ids[-1])
        if self.knobs.fill == "repeat":
            law_V = torch.zeros(self.vocab, dtype=torch.float64)
            law_V[left.token] = 1
            return Slot(left.token, None if sequence.law.greedy else law_V)
        if sequence.law.greedy:
            return Slot(left.token if self.knobs.fill == "left" else int(dice.uniform() * self.vocab))
        law_V = left.law_V if self.knobs.fill == "left" and left.law_V is not None else self._flat()
        return Slot(dice.draw(law_V), law_V)

    def _flat(self) -> Tensor:
        return torch.full((self.vocab,), 1 / self.vocab, dtype=torch.float64)
