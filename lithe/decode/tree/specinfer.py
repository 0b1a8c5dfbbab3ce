"""Draw several independent guesses where the draft is asked, in a tree of fixed branching.

SpecInfer (Miao et al., 2024), expansion-based trees and multi-step speculative sampling: a node of level d has b_d children,
drawn independently of each other. A token drawn twice is one node that is tested twice, and draws twice as many
children. K-1-1-...: K independent chains, merged where they begin alike. A greedy sequence takes the b_d likeliest instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.grow import branches, distinct, independent

CARD = Card(
    paper="SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("iid",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    branches: str = knob("1-1-3-1-1-1-1-1", "children of a node on each level, joined by hyphens")


class Method:
    def __init__(self, knobs: Knobs):
        self.branches = branches(knobs.branches)

    def grow(self, tree, chance, *, depth, greedy):
        if greedy:
            return distinct(tree, chance, lambda path: self.branches[len(path)], min(depth, len(self.branches)))
        return independent(tree, chance, self.branches[:depth])
