"""Give each of several independent guesses the same chance, so that together they are kept more often.

SpecTr (Sun et al., 2023), k-SEQ, algorithm 3. Of k drafts, each drawn from q, every one is followed with probability
min(1, p(x) / (rho q(x))), where rho in [1, k] is the least that leaves no token given more often than p has it (bisection);
when none is followed the token comes from what they left of p. It keeps a draft at least 1 - 1/e as often as the best exact
rule could. One draft: rho is 1, and this is plain speculative sampling. The drafts: independent trees, such as K chains,
verified as a trie in which a token drawn twice is tested twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.ops import accept

CARD = Card(
    paper="SpecTr: Fast Speculative Decoding via Optimal Transport",
    row=120,
    promises=("same_law",),
    takes=("chain", "iid"),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None: k is the number of drafts that share what was accepted so far."""


class Method:
    greedy = False

    def __init__(self, knobs: Knobs):
        pass

    def walk(self, tree, scores_NV, dice):
        return accept.walk(tree, scores_NV, accept.k_seq, dice)
