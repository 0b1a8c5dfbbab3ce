"""Make tokens of the text so far less likely, by a factor.

CTRL's penalised sampling (Keskar et al., 2019, section 4.1): the logit of every token of the prompt or the generated text
is divided by the penalty where positive and, as in transformers, multiplied by it where negative. Below 1 repetition is
encouraged.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="CTRL: A Conditional Transformer Language Model for Controllable Generation")
MAIN = "repetition_penalty"
OFF = 1.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    repetition_penalty: float = knob(1.2, "divides positive logits of seen tokens; 1 changes nothing", low=0.01, high=100.0)


class Method:
    stage = 0
    reads_context = True

    def __init__(self, knobs: Knobs):
        self.penalty = knobs.repetition_penalty

    def __call__(self, logits_NV, contexts):
        return truncate.repetition(logits_NV, contexts, self.penalty)
