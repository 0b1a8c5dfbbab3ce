"""Keep a drafted token as often as the model agrees with the draft, and correct for the rest.

Speculative sampling (Leviathan et al., 2023, algorithm 1; Chen et al., 2023, "Accelerating Large Language Model Decoding
with Speculative Sampling", algorithm 2). A token x ~ q is kept with probability min(1, p(x)/q(x)); else the token emitted
is drawn from the normalised (p - q)+ and the walk ends. When all are kept, one more token is drawn from p. A token is kept
with probability sum_x min(p(x), q(x)), which no exact rule for one draft can exceed.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.ops import accept

CARD = Card(
    paper="Fast Inference from Transformers via Speculative Decoding",
    promises=("same_law",),
    takes=("chain",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    greedy = False

    def __init__(self, knobs: Knobs):
        pass

    def walk(self, tree, scores_NV, dice):
        return accept.walk(tree, scores_NV, accept.rejection, dice)
