"""Cut off tokens below a probability that falls as the model becomes unsure.

Eta sampling (Hewitt et al., 2022): a token is kept if p(x) >= min(eta, sqrt(eta) exp(-H)), H the entropy of the law. The
likeliest token is always kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="Truncation Sampling as Language Model Desmoothing", promises=("subset",))
MAIN = "eta"
OFF = 0.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    eta: float = knob(0.002, "least probability kept by a sure model; the paper tries 0.0003 to 0.004", low=0.0, high=1.0)


class Method:
    stage = 2
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.floor = knobs.eta

    def __call__(self, logits_NV, contexts):
        return truncate.eta(logits_NV, self.floor)
