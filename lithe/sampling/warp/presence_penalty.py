"""Make tokens of the text so far less likely, by an amount.

The rule of OpenAI's API: the logit of every token that occurs in the text so far loses the penalty once. The prompt is part
of the text, as OpenAI's words have it; vLLM counts generated tokens only. Negative values encourage repetition.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops import truncate

CARD = Card(paper="OpenAI API reference: presence penalty")
MAIN = "presence_penalty"
OFF = 0.0  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    presence_penalty: float = knob(0.5, "taken from the logit of every token seen; 0 changes nothing", low=-2.0, high=2.0)


class Method:
    stage = 0
    reads_context = True

    def __init__(self, knobs: Knobs):
        self.penalty = knobs.presence_penalty

    def __call__(self, logits_NV, contexts):
        return truncate.discount(logits_NV, contexts, once=self.penalty)
