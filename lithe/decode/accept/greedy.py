"""Follow the draft as long as it says what the model itself would say.

Greedy verification (Stern et al., 2018, "Blockwise Parallel Decoding", section 3): from the root, go to the child that
holds the model's likeliest token; where there is none, emit that token. Among equals the lowest id is likeliest, as in
plain decoding, so the output is that of plain greedy decoding whatever was drafted.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.ops import accept

CARD = Card(
    paper="Blockwise Parallel Decoding for Deep Autoregressive Models",
    promises=("same_tokens",),
    takes=("det", "chain", "iid", "wor"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None: a tie goes to the lowest id, as in plain decoding."""


class Method:
    greedy = True

    def __init__(self, knobs: Knobs):
        pass

    def walk(self, tree, scores_NV, dice):
        return accept.greedy(tree, scores_NV)

    def walk_best(self, tree, best):
        return accept.likeliest(tree, best)
