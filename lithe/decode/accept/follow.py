"""Draw the next token from the model as usual, and follow the draft if it holds that token.

Draw t ~ p at the node and go to the child labelled t; where there is none, emit t. For children that were chosen rather
than drawn (top-k lists, lookups, tables) this is speculative sampling with a one-hot q, and it accepts as often as any
exact rule can. The draw never looks at the tree, so any tree may be reranked, pruned or merged before it. Children drawn
from a law are taken too, but rules that use the law accept more of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.ops import accept

CARD = Card(
    paper="Sample and match",
    promises=("same_law",),
    takes=("det", "chain", "iid", "wor"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    greedy = False

    def __init__(self, knobs: Knobs):
        pass

    def walk(self, tree, scores_NV, dice):
        return accept.walk(tree, scores_NV, accept.follow, dice)
