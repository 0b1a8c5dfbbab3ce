"""Make tokens of the text so far less likely, by an amount for each time they occur.

The rule of OpenAI's API: the logit of every token loses the penalty times its count in the text so far. The prompt is part
of the text, as OpenAI's words have it; vLLM counts generated tokens only. Negative values encourage repetition.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="OpenAI API reference: frequency penalty")
MAIN = "frequency_penalty"
OFF = 0.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    frequency_penalty: float = knob(0.5, "taken from a logit each time its token was seen; 0 for none", low=-2.0, high=2.0)


class Method:
    stage = 0
    reads_context = True

    def __init__(self, knobs: Knobs):
        self.penalty = knobs.frequency_penalty

    def __call__(self, logits_NV, contexts):
        return truncate.discount(logits_NV, contexts, each=self.penalty)
