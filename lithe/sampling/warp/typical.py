"""Sample from tokens about as surprising as the model expects.

Locally typical sampling (Meister et al., 2023): tokens are ordered by |-log p(x) - H|, H the entropy of the law, and kept
until their mass reaches `typical`. The likeliest token may be cut off. At 1 nothing is.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="Locally Typical Sampling", promises=("subset",))
MAIN = "typical"
OFF = 1.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    typical: float = knob(0.95, "probability mass to keep; the paper also uses 0.2, for stories", low=0.0, high=1.0)


class Method:
    stage = 2
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.mass = knobs.typical

    def __call__(self, logits_NV, contexts):
        return truncate.typical(logits_NV, self.mass)
