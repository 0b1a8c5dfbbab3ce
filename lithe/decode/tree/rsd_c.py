"""Draw several different guesses at each node, in a tree of fixed branching.

Recursive speculative decoding with constant branching factors, RSD-C (Jeon et al., 2024, section 3): a node of level d has b_d
children, drawn without replacement and tested in the order they were drawn (recursive rejection sampling). The paper takes
the b_d largest of log q + Gumbel noise; drawing one after another from what is left has the very same law. A greedy sequence
takes the b_d likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.grow import branches, distinct

CARD = Card(
    paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
    row=170,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("wor",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    branches: str = knob("2-2-2", "children of a node on each level, joined by hyphens")


class Method:
    def __init__(self, knobs: Knobs):
        self.branches = branches(knobs.branches)

    def grow(self, tree, chance, *, depth, greedy):
        return distinct(tree, chance, lambda path: self.branches[len(path)], min(depth, len(self.branches)))
