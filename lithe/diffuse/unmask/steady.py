"""Commit a fixed number of tokens a step, the surest first: the reference at one, and the plainest way to go faster."""

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="Large Language Diffusion Models (LLaDA), low-confidence remasking", promises=("one_step_is_plain",))
ONE = {"tokens": 1}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    tokens: int = knob(2, "tokens a step", low=1)
    by: str = knob("sure", "what counts as sure: the token's probability, its lead over the second, low entropy, or chance",
                   choices=("sure", "margin", "entropy", "chance"))


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def select(self, canvas, guess, block):
        return most(self._score(canvas, guess), self.knobs.tokens)

    def _score(self, canvas, guess):
        match self.knobs.by:
            case "margin":
                return guess.margin_P
            case "entropy":
                return -guess.entropy_P
            case "chance":
                return torch.rand(len(guess.places_P), generator=canvas.sequence.dice.generator)
        return guess.sure_P
