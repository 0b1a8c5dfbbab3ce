"""Sample from the k likeliest tokens.

Top-k sampling (Fan et al., 2018). Exactly k tokens are kept: among equals the lowest ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="Hierarchical Neural Story Generation", promises=("subset",))
MAIN = "top_k"
OFF = 0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    top_k: int = knob(10, "how many tokens to keep", low=1)


class Method:
    stage = 2
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.k = knobs.top_k

    def __call__(self, logits_NV, contexts):
        return truncate.top_k(logits_NV, self.k)
