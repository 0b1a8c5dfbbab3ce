"""Expand the likeliest paths level by level, then keep the best nodes of all that were met, whatever their level.

EAGLE-2 (Li et al., 2024), section 4: each level goes on from the `width` nodes of the largest joint probability with as many
children each; of all nodes the `nodes` largest stay, which with their parents are a tree, as no child is likelier than its
parent. Children are chosen, not drawn, so nodes may be dropped for what they hold. Here for any draft that tells its laws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.heads import best

CARD = Card(
    paper="EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    nodes: int = knob(60, "tree size without its root", low=1, high=512)
    depth: int = knob(4, "levels", low=1, high=16)
    width: int = knob(10, "paths that each level goes on from, and guesses of each", low=1, high=64)


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def grow(self, tree, chance, *, depth, greedy):
        scores, front = [0.0], [0]
        for _ in range(min(depth, self.knobs.depth)):
            laws, met = (yield front), []
            for node, law_V in zip(front, laws, strict=True):
                gains, tokens = law_V.topk(min(self.knobs.width, int((law_V > 0).sum())))
                for gain, token in zip(gains.tolist(), tokens.tolist(), strict=True):
                    scores.append(scores[node] + math.log(gain))
                    met.append(tree.add(token, node))
            front = sorted(met, key=lambda node: (-scores[node], node))[: self.knobs.width]
        kept = best(tree, scores, self.knobs.nodes)
        tree.tokens, tree.parents, tree.laws = kept.tokens, kept.parents, {}
