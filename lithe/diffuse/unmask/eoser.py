"""Hold back ends of text early in decoding, and commit twice as many tokens each step where asked to."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="Taming Masked Diffusion Language Models via Consistency Trajectory Reinforcement Learning with Fewer "
                  "Decoding Step", row=133, promises=("one_step_is_plain",))
ONE = {"low": 1, "ascending": False}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    low: float = knob(0.4, "by what an end's rank is multiplied in the first step (with ascending steps the paper takes 0.01)",
                      low=0, high=1)
    high: float = knob(1.0, "and in the last", low=0, high=1)
    ascending: bool = knob(False, "1, 2, 4, ... tokens a step: log2 of the canvas in steps, rather than one token a step")


class Method:
    def __init__(self, knobs, model):
        self.knobs, self.step = knobs, 0

    def select(self, canvas, guess, block):
        knobs, length = self.knobs, canvas.end - canvas.prompt
        count = 2**self.step if knobs.ascending else 1
        last = (length - 1).bit_length() - 1 if knobs.ascending else length - 1
        if self.step >= last and knobs.ascending:
            count = len(guess.places_P)
        done = (2 ** (self.step + 1) - 1) / 2 ** (last + 1) if knobs.ascending else self.step / max(last, 1)
        self.step += 1
        rank_P = guess.sure_P.clone()
        ends_P = torch.isin(guess.tokens_P, torch.tensor(sorted(canvas.sequence.eos), dtype=torch.long))
        rank_P[ends_P] *= knobs.low + (knobs.high - knobs.low) * min(done, 1.0)
        return most(rank_P, count)
