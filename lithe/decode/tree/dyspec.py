"""Grow the tree where the draft itself thinks that a guess will be reached, one node at a time.

DySpec (Xiong et al., 2024), sections 4.1 and 4.3. Every place where a node could be drawn has a value, the draft's chance that
the walk gets there: a child of y is worth v D(y), the next sibling of y is worth v (1 - D(y)), D being what is left of the
draft's law there. The best place is filled until the tree has its size: a heap, which asks the draft once a node. The
threshold form fills all places worth at least that much level by level, which asks it once a level. Drawn without
replacement. For a greedy sequence the likeliest token left is taken, and values are those of the draft at a lower temperature.

Axes: V vocabulary.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from torch import Tensor

from lithe.card import Card, knob
from lithe.ops.accept import without

CARD = Card(
    paper="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
    row=70,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("wor",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    nodes: int = knob(64, "size of the tree, its root left out; of the threshold form at most", low=1, high=1024)
    threshold: float = knob(0.0, "level by level, whatever is worth this; 0: node by node, the best first", low=0.0, high=1.0)
    temperature: float = knob(0.6, "of the draft's values where the target is greedy", low=0.01, high=10.0)


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def grow(self, tree, chance, *, depth, greedy):
        power = 1 / self.knobs.temperature if greedy else 1.0
        return (self._levels if self.knobs.threshold else self._heap)(tree, chance, depth, power)

    def _heap(self, tree, chance, depth, power):
        urns: dict[int, Tensor] = {}
        places = [(-1.0, 0, 0, 0)]  # minus a value, a number that decides among equals, a node and its depth
        number = 0
        while places and len(tree) <= self.knobs.nodes:
            value, _, node, at = heapq.heappop(places)
            if node not in urns:
                (law_V,) = yield [node]
                urns[node] = sharpened(law_V, power)
            child, share, urns[node] = drawn(tree, chance, urns[node], node)
            number += 2
            if share < 1:
                heapq.heappush(places, (value * (1 - share), number, node, at))
            if at + 1 < depth:
                heapq.heappush(places, (value * share, number + 1, child, at + 1))

    def _levels(self, tree, chance, depth, power):
        front = {0: 1.0}
        for _ in range(depth):
            laws, below = (yield list(front)), {}
            for (node, value), law_V in zip(front.items(), laws, strict=True):
                urn_V = sharpened(law_V, power)
                while value >= self.knobs.threshold and len(tree) <= self.knobs.nodes:
                    child, share, urn_V = drawn(tree, chance, urn_V, node)
                    below[child], value = value * share, value * (1 - share)
            front = {child: value for child, value in below.items() if value >= self.knobs.threshold}
            if not front or len(tree) > self.knobs.nodes:
                return


def drawn(tree, chance, urn_V: Tensor, node: int) -> tuple[int, float, Tensor]:
    """A new child of the node, the share of the urn that it had, one where it was the last, and the urn without it."""
    token = chance.draw(urn_V)
    left_V, share = without(urn_V, token), urn_V[token].item()
    return tree.add(token, node), share if left_V.sum() > 0 else 1.0, left_V


def sharpened(law_V: Tensor, power: float) -> Tensor:
    """The law at a temperature of 1 / power."""
    return law_V if power == 1.0 else (power * law_V.log()).softmax(-1)
