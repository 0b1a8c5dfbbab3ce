"""Sample from the fewest tokens that hold most of the probability.

Nucleus sampling (Holtzman et al., 2020, section 3.1): the smallest set of likeliest tokens whose mass reaches top_p. The
likeliest token is always kept; at 1 nothing is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="The Curious Case of Neural Text Degeneration", promises=("subset",))
MAIN = "top_p"
OFF = 1.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    top_p: float = knob(0.95, "probability mass to keep", low=0.0, high=1.0)


class Method:
    stage = 2
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.mass = knobs.top_p

    def __call__(self, logits_NV, contexts):
        return truncate.top_p(logits_NV, self.mass)
