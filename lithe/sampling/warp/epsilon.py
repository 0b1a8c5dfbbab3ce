"""Cut off tokens below a fixed probability.

Epsilon sampling (Hewitt et al., 2022): a token is kept if p(x) >= epsilon. The likeliest token is always kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="Truncation Sampling as Language Model Desmoothing", promises=("subset",))
MAIN = "epsilon"
OFF = 0.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    epsilon: float = knob(0.0006, "least probability kept; the paper tries 0.0003 to 0.0009", low=0.0, high=1.0)


class Method:
    stage = 2
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.floor = knobs.epsilon

    def __call__(self, logits_NV, contexts):
        return truncate.epsilon(logits_NV, self.floor)
