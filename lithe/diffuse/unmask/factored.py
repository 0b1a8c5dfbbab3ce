"""Commit the n surest tokens while (n + 1) times the least sure one's doubt stays below a factor."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
            promises=("one_step_is_plain",))
ONE = {"factor": 0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    factor: float = knob(1.0, "what the doubts may come to", low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def select(self, canvas, guess, block):
        sorted_P = guess.sure_P.double().sort(descending=True).values
        fits_P = (torch.arange(len(sorted_P)) + 2) * (1 - sorted_P) < self.knobs.factor
        return most(guess.sure_P, int(fits_P.nonzero()[-1]) + 1 if fits_P.any() else 0)
