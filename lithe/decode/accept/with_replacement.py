"""Try several independent guesses at each step, one after the other.

Multi-step speculative sampling (SpecInfer, Miao et al., 2023). Children are independent draws from q. With R = p at first,
each child y is followed with probability min(1, R(y)/q(y)); after a rejection R becomes the normalised (R - q)+, and when
all are rejected the token is drawn from R. A token drawn twice stands twice and is tested twice: to merge the two would
bias the output.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.ops import accept

CARD = Card(
    paper="SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification",
    promises=("same_law",),
    takes=("chain", "iid"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    greedy = False

    def __init__(self, knobs: Knobs):
        pass

    def walk(self, tree, scores_NV, dice):
        return accept.walk(tree, scores_NV, accept.with_replacement, dice)
