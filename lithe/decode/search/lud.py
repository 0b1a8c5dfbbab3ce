"""Placeholders behind the text make a tuned model say a run of sure tokens at once. Changes the output.

LUD, lexical unit decoding (Sun et al., 2024). A step reads the last tokens and k - 1 placeholders: the next token comes as
ever, then what the placeholders say, as long as each is sure enough. Nothing is verified, and placeholders leave no rows. It
takes a model tuned for it (lithe units), whose last embedding is the placeholder; any other has its last token stand in, to no
use.
Above 1 for alpha it is plain decoding. Only the abstract was at hand: alpha, k and the guard against repetition are ours.
draft=lud verifies what this takes on trust.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.decode.lanes import Lanes
from lithe.decode.lexical import placeholder, span
from lithe.decode.second import WAITING
from lithe.decode.whole import Move, choose
from lithe.model.decoder import ALL

CARD = Card(
    paper="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    row=25,
    promises=("level_zero_is_identity",),
)
ZERO = {"alpha": 1.01}  # the knobs at which it changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    alpha: float = knob(0.9, "probability that a placeholder's likeliest token must have; above 1: none is taken", low=0.0,
                        high=2.0)
    most: int = knob(4, "tokens of a step", low=1, high=16)


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.lanes, self.context = knobs, Lanes(model), model.config.context
        self.token = placeholder(model)

    def prefill(self, sequences):
        self.lanes.sync(sequences)
        if max(len(s.ids) - n for s, n in zip(sequences, self.lanes.cache.lengths, strict=True)) > WAITING:
            self.lanes.prefill()

    def advance(self, sequences):
        unread = [s.ids[n:] for s, n in zip(sequences, self.lanes.cache.lengths, strict=True)]
        more = [max(0, min(self.knobs.most, s.left, self.context - len(s.ids) + 1) - 1) for s in sequences]
        rows = [row + [self.token] * many for row, many in zip(unread, more, strict=True)]
        if (slots := max(self.lanes.cache.lengths) + max(map(len, rows))) > self.lanes.cache.capacity:
            self.lanes.cache.grow(slots)
        out_BTV = self.lanes.run(rows, logits=ALL).scores
        self.lanes.commit(list(map(len, unread)))
        return [self._move(s, out_BTV[b, len(row) - 1 : len(row) + many], len(row) + many)
                for b, (s, row, many) in enumerate(zip(sequences, unread, more, strict=True))]

    def _move(self, sequence, logits_GV, nodes: int) -> Move:
        """The token after the last true one, and what the placeholders add; penalties see the step's own tokens."""
        tokens = [choose(sequence, logits_GV[0])]
        for logits_V in logits_GV[1:]:
            law_V = torch.softmax(sequence.law(logits_V[None], [sequence.ids + tokens])[0].double(), -1)
            if not (more := span(law_V[None], tokens, self.knobs.alpha)):
                break
            tokens += more
        return Move(tokens, ["", *["placeholder"] * (len(tokens) - 1)], nodes)
