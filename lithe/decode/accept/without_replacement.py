"""Try several different guesses at each step, one after the other.

Recursive rejection sampling (Jeon et al., 2024, "Recursive Speculative Decoding"; Yang et al., 2024, "Multi-Candidate
Speculative Decoding"). Children are drawn from q without replacement. With R = p and D = q at first, each child y in draw
order is followed with probability min(1, R(y)/D(y)); after a rejection R becomes the normalised (R - D)+, and D loses y and
is normalised anew; when all are rejected the token is drawn from R. Children that cover the whole vocabulary are never all
rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.ops import accept

CARD = Card(
    paper="Multi-Candidate Speculative Decoding",
    promises=("same_law",),
    takes=("chain", "wor"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    greedy = False

    def __init__(self, knobs: Knobs):
        pass

    def walk(self, tree, scores_NV, dice):
        return accept.walk(tree, scores_NV, accept.without_replacement, dice)
