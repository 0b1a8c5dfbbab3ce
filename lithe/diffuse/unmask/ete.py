"""Commit what is confident also in the blocks ahead; where too little is, decide the most uncertain place."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="From Bits to Rounds: Parallel Decoding with Exploration for Diffusion Language Models", row=38,
            promises=("one_step_is_plain",))
ONE = {"floor": 1.01, "ahead": 0, "stall": 0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    floor: float = knob(0.9, "least probability in the current block", low=0, high=2)
    rise: float = knob(0.02, "by how much it grows with each block ahead", low=0, high=1)
    cap: float = knob(0.98, "and its most", low=0, high=2)
    ahead: int = knob(1, "blocks ahead that are looked at", low=0)
    stall: int = knob(2, "tokens passing below which the most uncertain place is decided as well; 0: never", low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def reach(self, canvas, block):
        return block[0], min(canvas.end, block[1] + self.knobs.ahead * (block[1] - block[0]))

    def select(self, canvas, guess, block):
        knobs, (start, end) = self.knobs, block
        ahead_P = torch.div(guess.places_P - start, end - start, rounding_mode="floor")
        floor_P = (knobs.floor + knobs.rise * ahead_P).clamp(max=max(knobs.cap, knobs.floor))
        passing = guess.sure_P >= floor_P
        chosen = passing | most(guess.sure_P, 1)
        if int(passing.sum()) < knobs.stall:
            first = guess.places_P < end  # the current block is what stalls
            chosen = chosen | most(torch.where(first, guess.entropy_P, -1.0), 1)
        return chosen
