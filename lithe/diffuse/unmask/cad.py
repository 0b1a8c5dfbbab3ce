"""Commit what is confident, at most so many a step, with the end of the text barred at first and a cap on steps."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="CD4LM: Consistency Distillation and aDaptive Decoding for Diffusion Language Models", row=10,
            promises=("one_step_is_plain",))
ONE = {"floor": 1.01, "early": 0, "steps": 0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    floor: float = knob(0.95, "least probability; above 1 none passes", low=0, high=2)
    least: int = knob(1, "tokens a step at least", low=1)
    most: int = knob(32, "tokens a step at most", low=1)
    early: float = knob(0.4, "the share of the canvas that is committed before the text may end", low=0, high=1)
    steps: int = knob(32, "steps a block at most, the last of which commits the rest; 0 sets no cap", low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs
        self.block, self.step = None, 0

    def select(self, canvas, guess, block):
        knobs = self.knobs
        self.step = self.step + 1 if block == self.block else 1
        self.block = block
        if self.step == knobs.steps:
            return torch.ones(len(guess.places_P), dtype=torch.bool)
        sure_P = guess.sure_P.clone()
        if 1 - len(canvas.open()) / (canvas.end - canvas.prompt) < knobs.early:
            barred_P = torch.isin(guess.tokens_P, torch.tensor(sorted(canvas.sequence.eos), dtype=torch.long))
            sure_P[barred_P & ~barred_P.all()] = float("-inf")
        passing = int((sure_P >= knobs.floor).sum())
        return most(sure_P, max(knobs.least, min(passing, knobs.most)))
