"""Placeholders behind each token make a tuned model guess the tokens after, within the pass that verifies.

The lossless mode of LUD, lexical unit decoding (Sun et al., 2024): what the placeholders behind the last accepted token say is
a chain that the next pass verifies, instead of text. The model is one tuned for it (lithe units), whose last embedding is the
placeholder; the output is that model's own. search=lud takes the placeholders at their word. That every row has
placeholders, or the last alone, is our reading, as are alpha and k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.decode.ghosts import heard
from lithe.decode.lexical import placeholder, span
from lithe.ops.tree import Tree

CARD = Card(
    paper="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    row=25,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "ghosts"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    alpha: float = knob(0.9, "probability that a placeholder's likeliest token must have", low=0.0, high=1.0)
    most: int = knob(4, "tokens of a step", low=2, high=16)
    behind: str = knob("all", "rows that have placeholders: all, or the chain's last, which serve where all is accepted",
                       choices=("all", "last"))


class Method:
    enters = 0

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.model, self.token = knobs, model, placeholder(model)
        self.chains: dict[int, list[int]] = {}  # by the sequence's number

    def ghosts(self, states_GC, which):
        return self.model.embed(torch.full((len(which),), self.token, device=states_GC.device))

    def propose(self, sequences, room):
        trees = []
        for sequence, most in zip(sequences, room, strict=True):
            tree = Tree.chain(sequence.ids[-1], self.chains.pop(sequence.number, [])[: max(0, most)])
            for node in range(len(tree)) if self.knobs.behind == "all" else [len(tree) - 1]:
                if most > 0:
                    tree.haunt(node, range(self.knobs.most - 1))
            trees.append(tree)
        return trees

    def observe(self, rounds):
        self.chains = {}
        for r in rounds:
            if (said := heard(r)) is not None and not r.sequence.finished:
                law_GV = said.double().softmax(-1)
                self.chains[r.sequence.number] = span(law_GV, [r.sequence.ids[-1]], self.knobs.alpha)
