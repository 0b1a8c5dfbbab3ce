"""Cut off tokens far less likely than the likeliest.

Min-p sampling (Nguyen et al., 2024): a token is kept if p(x) >= min_p max p, so that the cut is strict where the model is
sure and lenient where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(
    paper="Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
    promises=("subset",),
)
MAIN = "min_p"
OFF = 0.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    min_p: float = knob(0.1, "least probability kept, as a share of the likeliest token's", low=0.0, high=1.0)


class Method:
    stage = 2
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.ratio = knobs.min_p

    def __call__(self, logits_NV, contexts):
        return truncate.min_p(logits_NV, self.ratio)
